"""Runnable stories: a model, its data, a comparison; read one file from top to bottom."""
