"""Documents from the Hub or from local files, as one endless stream per rank that can be saved."""

import hashlib
import random
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

from examples.stdlib_text import find_files

if TYPE_CHECKING:
    from datasets import IterableDataset

LOCAL_FORMATS = {"text", "json", "parquet", "csv"}  # of files, instead of a repository
GROUP = 64  # documents read and tokenized at a time


def list_files(dataset: str, patterns: str | Sequence[str] | None) -> list[str] | None:
    """Return the local files that `patterns` name, sorted; None for a dataset of the Hub.

    Args:
        dataset: A format of local files, or a repository on the Hub, whose files stay patterns.
        patterns: Paths, `*`, `**`, or URLs. None is the source files of Python's own standard
            library where `dataset` is "text".

    Raises:
        FileNotFoundError: If a pattern matches nothing.
        ValueError: If local files are asked for and none are named.
    """
    given = [patterns] if isinstance(patterns, str) else patterns
    if dataset not in LOCAL_FORMATS:
        return list(given) if given is not None else None
    if given is None:
        if dataset != "text":
            raise ValueError(f"`data_files` must name the {dataset} files to read, got null")
        root = Path(sysconfig.get_paths()["stdlib"])
        return [str(root / name) for name in find_files(root, "*.py")]
    found: list[str] = []
    for pattern in given:
        matches = [pattern] if "://" in pattern else sorted(glob(pattern, recursive=True))
        if not matches:
            raise FileNotFoundError(f"`data_files`: nothing matches {pattern!r}")
        found += matches
    return found


def in_random_order(files: list[str] | None, seed: int) -> list[str] | None:
    """Return the files in an order that depends on their number and the seed alone."""
    return None if files is None else random.Random(seed).sample(files, len(files))


def open_documents(
    dataset: str,
    name: str | None,
    files: list[str] | None,
    split: str,
    column: str,
    options: Mapping[str, Any],
) -> "IterableDataset":
    """Open a dataset in streaming mode, with the column that holds the text and no other.

    Args:
        dataset: Repository on the Hub, or a format of local files.
        name: Which of the repository's configurations.
        files: Of the repository, or local ones.
        split: Which of the dataset's splits.
        column: Which column holds the text.
        options: Further arguments of `datasets.load_dataset`, or of the format's reader.

    Raises:
        ModuleNotFoundError: If datasets is not installed.
        ValueError: If there is no such column.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "`TextStream` needs datasets: pip install 'lightning-root[examples]'"
        ) from error
    if dataset in LOCAL_FORMATS:  # not through `load_dataset`, which tells the Hub of each call
        opened = getattr(datasets.IterableDataset, f"from_{dataset}")(files, **options)
    else:
        opened = datasets.load_dataset(
            dataset, name, data_files=files, split=split, streaming=True, **options
        )
    columns = opened.column_names
    if columns is not None and column not in columns:
        raise ValueError(f"`column` must be one of {columns}, got {column!r}")
    return opened.select_columns([column])


def digest(text: str) -> bytes:
    """Return what tells a held-out document when it comes by in training."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class Documents(Iterator[list[str]]):
    """Endless groups of one rank's documents, pass after pass.

    Ranks share out the dataset's files if these can be shared out evenly, and else its documents
    one by one. Files come in a new order in each pass, where `datasets` has one for it.

    Documents that are held out are left out, wherever they lie and however often they occur.

    Args:
        dataset: With the column `column`.
        column: Which column holds the text.
        rank: Which share is ours.
        world_size: Number of shares.
        held_out: Digests of the documents to leave out.
    """

    def __init__(
        self,
        dataset: "IterableDataset",
        column: str,
        rank: int,
        world_size: int,
        held_out: frozenset[bytes] = frozenset(),
    ) -> None:
        from datasets.distributed import split_dataset_by_node

        self.dataset = split_dataset_by_node(dataset, rank=rank, world_size=world_size)
        self.column, self.rank, self.held_out = column, rank, held_out
        self.number_of_pass = 0
        self.position: dict[str, Any] | None = None  # after the latest group; None: at the start
        self._groups: Iterator[dict[str, list[str]]] | None = None
        self._any = False  # whether this pass has had a document

    def __next__(self) -> list[str]:
        """Return the next group; it is empty if all of it is held out.

        Raises:
            ValueError: If there is nothing to train on.
        """
        while True:
            if self._groups is None:
                self.dataset.set_epoch(self.number_of_pass)
                self.dataset.load_state_dict(self.position)
                self._groups = self.dataset.iter(GROUP)
            group = next(self._groups, None)
            if group is not None:
                self.position = self.dataset.state_dict()
                texts = [text for text in group[self.column] if digest(text) not in self.held_out]
                self._any |= bool(texts)
                return texts
            if not self._any:
                raise ValueError(
                    f"no document is left for rank {self.rank}: hold out fewer "
                    "(`held_out_documents`) or give more data than there are devices"
                )
            self.number_of_pass += 1
            self.position, self._groups, self._any = None, None, False

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the latest group."""
        return {"pass": self.number_of_pass, "position": self.position}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.number_of_pass, self.position = state_dict["pass"], state_dict["position"]
        self._groups, self._any = None, self.position is not None
