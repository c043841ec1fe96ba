"""The schedules that are compared, in the order of the page, and what they are."""

TITLES = {
    "muon": "Muon",
    "paper": "paper",
    "published": "published",
    "you": "You",
    "polar_express": "Polar Express",
    "polar_express_margin": "Polar Express, margin",
    "cans": "CANS",
    "cans_margin": "CANS, margin",
    "default": "ours, default",
    "fitted": "ours, Gaussian fit",
    "captured": "ours, captured fit",
}

COLUMNS = """\
| column | schedule |
|---|---|
| Muon | (3.4445, -4.7750, 2.0315) at every step |
| paper | one triple per shape: Table 1 where it has the shape and 5 steps, otherwise the same \
fit to the Gaussian law |
| published | the authors' script: four shapes, Muon's triple for all others |
| You | J. You's five triples; defined for 5 steps only |
| Polar Express, CANS | as published, the first T triples; continued with the classical step \
(15/8, -5/4, 3/8) beyond CANS's five |
| ..., margin | the same with room for round-off, 2 % at the input and 0.4 % between steps: what \
`coefficients="polar_express"` and `"cans"` do |
| ours, default | `coefficients="adaptive"`: a triple per step from the shipped table, fitted to a \
model of momentum |
| ours, Gaussian fit | `fit_coefficients(shape, T)`: a triple per step, fitted to the Gaussian law |
| ours, captured fit | a triple per step, fitted to 72 % momentum of the run's first half, 25 % \
Gaussian law, 3 % log-uniform |
"""
