"""Kill a training again and again, resume it, and see whether it ends where it would have ended.

    python -m examples.benchmarks.kills
    python -m examples.benchmarks.kills --kills 20 --processes 1       # a minute, to try it

A tiny GPT trains with everything on that has state: ROOT, its schedule, monitor, refit, fitted and
cached coefficients, a checkpoint every second step (`AtomicCheckpointIO`). SIGKILL ends it at a
random moment, half of them inside the writing of a checkpoint; it resumes from `last.ckpt`, is
killed again, and so on until it ends. Its last checkpoint must then be, bit for bit, that of the
same run without a kill: weights, optimizer, schedule, loops, data, monitor and refit. On several
processes, DDP over gloo, one rank is killed and the others must notice.

Writes `kills.md` (the page) and `kills.json` (every kill).
"""

import argparse
import shlex
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from examples.benchmarks.killing.training import PLACES, SAVE_EVERY
from examples.benchmarks.killing.trials import ANY_MOMENT, Record, trials
from examples.benchmarks.page import RESULTS, environment, markdown_table, provenance
from examples.sweep import positive
from lightning_root._files import write_json
from lightning_root.cli.output import progress

MODULE = "examples.benchmarks.kills"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog=f"python -m {MODULE}", description=(__doc__ or "").partition("\n")[0]
    )
    add = found.add_argument
    add("--kills", type=positive, default=200, metavar="N", help="in all (default: 200)")
    add(
        "--processes",
        type=positive,
        nargs="+",
        default=[1, 2],
        metavar="N",
        help="of a run; kills are shared evenly among several numbers (default: 1 2)",
    )
    add("--steps", type=positive, default=24, metavar="N", help="of a run (default: 24)")
    add("--seed", type=int, default=0, help="of the run and of the moments (default: 0)")
    add("--output", type=Path, default=RESULTS, metavar="FOLDER", help="for page and numbers")
    return found


def kill_all(options: argparse.Namespace, folder: Path) -> list[Record]:
    """All kills, with their outcomes.

    Args:
        options: The command line.
        folder: For the files of the runs; of those that ended exactly nothing stays.
    """
    records: list[Record] = []
    for number, processes in enumerate(options.processes):
        places = range(number, options.kills, len(options.processes))
        found = trials(len(places), processes, options.steps, options.seed, folder)
        doing = f"kills on {processes} process" + ("es" if processes > 1 else "")
        with closing(found):
            for _ in progress(places, doing):
                records.append(next(found))
            for _ in found:  # the last run still has to end
                raise AssertionError("more kills than were asked for")
    return records


def page_text(numbers: Mapping[str, Any]) -> str:
    """The Markdown page of what the JSON file holds."""
    kills = numbers["kills"]
    lost = [kill for kill in kills if kill["outcome"] != "exact"]
    runs = len({(kill["processes"], kill["trial"]) for kill in kills})
    parts = [
        "# Killed and resumed",
        f"A tiny GPT of {numbers['steps']} steps, with ROOT, schedule, monitor, refit and cached "
        f"coefficients, and a checkpoint every {SAVE_EVERY} steps, is ended by SIGKILL at random "
        "moments and resumed from `last.ckpt` until it ends. It is exact if its last checkpoint is "
        "then, bit for bit, that of the same run without a kill, and no unfinished file is left.",
        provenance(numbers["about"], f"Lightning {numbers['about']['lightning']}."),
        f"**{len(kills)} kills in {runs} runs, {len(lost)} losses.**",
        "## Where they struck",
        markdown_table(["moment", *_columns(kills), "lost"], _rows(kills)),
        "What is inside a checkpoint's writing is chosen by file, place and share of the bytes; "
        '"any moment" is a step and a time after it, the start of the process and its end '
        f"included, and {sum(_by_chance(kill) for kill in kills)} of those fell into a write too. "
        f"{_replayed(kills)} On two processes one of them is killed: {_others(kills)}.",
    ]
    return "\n\n".join(parts) + "\n"


def _columns(kills: Sequence[Mapping[str, Any]]) -> list[str]:
    return [f"processes: {count}" for count in sorted({kill["processes"] for kill in kills})]


def _rows(kills: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    counts = sorted({kill["processes"] for kill in kills})
    words = {PLACES[0]: "part of the bytes written", ANY_MOMENT: ANY_MOMENT}
    rows = []
    for place in (*PLACES, ANY_MOMENT):
        there = [kill for kill in kills if kill["place"] == place]
        found = Counter(kill["processes"] for kill in there)
        lost = sum(kill["outcome"] != "exact" for kill in there)
        cells = [str(found[count]) for count in counts]
        rows.append([words.get(place, place), *cells, str(lost)])
    return rows


def _by_chance(kill: Mapping[str, Any]) -> bool:
    return bool(kill["in_save"]) and kill["place"] == ANY_MOMENT


def _replayed(kills: Sequence[Mapping[str, Any]]) -> str:
    done = [max(0, kill["step"] - kill["resumed_from"]) for kill in kills if kill["step"] >= 0]
    return f"Steps that had to be done again: {sum(done)} in all, {max(done)} at most for a kill."


def _others(kills: Sequence[Mapping[str, Any]]) -> str:
    ended = Counter(kill["others"] for kill in kills if kill["others"])
    return ", ".join(f"the other {words} ({count})" for words, count in ended.most_common())


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill, resume, write page and numbers; 1 if anything was lost, 130 if it was stopped."""
    given = sys.argv[1:] if arguments is None else arguments
    options, start = parser().parse_args(given), time.perf_counter()
    folder = Path(mkdtemp(prefix="kills-"))
    handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        records = kill_all(options, folder)
    except KeyboardInterrupt:
        print(f"\nstopped; nothing is written. The runs are in {folder}", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, handler)
    about = {
        "command": shlex.join(["python", "-m", MODULE, *given]),
        **environment(),
        "threads": 1,
        "lightning": version("lightning"),
        "minutes": (time.perf_counter() - start) / 60,
        "json": "kills.json",
    }
    kills = [asdict(record) for record in records]
    numbers = {"about": about, "steps": options.steps, "seed": options.seed, "kills": kills}
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(options.output / "kills.json", numbers, indent=None)
    page = options.output / "kills.md"
    page.write_text(page_text(numbers), "utf-8")
    lost = sum(record.outcome != "exact" for record in records)
    print(f"{len(records)} kills, {lost} losses. Written to {page}")
    if lost:
        print(f"the runs that lost something are in {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
