"""Preconditioning in front of the orthogonalization, as the papers state it, one matrix at a time.

Shampoo (arXiv:1802.09568) and SOAP (arXiv:2409.11321). Written for reading, in float64. The state
of a matrix is a dict, empty before its first step, that is changed.
"""

import torch


def preconditioned(
    b,
    g,
    state,
    *,
    method,
    sides,
    every,
    statistics_every=1,
    beta=0.95,
    damping=1e-6,
    exponent=None,
    bases=None,
):
    """P_l B P_r, or B divided in the eigenbases; sides are 0 for the rows and 1 for the columns.

    `bases` are those of sides that have more directions than gradients so far, where eigenvectors
    are a matter of taste: they are checked instead of found.
    """
    age = state.setdefault("steps", 0) % every
    due, measured = age == 0, age % statistics_every == 0
    state["steps"] += 1
    beta = beta**statistics_every
    for side in sides if measured else ():
        average(state, ("C", side), g @ g.T if side == 0 else g.T @ g, beta)
    if method == "soap":
        for side in sides if due else ():
            turn(state, side, (bases or {}).get(side))
        return adapted(b, g if measured else None, state, sides, beta, damping)
    if exponent is None:
        exponent = 1 / 4 if len(sides) == 2 else 1 / 2
    for side in sides:
        if due:
            state["P", side] = inverse_root(state["C", side], exponent, damping)
        b = state["P", side] @ b if side == 0 else b @ state["P", side]
    return b


def average(state, key, new, beta):
    """A running mean; the first value seeds."""
    state[key] = beta * state[key] + (1 - beta) * new if key in state else new


def inverse_root(c, exponent, damping):
    """(C / max eig C + damping I)^-exponent."""
    values, vectors = torch.linalg.eigh(c)
    powers = (values.clamp(min=0) / values.max() + damping) ** -exponent
    return vectors @ powers.diag() @ vectors.T


def turn(state, side, given=None):
    """The first basis are the eigenvectors, the largest first; the next ones a QR step of C Q."""
    c, old = state["C", side], state.get(("Q", side))
    if old is None:
        new = torch.linalg.eigh(c).eigenvectors.flip(1)
        if given is not None:
            values = (given.T @ c @ given).diag()
            torch.testing.assert_close(given.T @ c @ given, values.diag(), rtol=0, atol=1e-10)
            assert (values.diff() < 1e-10).all()
    else:
        order = (old * (c @ old)).sum(0).argsort(descending=True)  # Rayleigh quotients
        product = (c @ old)[:, order]
        new = torch.linalg.qr(product).Q
        state["V"] = state["V"].index_select(side, order)
        if given is not None:
            torch.testing.assert_close(
                (given.T @ product).tril(-1), torch.zeros_like(c), rtol=0, atol=1e-10
            )
    if given is not None:
        torch.testing.assert_close(given.T @ given, torch.eye(len(c)).double())
        new = given
    state["Q", side] = new


def adapted(b, g, state, sides, beta, damping):
    """Rotate, divide by the root of a second moment that is kept there, and rotate back."""
    left = state["Q", 0] if 0 in sides else torch.eye(len(b)).double()
    right = state["Q", 1] if 1 in sides else torch.eye(b.shape[1]).double()
    if g is not None:
        average(state, "V", (left.T @ g @ right).square(), beta)
    divisor = (state["V"] + damping * state["V"].max()).sqrt()
    return left @ ((left.T @ b @ right) / divisor) @ right.T
