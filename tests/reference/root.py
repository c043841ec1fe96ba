"""ROOT as the paper states it (arXiv:2511.20626, Algorithm 2), one matrix at a time.

Written for reading. The optimizer must agree with it on every option.
"""

import math

import torch


def orthogonalize(base, triples):
    """Newton-Schulz on one (m, n) matrix, one (a, b, c) per step."""
    x = base.T if base.shape[0] > base.shape[1] else base
    norm = x.square().sum().sqrt()
    x = x / norm if norm > 0 else x
    for a, b, c in triples:
        s = x @ x.T
        x = a * x + b * s @ x + c * s @ s @ x
    return x.T if base.shape[0] > base.shape[1] else x


def remove_outliers(n, p):
    """B = N - O with O = sign(N) max(|N| - eps, 0), eps the p-quantile of the non-zero |N|."""
    magnitudes = n.abs()[n != 0]
    if magnitudes.numel() == 0:
        return n
    eps = torch.quantile(magnitudes, p)
    return n - n.sign() * (n.abs() - eps).clamp(min=0)


def automatic_p(n):
    """p = 1 - 0.1 (kappa / 3 - 1 + share), within [0.8, 1].

    kappa is the sum of p_ij^2 / (p_i p_j), with the shares that entries, rows and columns have of
    the energy, and share the largest p_ij.
    """
    energy = n.square().tolist()
    total = sum(sum(row) for row in energy)
    if total == 0:
        return 1.0
    entries = [[e / total for e in row] for row in energy]
    rows, columns = (
        [sum(row) for row in entries],
        [sum(column) for column in zip(*entries, strict=True)],
    )
    kappa = sum(
        e**2 / (rows[i] * columns[j])
        for i, row in enumerate(entries)
        for j, e in enumerate(row)
        if e > 0
    )
    excess = kappa / 3 - 1 + max(max(row) for row in entries)
    return 1 - min(max(0.1 * excess, 0), 0.2)


def clipped(n, p):
    """B, with the quantile that is asked for; N itself without one."""
    if p is None:
        return n
    return remove_outliers(n, automatic_p(n) if p == "auto" else p)


def normalize_neurons(u, v, outputs="rows"):
    """NorMuon (arXiv:2510.05491): U / sqrt(v), with the norm that U had, and the new v.

    A neuron is a row or a column, whichever are along the longer side; of a square an output.
    """
    rows = u.shape[0] > u.shape[1] or (u.shape[0] == u.shape[1] and outputs == "rows")
    neurons = u if rows else u.T
    v = 0.95 * v + 0.05 * neurons.square().mean(dim=1)
    scaled = torch.where(v[:, None] > 0, neurons / v[:, None].sqrt(), 0)
    if scaled.any():
        scaled = scaled * (torch.linalg.norm(u) / torch.linalg.norm(scaled))
    return scaled if rows else scaled.T, v


def twin_options(options, triples):
    """Options of an optimizer's matrices by their names in `root_step`."""
    same = ("weight_decay", "momentum", "nesterov", "maximize")
    return {
        "lr": float(options["lr"]),
        "p": options["outlier_quantile"],
        "adjust": options["adjust_lr_fn"],
        "triples": triples,
        **{name: options[name] for name in same},
    }


def root_step(
    w,
    g,
    m,
    v=None,
    *,
    lr,
    weight_decay,
    momentum,
    nesterov,
    p,
    triples,
    adjust,
    maximize=False,
    outputs="rows",
    precondition=None,
):
    """One step of one parameter: the new weight and momentum, and v where it is given.

    Convolutions are flattened. `precondition` takes B and G, clipped as B is, and returns a new B.
    """
    g = -g if maximize else g
    m = momentum * m + g
    n = (g + momentum * m if nesterov else m).reshape(len(w), -1)
    base = clipped(n, p)
    if precondition is not None:
        base = precondition(base, clipped(g.reshape(len(w), -1), p))
    u = orthogonalize(base, triples)
    if v is not None:
        u, v = normalize_neurons(u, v, outputs)
    rows, columns = u.shape if outputs == "rows" else u.T.shape
    scale = math.sqrt(max(1, rows / columns))
    if adjust == "match_rms_adamw":
        scale = 0.2 * math.sqrt(max(rows, columns))
    elif adjust == "spectral_unclamped":
        scale = math.sqrt(rows / columns)
    w = w * (1 - lr * weight_decay) - lr * scale * u.reshape(w.shape)
    return (w, m) if v is None else (w, m, v)
