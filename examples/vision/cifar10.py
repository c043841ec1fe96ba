"""CIFAR-10: 50,000 training and 10,000 test images of 32 x 32 pixels in ten classes.

Read through Hugging Face's `datasets`, from the hub or from parquet files of the same schema
(columns `img`, an encoded image, and `label`), and decoded once into one tensor. To look at the
options:

    python -m lightning_root fit --data.help examples.vision.cifar10.CIFAR10
"""

from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor

from examples.vision.images import ImageData, Images, balanced_rows

HUB = "uoft-cs/cifar10"


def decode(rows: list[dict[str, Any]]) -> Tensor:
    """Decode images, each {"bytes": an image file's, "path": not read}: (images, 3, size, size).

    Returns:
        uint8.

    Raises:
        ModuleNotFoundError: If Pillow is not installed.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'decoding images needs Pillow; `pip install "lightning-root[examples]"`'
        ) from error
    pixels = [np.asarray(Image.open(BytesIO(row["bytes"])).convert("RGB")) for row in rows]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()


class CIFAR10(ImageData):
    """CIFAR-10 in memory: all test images for validation, random crops and flips for training.

    Reading and decoding all images takes ten seconds.

    Args:
        train_files: Parquet files with the training images, a path or a glob; `null` reads the
            hub's `uoft-cs/cifar10`.
        test_files: The same with the test images; given together or not at all.
        **options: Those of `ImageData`.

    Raises:
        ValueError: If only one of `train_files` and `test_files` is given, or an option is out of
            range.
    """

    def __init__(
        self, train_files: str | None = None, test_files: str | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        if (train_files is None) != (test_files is None):
            raise ValueError(
                "`train_files` and `test_files` must be given together, got "
                f"{train_files} and {test_files}; without both the hub's {HUB} is read"
            )
        self.train_files, self.test_files = train_files, test_files

    def prepare_data(self) -> None:
        self._dataset("train")  # one process of a machine fills the cache, the others read it
        self._dataset("test")

    def read(self, training: bool, size: int | None, *key: object) -> Images:
        dataset = self._dataset("train" if training else "test")
        labels = torch.tensor(dataset.data.column("label").to_numpy())
        if size is not None:
            rows = balanced_rows(labels, size, *key)
            dataset, labels = dataset.select(rows.tolist()), labels[rows]
        return Images(decode(dataset["img"][:]), labels)

    def _dataset(self, split: str) -> Any:
        try:
            import datasets
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                'CIFAR-10 needs `datasets`; `pip install "lightning-root[examples]"`'
            ) from error
        files = self.train_files if split == "train" else self.test_files
        if files is None:
            dataset = datasets.load_dataset(HUB, split=split)
        else:
            dataset = datasets.load_dataset("parquet", data_files={split: files}, split=split)
        return dataset.cast_column("img", datasets.Image(decode=False))
