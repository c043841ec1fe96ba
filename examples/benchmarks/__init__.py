"""Scripts whose numbers the documentation quotes."""
