"""Tasks of our own for the lm-evaluation-harness, in its format; they need no network."""
