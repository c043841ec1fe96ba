import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from examples.vision.cifar10 import CIFAR10
from examples.vision.digits import Digits
from examples.vision.images import (
    FixedBatches,
    Images,
    RandomBatches,
    balanced_rows,
    crop,
    with_wrong_labels,
)
from tests.examples.images import write_parquet


def numbered(count=23, size=4):
    """Images that are 1, 2, 3, ... all over, so that what becomes of each can be told."""
    values = torch.arange(1, count + 1, dtype=torch.uint8)
    return Images(values[:, None, None, None].expand(-1, 1, size, size).clone(), values.long() % 5)


def random_batches(**changes):
    defaults = dict(images=numbered(), batch_size=4, padding=1, flip=True, seed=0)
    return RandomBatches(**(defaults | dict(rank=0, world_size=1) | changes))


def numbers(batch):
    return batch[0].amax((1, 2, 3)).tolist()


def test_a_subset_has_as_many_of_each_class():
    labels = torch.randint(3, (300,), generator=torch.Generator().manual_seed(0))
    for size in (1, 30, 32, 200):
        rows = balanced_rows(labels, size, "key")
        count = labels[rows].bincount(minlength=3)
        assert len(rows.unique()) == size == count.sum()
        assert count.max() - count.min() <= 1
    assert torch.equal(balanced_rows(labels, 30, "key"), balanced_rows(labels, 30, "key"))
    assert not torch.equal(balanced_rows(labels, 30, "key"), balanced_rows(labels, 30, "other"))


@pytest.mark.parametrize("size", [0, 16])
def test_a_subset_that_cannot_be_balanced_is_refused(size):
    with pytest.raises(ValueError, match=f"must have 1 to 15 images, got {size}; the rarest of 3"):
        balanced_rows(torch.tensor([0] * 9 + [1] * 5 + [2] * 9), size)


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_label_noise_replaces_its_share_by_other_classes_equally(share):
    labels = torch.arange(10).repeat(900)
    noisy = with_wrong_labels(labels, share, 10, 0)
    assert (noisy != labels).sum() == round(share * 9000)
    assert torch.equal(noisy, with_wrong_labels(labels, share, 10, 0))
    shifts = ((noisy - labels) % 10)[noisy != labels].bincount(minlength=10)[1:]
    expected = share * 1000  # of each of nine; five standard deviations of a binomial
    assert (shifts - expected).abs().max() <= 5 * math.sqrt(expected)


def test_crop_is_a_window_of_the_padded_image():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (9, 3, 6, 6), generator=generator).to(torch.uint8)
    places = torch.cartesian_prod(torch.tensor([0, 2, 4]), torch.tensor([0, 1, 4]))
    for image, (top, left), cropped in zip(pixels, places, crop(pixels, places, 2), strict=True):
        padded = np.pad(image.numpy(), ((0, 0), (2, 2), (2, 2)))
        expected = padded[:, top : top + 6, left : left + 6]
        assert np.array_equal(cropped.numpy(), expected)


def test_every_image_comes_once_a_pass_with_its_label():
    loader = random_batches()
    first, second = list(loader), list(loader)
    for batches in (first, second):
        seen = [number for batch in batches for number in numbers(batch)]
        assert len(seen) == len(set(seen)) == 20  # three of 23 do not fill a batch
    assert list(map(numbers, first)) != list(map(numbers, second))
    for pixels, labels in first:
        assert torch.equal(pixels.amax((1, 2, 3)).long() % 5, labels)


def test_half_of_the_images_are_flipped_and_crops_are_uniform():
    pixels = torch.zeros(2000, 1, 3, 3, dtype=torch.uint8)
    pixels[:, :, 1, 1:] = torch.tensor([1, 2], dtype=torch.uint8)  # left to right
    images = Images(pixels, torch.zeros(2000, dtype=torch.int64))
    flipped = random_batches(images=images, batch_size=2000, padding=0).batch(0)[0]
    # binomial(2000, 1 / 2): standard deviation 22; five of them
    assert abs(int((flipped[:, 0, 1, 0] == 2).sum()) - 1000) < 112
    pixels = torch.zeros(2000, 1, 3, 3, dtype=torch.uint8)
    pixels[:, :, 1, 1] = 1
    images = Images(pixels, torch.zeros(2000, dtype=torch.int64))
    moved = random_batches(images=images, batch_size=2000, flip=False).batch(0)[0]
    count = moved.sum((0, 1))  # where the middle went: nine places, 222 each, deviation 14
    assert (count - 2000 / 9).abs().max() < 70


def test_without_augmentation_images_are_as_they_were():
    loader = random_batches(padding=0, flip=False)
    images = loader.images
    for index in range(7):
        rows = loader.rows(index)
        assert torch.equal(loader.batch(index)[0], images.pixels[rows])


