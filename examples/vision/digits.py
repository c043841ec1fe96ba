"""scikit-learn's digits: 1797 grey images of 8 x 8 pixels, on every machine that has the package.

No download and less than a minute of training on a CPU. To look at the options:

    python -m lightning_root fit --data.help examples.vision.digits.Digits
"""

from typing import Any

import torch
from torch import Tensor

from examples.vision.images import ImageData, Images, balanced_rows

HELD_OUT = 360
"""Images for validation, as many of each digit; the same ones for every run."""


def digits() -> tuple[Tensor, Tensor]:
    """All images, (1797, 1, 8, 8) float64 of 17 levels of grey from 0 to 16, and their labels.

    Raises:
        ModuleNotFoundError: If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'the digits need scikit-learn; `pip install "lightning-root[examples]"`'
        ) from error
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images).view(-1, 1, 8, 8), torch.tensor(labels)


class Digits(ImageData):
    """Handwritten digits in memory; every fifth is held out. Batches are as `ImageData` says.

    Args:
        padding: Training images are padded by so many black pixels on each side and cropped to
            their size at a random place; 0 for none.
        flip: Whether training images are flipped left to right, which digits are not.
        **options: The others of `ImageData`.
    """

    def __init__(self, padding: int = 1, flip: bool = False, **options: Any) -> None:
        super().__init__(padding=padding, flip=flip, **options)

    def read(self, training: bool, size: int | None, *key: object) -> Images:
        grey, labels = digits()
        pixels = (grey * 255 / 16).round().to(torch.uint8)  # spread over the range of a byte
        held_out = torch.zeros(len(labels), dtype=torch.bool)
        held_out[balanced_rows(labels, HELD_OUT, "digits")] = True
        chosen = ~held_out if training else held_out
        read = Images(pixels[chosen], labels[chosen])
        if size is None:
            return read
        rows = balanced_rows(read.labels, size, *key)
        return Images(read.pixels[rows], read.labels[rows])
