"""Sweeps: many runs from one file, compared over seeds."""
