"""Files say what their network is for; those that do not are as they were."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from brevitas_multiquant import (
    ModelSource,
    MultiQuantNet,
    calibrate,
    load_packed,
    multiquantize,
    save_packed,
)
from brevitas_multiquant.core.image_task import ImageTask
from brevitas_multiquant.core.preprocessing import Preprocessing
from brevitas_multiquant.errors import ConfigError, PackedFileError
from brevitas_multiquant.export import export_finn, export_qonnx
from tests.packed import rewrite, take_apart

IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def made(bits: list[int], **options: Any) -> MultiQuantNet:
    model = ModelSource("timm", "cifar_resnet8").build()
    net = multiquantize(model, bits, input_shape=(1, 3, 8, 8), **options)
    calibrate(net, [IMAGES])
    return net


@pytest.fixture
def net() -> MultiQuantNet:
    """By name, so that files of it are read without more."""
    return made([2, 4])


def task(net: MultiQuantNet, classes: int = 10) -> ImageTask:
    names = tuple(f"class {index}" for index in range(classes))
    return ImageTask(
        Preprocessing((0.5, 0.4, 0.3), (0.25, 0.2, 0.25), names, 0.875, "bilinear"),
        dataset="animals",
        accuracy={bits: 50.5 + bits for bits in net.bits},
        protocol="top-1, 12 validation images, epoch 1",
    )


def test_round_trip(net: MultiQuantNet, tmp_path: Path) -> None:
    net.image_task = task(net)
    path = save_packed(net, tmp_path / "net.safetensors")
    assert take_apart(path)[0]["version"] == 3
    loaded = load_packed(path)
    assert loaded.image_task == net.image_task
    assert save_packed(loaded, tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_without_it_the_file_is_as_before(net: MultiQuantNet, tmp_path: Path) -> None:
    plain = save_packed(net, tmp_path / "plain.safetensors").read_bytes()
    net.image_task = task(net)
    told = save_packed(net, tmp_path / "told.safetensors")
    _, arrays = take_apart(told)
    before, same = take_apart(tmp_path / "plain.safetensors")
    assert before["version"] == 1
    assert "image_task" not in before
    assert all((arrays[key] == same[key]).all() for key in {**arrays, **same})
    again = load_packed(told)
    again.image_task = None
    assert save_packed(again, tmp_path / "again.safetensors").read_bytes() == plain


def test_beside_weights_that_need_saying(tmp_path: Path) -> None:
    net = made([2, 4], method="adabits")
    net.image_task = task(net)
    path = save_packed(net, tmp_path / "net.safetensors")
    header = take_apart(path)[0]
    assert header["version"] == 3
    assert header["weights"]
    assert load_packed(path).image_task == net.image_task


def test_a_network_to_be_trained_on_loses_its_accuracy(net: MultiQuantNet, tmp_path: Path) -> None:
    net.image_task = task(net)
    loaded = load_packed(save_packed(net, tmp_path / "net.safetensors"), trainable=True)
    assert loaded.image_task is not None
    assert loaded.image_task.preprocessing == net.image_task.preprocessing
    assert not loaded.image_task.accuracy
    assert not loaded.image_task.protocol


def test_accuracies_of_other_bit_widths(net: MultiQuantNet, tmp_path: Path) -> None:
    net.image_task = ImageTask(Preprocessing([0.5] * 3, [0.5] * 3), accuracy={3: 50.0})
    with pytest.raises(ConfigError, match=r"expected accuracies of some of .* bits, got \[3\]"):
        save_packed(net, tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "damage",
    [
        lambda one: one.pop("preprocessing"),
        lambda one: one["preprocessing"].update(std=[0, 0, 0]),
        lambda one: one["preprocessing"].update(mean=5),
        lambda one: one.update(accuracy={"two": 5}),
        lambda one: one.update(accuracy={"2": 500}),
        lambda one: one.update(accuracy=[]),
        lambda one: one.update(more=1),
    ],
)
def test_nonsense_in_a_file(
    damage: Callable[[dict[str, Any]], Any], net: MultiQuantNet, tmp_path: Path
) -> None:
    net.image_task = task(net)
    path = save_packed(net, tmp_path / "net.safetensors")
    rewrite(path, lambda arrays, header: damage(header["image_task"]))
    with pytest.raises(PackedFileError, match="image task: expected"):
        load_packed(path)


def test_hub_folder(net: MultiQuantNet, tmp_path: Path) -> None:
    net.image_task = task(net)
    net.save_pretrained(tmp_path / "told")
    card = (tmp_path / "told" / "README.md").read_text()
    assert "top-1 on animals" in card
    assert f"{50.5 + net.bits[0]:.2f} %" in card
    assert "less the mean 0.5, 0.4, 0.3, over the deviation 0.25, 0.2, 0.25" in card
    assert "| accuracy | top-1, 12 validation images, epoch 1 |" in card
    config = json.loads((tmp_path / "told" / "config.json").read_text())
    assert ImageTask.from_dict(config["image_task"]) == net.image_task
    net.save_pretrained(tmp_path / "given", dataset="others")
    assert "top-1 on others" in (tmp_path / "given" / "README.md").read_text()
    net.image_task = None
    net.save_pretrained(tmp_path / "plain")
    assert "What it reads" not in (tmp_path / "plain" / "README.md").read_text()


def test_exports(tmp_path: Path) -> None:
    net = made([2], profile="finn")
    net.image_task = task(net)
    export_qonnx(net, tmp_path / "qonnx")
    report = json.loads((tmp_path / "qonnx" / "export.json").read_text())
    assert ImageTask.from_dict(report["image_task"]) == net.image_task
    (project,) = export_finn(net, tmp_path / "finn", estimate=False).values()
    told = json.loads((project / "host.json").read_text())["images"]
    assert told["size"] == [8, 8]
    assert told["class_names"] == list(net.image_task.preprocessing.class_names)
    assert (told["dataset"], told["accuracy"]) == ("animals", {"2": 52.5})
