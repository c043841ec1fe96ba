"""Zero-shot accuracies of an exported language model, by the lm-evaluation-harness.

    python -m examples.language.zero_shot FOLDER                    # the nine tasks of the paper
    python -m examples.language.zero_shot FOLDER --tasks local      # needs no network
    python -m examples.language.zero_shot FOLDER --tasks sciq piqa --limit 100 --device cuda

FOLDER is what `python -m examples.language.export` has written. The tasks of the paper
(arXiv:2511.20626) are HellaSwag, BoolQ, PIQA, ARC-easy, ARC-challenge, OBQA, SciQ, WinoGrande and
WSC, the last of them as the original challenge of 273 questions (`wsc273`; SuperGLUE's is `wsc`).
`local` asks how lines of Python go on. Any name that the harness has for multiple choice will do.

A task's score is `acc_norm` where the harness has it for the task, else `acc`. `acc` takes the
most likely choice, which favours short ones; `acc_norm` takes the most likely per character. BoolQ,
WinoGrande and WSC offer choices of about equal length and have `acc` alone. The average is the
plain mean of the tasks' scores, whatever their sizes. Which of the two metrics the paper's numbers
are, task by task, is not settled here, so the table shows both.

Needs `pip install 'lightning-root[eval]'`, and a network for data that is not in the cache yet.
"""

import argparse
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from examples.benchmarks.page import environment
from examples.language.export import CONFIG
from lightning_root._files import read_json, write_json
from lightning_root.cli.output import text_table, wrapped
from lightning_root.cli.parser import CommandParser, run_command

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

TASKS = Path(__file__).with_name("tasks")
PAPER = (
    *("hellaswag", "boolq", "piqa", "arc_easy", "arc_challenge"),
    *("openbookqa", "sciq", "winogrande", "wsc273"),
)
LOCAL = ("python_cloze",)
SUITES = {"paper": PAPER, "local": LOCAL}


def parser() -> CommandParser:
    """The command line."""
    parser = CommandParser(prog="python -m examples.language.zero_shot", description=__doc__)
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="an exported model")
    tasks = "paper, local, or names of the harness's (default: paper)"
    add("--tasks", nargs="+", default=["paper"], metavar="NAME", help=tasks)
    add("--limit", type=int, metavar="N", help="only the first N questions of each, for a trial")
    add("--batch-size", type=int, default=16, metavar="N", help="choices at a time (default: 16)")
    add("--device", metavar="DEVICE", help="cpu, cuda, npu (default: a GPU if there is one)")
    add("--output", type=Path, metavar="FILE", help="where to write all numbers, as JSON")
    parser.set_defaults(run=_run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate; 0 if all went well."""
    return run_command(parser(), sys.argv[1:] if arguments is None else arguments)


def _run(options: argparse.Namespace) -> int:
    if options.output and not options.output.absolute().parent.is_dir():
        raise ValueError(f"the folder of `--output` does not exist: '{options.output.parent}'")
    names = [name for given in options.tasks for name in SUITES.get(given, [given])]
    # It warns of how tasks are written, which is not the user's affair.
    logging.getLogger("lm_eval.api.task").setLevel(logging.ERROR)
    found = evaluate(options.folder, names, options.limit, options.batch_size, options.device)
    results = {
        "model": str(options.folder),
        "limit": options.limit,
        **summary(found),
        **environment(),
        **{package: version(package) for package in ("lm_eval", "transformers", "datasets")},
    }
    print(text_table(*table(results)))
    print()
    print(wrapped("score: acc_norm where a task has it, else acc; the average is the plain mean"))
    if options.limit is not None:
        print(f"the first {options.limit} questions of each task: no result to compare with others")
    if options.output:
        write_json(options.output, results)
        print(f"all numbers: {options.output}")
    return 0


def evaluate(
    folder: Path,
    names: Iterable[str],
    limit: int | None = None,
    batch_size: int = 16,
    device: str | None = None,
    *,
    log_samples: bool = False,
) -> dict[str, Any]:
    """Let the harness ask a model all questions of some tasks, without examples.

    Args:
        folder: An exported model.
        names: The harness's names of tasks, or of groups of them, and those in `tasks/`.
        limit: Only the first so many questions of each task.
        batch_size: Choices at a time.
        device: As torch calls it; None is a GPU if there is one.
        log_samples: Also return each question with the log-likelihoods of its choices.

    Returns:
        What `lm_eval.evaluate` returns.

    Raises:
        ConnectionError: If a task's data is not in the cache and cannot be fetched.
        ModuleNotFoundError: If the harness is not installed.
        ValueError: If there is no model in the folder, no such task, or a number is out of range.
    """
    for argument, value in {"limit": limit, "batch-size": batch_size}.items():
        if value is not None and value < 1:
            raise ValueError(f"`--{argument}` must be at least 1, got {value}")
    special = special_tokens(folder)
    tasks = load_tasks(dict.fromkeys(names))
    from lm_eval import evaluate as answer
    from lm_eval.models.huggingface import HFLM

    for task in tasks.values():
        task.set_config("num_fewshot", 0)
    device = device or str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    model = HFLM(pretrained=str(folder), device=device, batch_size=batch_size, **special)
    found: dict[str, Any] = answer(model, {"tasks": tasks}, limit=limit, log_samples=log_samples)
    return found


def special_tokens(folder: Path) -> dict[str, Any]:
    """What the harness is to put before a text: nothing that the model has never seen.

    The models here have seen no token that begins a text, only the one that ends the text before;
    tokenizers of the Hub may add one all the same.

    Raises:
        ValueError: If there is no model in the folder.
    """
    if not (folder / CONFIG).is_file():
        raise ValueError(
            f"'{folder}' holds no exported model; `python -m examples.language.export CHECKPOINT "
            "FOLDER` writes one"
        )
    config = read_json(folder / CONFIG)
    if config.get("bos_token_id") is not None:  # a model of somebody else's
        return {}
    return {"add_bos_token": False, "prefix_token_id": config["eos_token_id"]}


def load_tasks(names: Iterable[str]) -> dict[str, "Task"]:
    """Load tasks with their data, by name, before any work is done.

    Raises:
        ConnectionError: If a task's data is not in the cache and cannot be fetched.
        ModuleNotFoundError: If the harness is not installed.
        ValueError: If there is no such task, or it is not answered by choosing.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the evaluation needs {error.name}: pip install 'lightning-root[eval]'"
        ) from error
    # The harness reads its 14,000 YAML files for its list: only if one of them is wanted.
    manager = TaskManager(include_path=str(TASKS), include_defaults=not set(names) <= {*LOCAL})
    return {key: task for name in names for key, task in load_task(manager, name).items()}


