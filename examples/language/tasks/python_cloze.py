"""Questions of how Python goes on: names, brackets, keywords and indentation, in text of our own.

    python -m examples.language.tasks.python_cloze    # writes python_cloze.jsonl again

Each of the five kinds asks for something that no frequency of words gives away: which name was
given above, which bracket is open, how deep a line lies. Nothing is taken from anybody's files.
"""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import DatasetDict

FILE = Path(__file__).with_suffix(".jsonl")
QUESTIONS = 100

NAMES = (
    *("width", "height", "path", "name", "key", "value", "count", "limit", "index", "total"),
    *("buffer", "offset", "message", "header", "result", "option", "target", "source"),
)
FUNCTIONS = ("read", "write", "parse", "find", "join", "split", "update", "copy", "encode", "check")
CLASSES = ("Reader", "Writer", "Parser", "Table", "Queue", "Record", "Cursor", "Handler", "Stream")

Question = tuple[str, Sequence[str]]
"""What stands there, and how it may go on; the first is right."""


def argument(draw: random.Random) -> Question:
    """The argument that has not been used yet."""
    first, *others = draw.sample(NAMES, 5)
    head = f"def {draw.choice(FUNCTIONS)}({first}, {others[0]}):\n"
    text = f'    """Return the sum of {first} and {others[0]}."""\n    return {first} +'
    return head + text, [f" {name}\n" for name in others]


def attribute(draw: random.Random) -> Question:
    """The argument of the attribute's name."""
    first, *others = draw.sample(NAMES, 5)
    head = f"class {draw.choice(CLASSES)}:\n    def __init__(self, {first}, {others[0]}):\n"
    text = f"        self.{first} = {first}\n        self.{others[0]} ="
    return head + text, [f" {name}\n" for name in others]


def bracket(draw: random.Random) -> Question:
    """The brackets that are open, from the inside out."""
    result, table, key = draw.sample(NAMES, 3)
    text = f"    {result} = {draw.choice(FUNCTIONS)}({table}[{key}"
    return text, ["])\n", ")]\n", "))\n", "]]\n"]


def keyword(draw: random.Random) -> Question:
    """What follows upon `try`."""
    result, table, key = draw.sample(NAMES, 3)
    text = f"    try:\n        {result} = {table}[{key}]"
    words = ("except", "import", "lambda", "return")
    return text, [f"\n    {word} KeyError:\n" for word in words]


def indentation(draw: random.Random) -> Question:
    """The body of a loop, one level deeper than its head."""
    item, items = draw.sample(NAMES, 2)
    call = f"{draw.choice(FUNCTIONS)}({item})\n"
    return f"    for {item} in {items}:", [f"\n{' ' * depth}{call}" for depth in (8, 0, 4, 6)]


KINDS: tuple[Callable[[random.Random], Question], ...]
KINDS = (argument, attribute, bracket, keyword, indentation)


def make_questions() -> list[dict[str, Any]]:
    """All questions, the kinds in turn, the same at every call."""
    draw, rows = random.Random(0), []
    for number in range(QUESTIONS):
        kind = KINDS[number % len(KINDS)]
        context, choices = kind(draw)
        shuffled = draw.sample(choices, len(choices))
        answer = shuffled.index(choices[0])
        row = {"kind": kind.__name__, "context": context, "choices": shuffled, "answer": answer}
        rows.append(row)
    return rows


def load(**options: object) -> "DatasetDict":
    """The shipped questions, as the harness asks for them.

    Args:
        options: What the harness tells every such function, of the model and the task.
    """
    from datasets import Dataset, DatasetDict

    del options
    rows = [json.loads(line) for line in FILE.read_text("utf-8").splitlines()]
    return DatasetDict(test=Dataset.from_list(rows))


if __name__ == "__main__":
    FILE.write_text("".join(json.dumps(row) + "\n" for row in make_questions()), "utf-8")
