"""Segmentation: the data that is drawn, what a short training leaves, and what it refuses."""

import json

import numpy as np
import pytest
import torch

from brevitas_multiquant import cost, extract_subnet, load_packed
from brevitas_multiquant.export import export_qonnx
from brevitas_multiquant.recipes.data.shapes import CLASSES, Shapes, draw
from brevitas_multiquant.recipes.results.report import read_rows
from brevitas_multiquant.recipes.segment import main, predictions

SHORT = ["--epochs", "2", "--images", "20", "--batch-size", "8", "--img-size", "16"]


def test_images_are_a_function_of_seed_and_number():
    one, again = (list(Shapes(5, 16, batch, seed=3)) for batch in (2, 5))
    images, masks = (torch.cat(parts) for parts in zip(*one, strict=True))
    assert torch.equal(images, again[0][0]) and torch.equal(masks, again[0][1])
    assert not torch.equal(images, next(iter(Shapes(5, 16, 5, seed=4)))[0])
    assert len(Shapes(5, 16, 2)) == len(one) == 3


def test_pixels_of_a_shape_have_its_class():
    pairs = [draw(32, np.random.default_rng(n)) for n in range(40)]
    assert {int(c) for _, mask in pairs for c in mask.unique()} == set(range(len(CLASSES)))
    image, mask = pairs[0]
    for kind in mask.unique():  # a colour of its own, but for noise of 0.3
        of_kind = image[:, mask == kind]
        assert of_kind.shape[1] < 20 or (of_kind.std(dim=1) < 1.5).all()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segment") / "run"
    assert main([*SHORT, "--bits", "2", "4", "--output", str(folder)]) == 0
    return folder


def test_what_a_training_leaves(trained):
    rows = read_rows(trained / "summary.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert list(rows[0]) == ["epoch", "train_loss", "miou_2b", "miou_4b"]
    assert all(0 <= float(row["miou_4b"]) <= 100 for row in rows)
    assert all(len(row["miou_4b"].partition(".")[2]) <= 4 for row in rows)
    assert (trained / "predictions.png").stat().st_size > 1000


def test_the_network_is_stored_cut_out_and_costed(trained):
    net = load_packed(trained / "net.safetensors")
    images = torch.randn(2, 3, 16, 16)
    found = predictions(net, images)
    assert {bits: one.shape for bits, one in found.items()} == {2: (2, 16, 16), 4: (2, 16, 16)}
    with torch.no_grad():
        for bits in net.bits:
            with net.at_bits(bits):
                assert torch.equal(extract_subnet(net, bits)(images), net(images))
    assert cost(net)[4].macs == 2 * cost(net)[2].macs


def test_the_network_leaves_as_verified_qonnx(trained, tmp_path):
    net = load_packed(trained / "net.safetensors")
    files = export_qonnx(net, tmp_path)
    assert set(files) == {2, 4} and all(path.is_file() for path in files.values())
    report = json.loads((tmp_path / "export.json").read_text())["bits"]
    assert set(report) == {"2", "4"}
    compared = [found for entry in report.values() for found in entry["compared"].values()]
    assert all(found["codes"] > 0 and found["flipped_codes"] == 0 for found in compared)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "cifar_resnet8"], "expected logits of every pixel"),
        (["--model", "cifar_fcn_resnet9"], "cifar_fcn_resnet8"),
        (["--img-size", "18"], "its strides divide"),
        (["--bits", "1"], "bit"),
    ],
)
def test_named_errors(options, said, tmp_path, capsys):
    assert main([*SHORT, "--output", str(tmp_path), *options]) in (1, 2)
    assert said in capsys.readouterr().err


def test_a_folder_that_holds_something_is_kept(trained, capsys):
    assert main([*SHORT, "--output", str(trained)]) == 2
    assert "--overwrite" in capsys.readouterr().err