def load_task(manager: "TaskManager", name: str) -> dict[str, "Task"]:
    """Load a task, or all tasks of a group; see `load_tasks`."""
    if name not in manager.all_tasks:
        near = get_close_matches(name, [*SUITES, *manager.all_tasks], n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "`lm_eval ls tasks` lists all"
        raise ValueError(f"the harness has no task {name!r}; {hint}")
    try:
        tasks: dict[str, Task] = manager.load([name])["tasks"]
    except (ConnectionError, FileNotFoundError) as error:  # `datasets` raises either
        raise ConnectionError(
            f"the data of {name!r} is not in the cache and could not be fetched: {error}\nFetch it "
            "where there is a network, into a folder `HF_HOME` that is seen here too; `--tasks "
            "local` needs none"
        ) from error
    for key, task in tasks.items():
        if task.OUTPUT_TYPE != "multiple_choice" or "acc" not in task.aggregation():
            raise ValueError(
                f"{key!r} has no accuracy of choices; for other metrics run `lm_eval "
                f"--model hf --tasks {name}` itself"
            )
    return tasks


def summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """Scores by task and their plain mean, as shares of one.

    Args:
        found: What `evaluate` has returned.

    Returns:
        `tasks`, by name: `questions`, `version`, `metric` (which one is the score), `score`,
        `stderr` (of the score), `acc`, and `acc_norm` where the task has it; and `average`.
    """
    tasks = {}
    for name, count in found["n-samples"].items():
        row = found["results"][name]
        metrics = {key: row[f"{key},none"] for key in ("acc", "acc_norm") if f"{key},none" in row}
        metric = max(metrics)  # by name: acc_norm if it is there
        tasks[name] = {
            "questions": count["effective"],
            "version": found["versions"].get(name),
            "metric": metric,
            "score": metrics[metric],
            "stderr": row[f"{metric}_stderr,none"] if count["effective"] > 1 else None,
            **metrics,
        }
    scores = [task["score"] for task in tasks.values()]
    return {"tasks": tasks, "average": sum(scores) / len(scores)}


def table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: each task in per cent, and the average."""
    rows = []
    for name, task in results["tasks"].items():
        norm = f"{task['acc_norm']:.2%}" if "acc_norm" in task else "-"
        error = "" if task["stderr"] is None else f" ± {task['stderr']:.2%}"
        score = f"{task['score']:.2%}{error}"
        rows.append([name, f"{task['questions']:,}", f"{task['acc']:.2%}", norm, score])
    accuracies = [task["acc"] for task in results["tasks"].values()]
    mean = f"{sum(accuracies) / len(accuracies):.2%}"
    rows.append(["average", "", mean, "", f"{results['average']:.2%}"])
    return ["task", "questions", "acc", "acc_norm", "score"], rows


if __name__ == "__main__":
    sys.exit(main())
