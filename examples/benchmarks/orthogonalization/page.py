"""The results page: what was measured, on what, by which command, and what holds."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.benchmarks.orthogonalization.claims import Claim
from examples.benchmarks.orthogonalization.columns import COLUMNS, TITLES
from examples.benchmarks.orthogonalization.measures import LARGEST_INPUT, Row, Run
from examples.benchmarks.page import markdown_table, provenance

LARGEST_FLOAT32 = 3.4e38
CAPTURE = "python -m examples.benchmarks.capture_momentum"
FOLDER = {"cifar10": " --cifar10 DIR"}


def write_page(
    path: Path,
    rows: Sequence[Row],
    runs: Sequence[Run],
    table: Sequence[Mapping[str, Any]],
    checks: Sequence[Mapping[str, Any]],
    claims: Sequence[Claim],
    about: Mapping[str, Any],
) -> None:
    """Write the Markdown page; its pictures are expected beside it."""
    parts = [
        "# Orthogonalization error",
        "Mean of (sigma_out - 1)^2 over the singular values of held-out matrices after T steps, in "
        "float32: the error of Table 1 in ROOT (arXiv:2511.20626). Every input is divided by its "
        "Frobenius norm. The least error of a row is bold.",
        provenance(
            about,
            f"The shipped table is the one whose SHA-256 begins with `{about['table']}`.",
        ),
        _failing(claims),
        _picture(path, "shapes", "Error by kind of matrix, 5 steps"),
        COLUMNS.strip(),
        "## Table 1 recomputed",
        _table_1(table, about),
        "## Gaussian matrices",
        f"One matrix of each shape (seed {about['seed']}). No schedule was fitted to a drawn "
        "matrix: fits use the Marchenko-Pastur law." + _left_out(about),
        *_by_steps([row for row in rows if row.source == "gaussian"]),
        "## Momentum from training",
        "Clipped momentum of all hidden matrices, cut as the optimizer cuts them (q, k and v "
        "apart). Fits see the early steps, errors are those of the late ones. The default's free "
        "parameters were set on GPTs of width 256 to 768, among them the kind of run called `gpt` "
        "here, and a ViT of width 320 on CIFAR-10; its claims leave `gpt` out. A loss near zero "
        "means that the model knows its few examples by heart: its momentum shrinks to a few "
        "directions, a fit to what was before no longer applies, and the small singular values of "
        "a square matrix fall below what five steps can lift.",
        _runs(runs),
        *_by_steps([row for row in rows if row.source != "gaussian"]),
        _picture(path, "steps", "Error by number of steps"),
        "Errors below 1e-6 are drawn at 1e-6.",
        "## What the schedules do to a singular value",
        _picture(path, "curves", "p_T over sigma, 5 steps, with the spectra shaded"),
        "Shaded: where the singular values are, as shares on a logarithmic axis.",
        _highest(rows),
        "## Real iterations beside p_T",
        _cross_check(checks),
        "## Must hold",
        _claims(claims),
    ]
    path.write_text("\n\n".join(part for part in parts if part) + "\n", "utf-8")


def number(error: float) -> str:
    """An error in five decimals; what is larger than 10 in two digits."""
    if not math.isfinite(error):
        return "overflow"
    if error >= 10:
        return f"{error:.1e}"
    return f"{error:.5f}" if error >= 0.5e-5 else "< 0.00001"


def _picture(path: Path, name: str, text: str) -> str:
    """Show a picture that was drawn beside the page."""
    picture = path.with_name(f"{path.stem}_{name}.png")
    return f"![{text}]({picture.name})" if picture.is_file() else ""


def _failing(claims: Sequence[Claim]) -> str:
    counts = [sum(claim.holds is value for claim in claims) for value in (True, False, None)]
    words = f"Of {len(claims)} claims at the [end of this page](#must-hold) {counts[0]} hold"
    words += f", {counts[2]} were not measured" if counts[2] else ""
    if not counts[1]:
        return words + " and none fails."
    failing = [f"- {claim.text}: {claim.measured}" for claim in claims if claim.holds is False]
    return "\n".join([f"{words}, {counts[1]} do not:", "", *failing])


def _left_out(about: Mapping[str, Any]) -> str:
    return f" Left out by `--quick`: {', '.join(about['left_out'])}." if about["left_out"] else ""


def _table_1(table: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    if not table:
        return "None of its shapes was measured."
    head = [
        *("m x n", "Muon, printed", "Muon, here", "paper, printed", "paper, here"),
        *("paper's triple", "fitted triple", "fitted, here"),
    ]

    def triple(values: Sequence[float]) -> str:
        return ", ".join(f"{value:.4f}" for value in values)

    body = [
        [
            e["shape"],
            f"{e['muon_printed']:.4f}",
            number(e["muon"]),
            f"{e['paper_printed']:.4f}",
            number(e["paper"]),
            triple(e["triple_printed"]),
            triple(e["triple_fitted"]),
            number(e["fitted"]),
        ]
        for e in table
    ]
    return (
        "Printed: the paper. Here: measured on the held-out matrix. Fitted: one triple for all 5 "
        "steps, `fit_coefficients(shape, 5, per_step=False)`. The paper's triples for 2048x8192 "
        "and 2048x16384 are local optima; the fits there are the best among the triples that send "
        "no input in [0, 1.02] above 1.3." + _left_out(about) + "\n\n" + markdown_table(head, body)
    )


def _by_steps(rows: Sequence[Row]) -> list[str]:
    parts = []
    for steps in sorted({row.steps for row in rows}):
        chosen = [row for row in rows if row.steps == steps]
        names = [name for name in TITLES if any(name in row.errors for row in chosen)]
        several = len({row.source for row in chosen}) > 1 or chosen[0].source != "gaussian"
        head = ["m x n", *(TITLES[name] for name in names)]
        body = []
        for row in chosen:
            least = min(row.errors[name] for name in names if name in row.errors)
            cells = [_cell(row.errors.get(name), least) for name in names]
            body.append([f"{row.source} {row.size}" if several else row.size, *cells])
        parts.append(f"### {steps} steps\n\n{markdown_table(head, body)}")
    return parts


def _cell(error: float | None, least: float) -> str:
    if error is None:
        return "-"
    return f"**{number(error)}**" if error == least else number(error)


def _runs(runs: Sequence[Run]) -> str:
    head = ["run", "what", "width", "depth", "steps", "loss", "fitted on", "tested on", "matrices"]
    body = []
    for run in runs:
        about = run.about
        tested = ", ".join(f"{len(sigma)} of {m}x{n}" for (m, n), sigma in run.late.items())
        body.append(
            [
                run.name,
                about["title"],
                f"{about['width']}",
                f"{about['depth']}",
                f"{about['steps']}",
                f"{about['first_loss']:.3g} to {about['last_loss']:.3g}",
                ", ".join(map(str, about["early"])),
                ", ".join(map(str, about["late"])),
                tested,
            ]
        )
    table = markdown_table(head, body) if runs else "No captured run was found."
    how = "\n".join(f"    {CAPTURE} {run.name}{FOLDER.get(run.name, '')}" for run in runs)
    return f"{table}\n\n{how}" if runs else table


def _highest(rows: Sequence[Row]) -> str:
    shown = [row for row in rows if row.steps == 5] or list(rows)
    names = [name for name in TITLES if any(name in row.highest for row in shown)]
    body = []
    for name in names:
        pairs = [(row.highest[name], row.size) for row in shown if name in row.highest]
        value, where = max(pairs)
        distinct = len({round(pair[0], 6) for pair in pairs}) > 1
        text = f"{value:.4g}" if value < LARGEST_FLOAT32 else "overflows float32"
        body.append([TITLES[name], text, where if distinct else "any shape"])
    head = ["schedule", f"largest p_T on [0, {LARGEST_INPUT}]", "at"]
    return (
        "Round-off, above all in bfloat16, pushes singular values a little past 1. Polar Express "
        "and CANS as published are steep there; hence the margin that `lookup` gives them.\n\n"
        + markdown_table(head, body)
    )


def _cross_check(checks: Sequence[Mapping[str, Any]]) -> str:
    if not checks:
        return "Not run."
    far = max(checks, key=lambda c: abs(c["iteration"] - c["polynomial"]))
    head = ["matrix", "schedule", "T", "p_T in float32", "float32 iteration"]
    body = [
        [
            f"{c['source']} {c['shape']}",
            TITLES[c["schedule"]],
            str(c["steps"]),
            f"{c['polynomial']:.7f}",
            f"{c['iteration']:.7f}",
        ]
        for c in checks
    ]
    gap = abs(far["iteration"] - far["polynomial"])
    where = f"{far['source']} {far['shape']}, {TITLES[far['schedule']]}"
    return (
        "The errors above are p_T at the singular values. Here `newton_schulz` iterates on the "
        "matrix itself, in float32, and the error is ||U - P||_F^2 / m against the polar factor P "
        "from a float64 eigendecomposition. Gaussian matrices up to 2048 rows as drawn; of "
        "captured momentum one late matrix of each shape, rebuilt from its singular values with "
        f"random singular vectors. The largest difference is {gap:.1e} ({where}).\n\n"
        + markdown_table(head, body)
    )


def _claims(claims: Sequence[Claim]) -> str:
    words = {True: "yes", False: "**no**", None: "not measured"}
    lines = ["| claim | measured | holds |", "|---|---|---|"]
    lines += [f"| {c.text} | {c.measured or '-'} | {words[c.holds]} |" for c in claims]
    return "\n".join(lines)
