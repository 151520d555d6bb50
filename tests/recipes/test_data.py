"""What the recipes read: counts, order, errors."""

import io
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from brevitas_multiquant import MultiQuantError
from brevitas_multiquant.recipes.data import augment, sources
from brevitas_multiquant.recipes.data import batches as data
from brevitas_multiquant.recipes.data.batches import Shard
from brevitas_multiquant.recipes.errors import DatasetError, MissingFileError, UnknownDatasetError
from brevitas_multiquant.recipes.options.data import DataOptions

# timm's tar reader never closes its file.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

OPTIONS = DataOptions(
    dataset="digits",
    data_dir=None,
    dataset_download=False,
    train_split="train",
    val_split="validation",
    img_size=32,
    mean=None,
    std=None,
    hflip=None,
    crop_padding=None,
    num_classes=None,
    subset=None,
    subset_seed=0,
    cache_limit_mb=64,
    batch_size=16,
    workers=0,
    seed=1,
)


def write_tar(path, names, size=32):
    """A tar of class folders with one random image a name."""
    random = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for name in names:
            pixels = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
            content = io.BytesIO()
            Image.fromarray(pixels).save(content, "PNG")
            info = tarfile.TarInfo(name)
            info.size = content.tell()
            content.seek(0)
            tar.addfile(info, content)


def epoch_of(batches, epoch):
    """All batches of an epoch, joined."""
    images, labels = zip(*batches.epoch(epoch), strict=True)
    return torch.cat(images), torch.cat(labels)


def test_digits_are_split_once_and_evenly():
    train, val = (sources.load_digit_images(part, 32) for part in (True, False))
    assert (len(train.labels), len(val.labels)) == (1437, 360)
    assert train.pixels.shape == (1437, 3, 32, 32)
    assert train.pixels.dtype == torch.uint8
    shares = train.labels.bincount() / 1437 - val.labels.bincount() / 360
    assert shares.abs().max() < 0.003
    assert torch.equal(val.pixels, sources.load_digit_images(False, 32).pixels)


def test_digits_are_normalised():
    pixels = sources.load_digit_images(True, 32).pixels
    images = augment.normalise(pixels, *OPTIONS.normalisation)
    assert abs(images.mean()) < 1e-3
    assert abs(images.std() - 1) < 1e-3


def test_order_depends_on_seed_and_epoch_only():
    batches = data.train_batches(OPTIONS, Shard())
    images, labels = epoch_of(batches, 3)
    assert len(labels) == len(batches) * 16 == 1424
    again = epoch_of(data.train_batches(OPTIONS, Shard()), 3)
    assert torch.equal(again[0], images)
    assert torch.equal(again[1], labels)
    assert not torch.equal(epoch_of(batches, 4)[1], labels)
    other = data.train_batches(replace(OPTIONS, seed=2), Shard())
    assert not torch.equal(epoch_of(other, 3)[1], labels)


def test_two_processes_see_the_batches_of_one():
    one = data.train_batches(replace(OPTIONS, batch_size=32), Shard())
    two = [data.train_batches(OPTIONS, Shard(rank, 2)) for rank in (0, 1)]
    assert len(one) == len(two[0]) == len(two[1])
    for whole, first, second in zip(*(batches.epoch(0) for batches in (one, *two)), strict=True):
        assert torch.equal(whole[0], torch.cat([first[0], second[0]]))
        assert torch.equal(whole[1], torch.cat([first[1], second[1]]))


@pytest.mark.parametrize("world", [1, 2, 7])
def test_evaluation_sees_each_image_once(world):
    shards = [data.eval_batches(OPTIONS, Shard(rank, world)) for rank in range(world)]
    labels = [target for shard in shards for _, target in shard]
    assert sum(len(shard) for shard in shards) == len(labels)
    expected = sources.load_digit_images(False, 32).labels
    assert torch.equal(torch.cat(labels).bincount(), expected.bincount())


def test_digits_are_never_mirrored_unless_asked():
    assert OPTIONS.flip_probability == 0
    assert replace(OPTIONS, hflip=0.3).flip_probability == 0.3
    assert replace(OPTIONS, dataset="cifar10").flip_probability == 0.5


def test_subset_is_the_start_of_one_permutation():
    small = data.train_batches(replace(OPTIONS, subset=20), Shard()).images
    large = data.train_batches(replace(OPTIONS, subset=30, seed=9), Shard()).images
    assert len(small.labels) == 20
    assert torch.equal(small.pixels, large.pixels[:20])
    assert len(data.eval_batches(replace(OPTIONS, subset=20), Shard()).images.labels) == 360


def test_reads_tars_and_resizes(tmp_path):
    write_tar(tmp_path / "train.tar", [f"{c}/{i}.png" for c in "ab" for i in range(4)], size=40)
    write_tar(tmp_path / "val.tar", ["a/0.png", "b/0.png"])
    options = replace(OPTIONS, dataset="", data_dir=str(tmp_path), batch_size=4)
    train = data.train_batches(options, Shard())
    assert train.num_classes == 2
    assert train.images.pixels.shape == (8, 3, 32, 32)
    assert data.eval_batches(options, Shard()).images.labels.tolist() == [0, 1]


