"""`python -m lightning_root coefficients`: show, fit, certify and compare."""
