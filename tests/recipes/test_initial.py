"""``--initial-checkpoint``: files of every making, taken whole or refused by name."""

import argparse

import pytest
import timm
import torch
from safetensors.torch import save_file

from brevitas_multiquant import calibrate, multiquantize, save_packed
from brevitas_multiquant.core.float_model import ModelSource
from brevitas_multiquant.recipes.errors import MissingFileError, OptionError
from brevitas_multiquant.recipes.network.build import create_float_model, model_source
from brevitas_multiquant.recipes.options.train import parse_train

SOURCE = ModelSource("timm", "test_resnet", {"num_classes": 10})


def model_of(classes=10, name="test_resnet"):
    torch.manual_seed(7)
    return timm.create_model(name, num_classes=classes)


def behind(prefix, weights):
    return {f"{prefix}{name}": value for name, value in weights.items()}


def without_counts(weights):
    return {name: value for name, value in weights.items() if "num_batches" not in name}


WEIGHTS = model_of().state_dict()

TAKEN = {
    "weights alone": (WEIGHTS, ""),
    "norms without counts": (without_counts(WEIGHTS), ""),
    "a checkpoint of timm": (
        {"epoch": 3, "args": argparse.Namespace(lr=0.1), "state_dict": WEIGHTS},
        "read its 'state_dict'",
    ),
    "a moving average beside the last step": (
        {"state_dict": model_of(5).state_dict(), "state_dict_ema": WEIGHTS},
        "read its 'state_dict_ema'",
    ),
    "data parallel": (behind("module.", WEIGHTS), "read names without 'module.'"),
    "compiled and data parallel": (
        {"model": behind("module._orig_mod.", WEIGHTS)},
        "read its 'model', names without 'module._orig_mod.'",
    ),
}

REFUSED = {
    "a text": ("hello\n", r"got something else, or a damaged file \(KeyError\): check the path"),
    "nothing": ("", r"got something else, or a damaged file \(EOFError\)"),
    "half a file": (b"PK\x03\x04", "got something else, or a damaged file"),
    "a whole model": (model_of(), r"got a pickled timm\.models\.resnet\.ResNet, which would run"),
    "a model below a key": ({"model": model_of(), "epoch": 3}, r"got a pickled timm\.models"),
    "a list": ([1, 2], "expected a mapping of names to tensors.*got a list"),
    "no weights": ({"epoch": 3, "lr": 0.1}, r"got the keys \['epoch', 'lr'\]"),
    "an empty mapping": ({}, "got a dict"),
    "two networks": (
        {"state_dict": WEIGHTS, "model": WEIGHTS},
        r"got several: \['state_dict', 'model'\]",
    ),
    "keys of Lightning": (
        {"state_dict": behind("model.", WEIGHTS)},
        r"All of them are there behind 'model\.'.*removeprefix\('model\.'\)",
    ),
    "a part behind a prefix": (
        {"module.conv1.0.weight": WEIGHTS["conv1.0.weight"], "fc.bias": WEIGHTS["fc.bias"]},
        r"is missing and \d+ more; module\.conv1\.0\.weight is not in the model",
    ),
    "fewer classes": (
        model_of(5).state_dict(),
        r"fc\.weight has the shape \(5, 96\) instead of \(10, 96\) and 1 more.*tells 5 classes and "
        "the data have 10: start from weights for 10, or train on data with 5",
    ),
    "more classes": (model_of(20).state_dict(), "or train with --num-classes 20"),
    "another model": (
        model_of(name="test_efficientnet").state_dict(),
        "is missing and .* is not in the model and .*Check --model",
    ),
    "a weight too few": (
        {name: value for name, value in WEIGHTS.items() if name != "fc.bias"},
        "got others: fc.bias is missing. Check --model",
    ),
    "a weight too many": (
        {**WEIGHTS, "fc.scale": torch.ones(1)},
        "got others: fc.scale is not in the model. Check --model",
    ),
}


def write(folder, content):
    path = folder / "weights.pth"
    if isinstance(content, str | bytes):
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    else:
        torch.save(content, path)
    return str(path)


def same(model, weights):
    return all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", TAKEN)
def test_taken_whole_and_said_how(tmp_path, capfd, name):
    content, note = TAKEN[name]
    path = write(tmp_path, content)
    assert same(create_float_model(SOURCE, False, path), WEIGHTS)
    said = capfd.readouterr().err
    assert said == (f"note: --initial-checkpoint {path}: {note}\n" if note else "")


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(tmp_path, name):
    content, message = REFUSED[name]
    path = write(tmp_path, content)
    with pytest.raises(OptionError, match=message) as refused:
        create_float_model(SOURCE, False, path)
    assert str(refused.value).startswith(f"--initial-checkpoint {path}: expected ")
    assert len(str(refused.value)) < 700
    assert "weights_only" not in str(refused.value)


def test_safetensors(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(WEIGHTS, path)
    assert same(create_float_model(SOURCE, False, str(path)), WEIGHTS)
    path.write_bytes(b"hello")
    with pytest.raises(OptionError, match=r"damaged file \(SafetensorError\)"):
        create_float_model(SOURCE, False, str(path))


def test_a_packed_network_is_no_float_one(tmp_path):
    net = multiquantize(model_of(), [2], input_shape=(1, 3, 32, 32))
    calibrate(net, [torch.randn(2, 3, 32, 32)])
    path = save_packed(net, tmp_path / "net.safetensors")
    with pytest.raises(OptionError, match="expected the weights of ResNet, got others"):
        create_float_model(SOURCE, False, str(path))


def test_arrays_that_the_model_does_not_know_are_named(tmp_path):
    path = tmp_path / "weights.npz"
    path.write_bytes(b"hello")
    with pytest.raises(OptionError, match=r"--initial-checkpoint .*weights\.npz: expected arrays"):
        create_float_model(SOURCE, False, str(path))


def test_a_missing_file_is_named_before_a_model_is_built(tmp_path):
    unknown = ModelSource("timm", "no_such_model", {})
    with pytest.raises(MissingFileError, match=r"--initial-checkpoint: expected a file, found"):
        create_float_model(unknown, False, str(tmp_path / "none.pth"))


def test_two_sets_of_weights_are_refused(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("pretrained: true\n")
    argv = ["-c", str(config), "--initial-checkpoint", "weights.pth"]
    with pytest.raises(OptionError, match=r"--initial-checkpoint weights\.pth: .*--no-pretrained"):
        parse_train(argv)
    assert not parse_train([*argv, "--no-pretrained"]).model.pretrained


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("num_classes=20", r"--model-kwargs num_classes=20: expected it as --num-classes"),
        ("in_chans=1", r"--model-kwargs in_chans=1: expected 3, the channels of the images"),
        ("pretrained=true", "load no weights, got 'pretrained'"),
        ("checkpoint_path=w.pth", "load no weights, got 'checkpoint_path'"),
    ],
)
@pytest.mark.parametrize("pretrained", [False, True])
def test_arguments_that_others_decide_are_refused(given, message, pretrained):
    options = parse_train(["--model", "test_resnet", "--model-kwargs", given])
    with pytest.raises(OptionError, match=message):
        create_float_model(model_source(options.model, 10), pretrained, None)