def test_decoding_keeps_pixels_that_need_no_resizing(tmp_path):
    write_tar(tmp_path / "val.tar", ["a/0.png"])
    options = replace(OPTIONS, dataset="", data_dir=str(tmp_path))
    decoded = data.eval_batches(options, Shard()).images.pixels[0]
    expected = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert torch.equal(decoded.permute(1, 2, 0), torch.from_numpy(expected))


@pytest.fixture
def files(tmp_path):
    """Options that read eight images from a tar, too large for the memory they may take."""
    write_tar(tmp_path / "train.tar", [f"{c}/{i}.png" for c in "ab" for i in range(4)])
    write_tar(tmp_path / "val.tar", [f"{c}/{i}.png" for c in "ab" for i in range(4)])
    options = replace(OPTIONS, dataset="", data_dir=str(tmp_path), img_size=256, batch_size=4)
    return replace(options, cache_limit_mb=1)


class TestImagesBeyondTheLimit:
    def test_are_read_from_their_files(self, files):
        batches = data.train_batches(files, Shard())
        assert isinstance(batches, data.FileTrainBatches)
        assert (len(batches), batches.num_classes) == (2, 2)
        images, labels = epoch_of(batches, 0)
        assert images.shape == (8, 3, 256, 256)
        assert images.dtype == torch.float32
        assert sorted(labels.tolist()) == [0] * 4 + [1] * 4
        with pytest.raises(DatasetError, match="--cache-limit-mb"):
            data.train_batches(replace(files, subset=6), Shard())

    def test_depend_on_seed_and_epoch_only_whoever_reads_them(self, files):
        batches = data.train_batches(files, Shard())
        first = epoch_of(batches, 1)
        other = epoch_of(batches, 2)
        again = epoch_of(data.train_batches(replace(files, workers=2), Shard()), 1)
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])
        assert not torch.equal(first[0], other[0])
        (last,) = batches.epoch(1, start=1)
        assert torch.equal(last[0], first[0][4:])

    def test_are_shared_between_processes(self, files):
        whole = epoch_of(data.train_batches(files, Shard()), 0)[0]
        halves = replace(files, batch_size=2)
        shards = [data.train_batches(halves, Shard(rank, 2)).epoch(0) for rank in (0, 1)]
        assert torch.equal(
            torch.cat([b[0] for pair in zip(*shards, strict=True) for b in pair]), whole
        )
        counted = [
            label
            for rank in (0, 1, 2)
            for _, labels in data.eval_batches(files, Shard(rank, 3))
            for label in labels.tolist()
        ]
        assert sorted(counted) == [0] * 4 + [1] * 4

    def test_are_named_where_they_are_damaged(self, files):
        with open(f"{files.data_dir}/train.tar", "r+b") as tar:
            tar.seek(512)
            tar.write(b"no image")
        for workers in (0, 1):
            batches = data.train_batches(replace(files, workers=workers), Shard())
            with pytest.raises(DatasetError, match=r"^a/0\.png: expected an image") as info:
                list(batches.epoch(0))
            assert "Traceback" not in str(info.value)


def test_an_epoch_starts_at_any_batch():
    batches = data.train_batches(OPTIONS, Shard())
    for whole, late in zip(list(batches.epoch(2))[5:], batches.epoch(2, start=5), strict=True):
        assert torch.equal(whole[0], late[0])


def test_synthetic_images_are_fixed_and_in_range():
    options = replace(OPTIONS, dataset="synthetic", subset=32, num_classes=7)
    train, val = data.train_batches(options, Shard()), data.eval_batches(options, Shard())
    assert (len(train.images), len(val.images)) == (32, 16)
    assert 0 <= train.images.labels.min() <= train.images.labels.max() < 7
    again = data.train_batches(replace(options, seed=9), Shard())
    assert torch.equal(again.images.pixels, train.images.pixels)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"dataset": "mnits"}, UnknownDatasetError, "mnits"),
        ({"dataset": "cifar10"}, MissingFileError, "--data-dir"),
        ({"dataset": "", "data_dir": "nowhere"}, MissingFileError, "nowhere"),
        ({"subset": 8}, DatasetError, "at least 16 training images"),
    ],
)
def test_errors_say_what_to_do(changed, error, message):
    with pytest.raises(error, match=message):
        data.train_batches(replace(OPTIONS, **changed), Shard())


def test_an_incomplete_data_set_is_named(tmp_path):
    for name in ("cifar10", ""):
        with pytest.raises(MultiQuantError, match=str(tmp_path)):
            data.train_batches(replace(OPTIONS, dataset=name, data_dir=str(tmp_path)), Shard())
