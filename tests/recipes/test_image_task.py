"""A run says in every file what its network is for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from brevitas_multiquant import load_packed
from brevitas_multiquant.core.image_task import ImageTask
from brevitas_multiquant.export.finn.project.host import read_image
from brevitas_multiquant.recipes import train
from brevitas_multiquant.recipes.data.batches import FileEvalBatches, eval_batches
from brevitas_multiquant.recipes.data.shard import Shard
from brevitas_multiquant.recipes.options.data import BUILT_IN
from brevitas_multiquant.recipes.options.train import parse_train
from brevitas_multiquant.recipes.results.checkpoints import checkpoints_in, read_checkpoint
from brevitas_multiquant.recipes.results.image_task import image_task_of
from brevitas_multiquant.version import __version__
from tests.recipes.runs import NAME, rows_of, tiny


def test_packed_file_checkpoint_and_args(tmp_path):
    assert train.main(tiny(tmp_path, "--epochs", "2")) == 0
    folder = tmp_path / NAME
    task = load_packed(folder / "last.safetensors").image_task
    assert task is not None
    last = rows_of(tmp_path)[-1]
    assert task.accuracy == {2: float(last["eval_top1_2b"]), 4: float(last["eval_top1_4b"])}
    assert task.protocol == "top-1, 360 validation images, epoch 2"
    assert (task.dataset, task.version) == ("digits", __version__)
    one = task.preprocessing
    assert (one.mean, one.std) == (BUILT_IN["digits"].mean, BUILT_IN["digits"].std)
    assert (one.crop, one.interpolation, one.class_names) == (1.0, "bilinear", ())
    saved = read_checkpoint(checkpoints_in(folder)[-1])
    assert ImageTask.from_dict(saved.values["image_task"]) == task
    environment = yaml.safe_load((folder / "args.yaml").read_text())["environment"]
    assert environment["preprocessing"] == one.to_dict()
    assert environment["versions"]["brevitas_multiquant"] == __version__
    best = load_packed(folder / "best.safetensors").image_task
    means = [(float(r["eval_top1_2b"]) + float(r["eval_top1_4b"])) / 2 for r in rows_of(tmp_path)]
    assert best is not None
    assert sum(best.accuracy.values()) / 2 == max(means)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of timm, which leaves files open
@pytest.mark.parametrize(("size", "limit"), [((300, 280), 1), ((256, 256), 1), ((256, 256), 1024)])
def test_a_file_is_read_as_validation_read_it(size, limit, tmp_path):
    """Beyond the limit of memory by timm's transform, within it as decoded at once."""
    for name in ("cat", "dog"):
        folder = tmp_path / "val" / name
        folder.mkdir(parents=True)
        for index in range(4):
            noise = np.random.default_rng(index).integers(0, 256, (9, 7, 3), dtype=np.uint8)
            picture = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
            picture.save(folder / f"{index}.png")
    (tmp_path / "train").symlink_to(tmp_path / "val")
    options = parse_train(["--data-dir", str(tmp_path), "--img-size", "256", "--workers", "0"]).data
    val = eval_batches(replace(options, cache_limit_mb=limit), Shard())
    assert isinstance(val, FileEvalBatches) == (limit == 1)
    one = image_task_of(options, val, 2, []).preprocessing
    images, _ = next(iter(val))
    read = read_image(tmp_path / "val" / "cat" / "2.png", one.constants((1, 3, 256, 256), 2))
    # torchvision multiplies by 1 / 255 in memory, here pixels are divided: the last bit differs
    torch.testing.assert_close(torch.from_numpy(read)[0], images[2], rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of timm, which leaves files open
def test_classes_of_folders(tmp_path):
    for split in ("train", "val"):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for index in range(8):
                pixels = np.full((12, 8, 3), 100 * label + index, dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    data = ["--data-dir", str(tmp_path / "pets"), "--img-size", "8", "--batch-size", "8"]
    more = ["--bits", "2", "--epochs", "1", "--experiment", NAME, "--output", str(tmp_path)]
    assert train.main([*data, *more]) == 0
    task = load_packed(tmp_path / NAME / "last.safetensors").image_task
    assert task is not None
    assert (task.dataset, task.preprocessing.class_names) == ("pets", ("cat", "dog"))
    assert task.preprocessing.interpolation == "bicubic"