def test_batches_depend_on_seed_and_index_alone():
    first, again, other = random_batches(), random_batches(), random_batches(seed=1)
    for index in (12, 3, 4, 12):
        for ours, theirs in zip(first.batch(index), again.batch(index), strict=True):
            assert torch.equal(ours, theirs)
    assert numbers(first.batch(3)) != numbers(other.batch(3))


def test_ranks_share_out_one_global_batch():
    alone = random_batches(batch_size=8)
    ranks = [random_batches(rank=rank, world_size=2) for rank in range(2)]
    assert len(alone) == len(ranks[0]) == len(ranks[1]) == 2
    for index in range(5):
        pixels, labels = alone.batch(index)
        for rank, loader in enumerate(ranks):
            ours, theirs = loader.batch(index)
            assert torch.equal(ours, pixels[rank::2]) and torch.equal(theirs, labels[rank::2])


def test_state_continues_with_the_next_batch():
    uninterrupted, first, second = (random_batches() for _ in range(3))
    expected = list(uninterrupted)[3]
    iterator = iter(first)
    for _ in range(3):
        next(iterator)
    second.load_state_dict(first.state_dict())
    assert torch.equal(next(iter(second))[0], expected[0])


def test_too_large_a_batch_is_refused():
    with pytest.raises(ValueError, match=r"`batch_size` times 2 ranks must be in 1 to 23.*got 24"):
        random_batches(batch_size=12, world_size=2)


def test_validation_sees_every_image_once_in_order():
    images = numbered()
    assert [n for b in FixedBatches(images, 4, 0, 1) for n in numbers(b)] == [*range(1, 24)]
    ranks = [FixedBatches(images, 4, rank, 2) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1]) == 3
    seen = [n for loader in ranks for batch in loader for n in numbers(batch)]
    assert sorted(seen) == [*range(1, 23)]


@pytest.fixture
def parquet(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    pixels = [write_parquet(tmp_path / f"{name}.parquet", seed=i) for i, name in enumerate("ab")]
    return tmp_path, pixels


def test_reads_the_pixels_that_were_written(parquet):
    folder, (training, validation) = parquet
    data = CIFAR10(f"{folder}/a*.parquet", f"{folder}/b.parquet", batch_size=8)
    data.setup("fit")
    for images, expected in [(data.training, training), (data.validation, validation)]:
        assert np.array_equal(images.pixels.permute(0, 2, 3, 1).numpy(), expected)
        assert torch.equal(images.labels, torch.arange(40) % 10)
    assert len(data.train_dataloader()) == 5


def test_options_choose_images_and_labels_by_seed(parquet):
    folder, (training, _) = parquet
    files = {"train_files": f"{folder}/a.parquet", "test_files": f"{folder}/b.parquet"}

    def read(seed):
        data = CIFAR10(
            **files, batch_size=8, train_size=20, validation_size=10, label_noise=0.5, seed=seed
        )
        data.setup("fit")
        return data

    data, again, other = read(0), read(0), read(1)
    rows = [
        next(i for i, image in enumerate(training) if np.array_equal(image, pixels))
        for pixels in data.training.pixels.permute(0, 2, 3, 1).numpy()
    ]
    clean = torch.tensor(rows) % 10
    assert clean.bincount().tolist() == [2] * 10
    assert (data.training.labels != clean).sum() == data.wrong == 10
    assert torch.equal(data.training.labels, again.training.labels)
    assert torch.equal(data.training.pixels, again.training.pixels)
    assert not torch.equal(data.training.pixels, other.training.pixels)
    assert torch.equal(data.validation.pixels, other.validation.pixels)
    assert data.validation.labels.bincount().tolist() == [1] * 10
    assert data.summary_lines()[0].startswith("images: 20 for training, 10 of them with a wrong")


def test_one_file_without_the_other_is_refused():
    with pytest.raises(ValueError, match="`train_files` and `test_files` must be given together"):
        CIFAR10(train_files="train.parquet")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_noise": 1.5}, r"`label_noise` must be in \[0, 1\], got 1.5"),
        ({"padding": -1}, "`padding` must be >= 0, got -1"),
    ],
)
def test_wrong_options_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        Digits(**options)


def test_digits_are_scikit_learns_and_every_fifth_is_held_out():
    datasets = pytest.importorskip("sklearn.datasets")
    data = Digits(batch_size=8)
    data.setup("fit")
    assert data.validation.labels.bincount().tolist() == [36] * 10
    both = torch.cat([data.training.pixels, data.validation.pixels])
    ours = (both.flatten(1).double() * 16 / 255).round().tolist()
    assert sorted(ours) == sorted(datasets.load_digits().data.tolist())


def test_each_rank_gets_its_share_of_the_digits():
    pytest.importorskip("sklearn")
    data = Digits(batch_size=8)
    data.setup("fit")
    data.trainer = SimpleNamespace(distributed_sampler_kwargs={"num_replicas": 4, "rank": 3})
    loader = data.train_dataloader()
    assert (loader.rank, loader.world_size, len(loader)) == (3, 4, 1437 // 32)
    assert sum(len(labels) for _, labels in data.val_dataloader()) == 90
