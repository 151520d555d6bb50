"""Training what came out of a packed file: refused by name, or from what the file has."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import brevitas_multiquant.core.cifar_networks  # noqa: F401  (registers the CIFAR networks)
from brevitas_multiquant import (
    InPlaceDistillation,
    ModelSource,
    MultiQuantNet,
    calibrate,
    extract_subnet,
    load_packed,
    multiquantize,
    reestimate_norms,
    save_packed,
)
from brevitas_multiquant.errors import PackedFileError
from brevitas_multiquant.nn.switchable import ScaleShiftNorm, scale_and_shift
from brevitas_multiquant.quant.layers import CodeLayer
from brevitas_multiquant.quant.slices import LayerSlice
from tests.storage.test_packed_modules import convert_sync_batchnorm, equal, outputs, trained
from tests.tiny import TinyNet

SHAPE = (1, 3, 16, 16)
NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.BatchNorm2d(8),
    "batch norm without weights": lambda: nn.BatchNorm2d(8, affine=False),
    "batch norm of a large eps": lambda: nn.BatchNorm2d(8, eps=0.1),
    "group norm": lambda: nn.GroupNorm(2, 8),
    "none": nn.Identity,
}


def model_of(norm: str) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        NORMS[norm](),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )


def saved(norm: str, folder: Path) -> tuple[Path, nn.Module, Tensor]:
    """A packed file, a float model to load it with, and images."""
    images = torch.randn(8, *SHAPE[1:])
    source = ModelSource("own", "net")
    net = multiquantize(model_of(norm), [2, 3, 4], input_shape=SHAPE, source=source)
    calibrate(net, [images])
    path = save_packed(trained(net, images), folder / "net.safetensors")
    return path, model_of(norm), images


def train(net: MultiQuantNet, images: Tensor, steps: int = 30) -> tuple[float, float]:
    """The loss of the first and of the last step."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    task = InPlaceDistillation(net, distill=False).train()
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        losses.append(task.step(images, torch.arange(len(images)) % 10)["loss"].item())
        optimizer.step()
    return losses[0], losses[-1]


@pytest.mark.parametrize("norm", NORMS)
def test_training_is_refused(norm: str, tmp_path: Path) -> None:
    """Whatever the norms, also in evaluation mode; and nothing takes a gradient."""
    path, model, images = saved(norm, tmp_path)
    net = load_packed(path, model)
    message = r"is for evaluation.*load_packed\(path, trainable=True\)"
    attempts: dict[str, Callable[[], object]] = {
        r"train\(\)": net.train,
        r"train\(\): ": InPlaceDistillation(net).train,
        "InPlaceDistillation": lambda: InPlaceDistillation(net).step(images, torch.arange(8)),
        "calibrate": lambda: calibrate(net, [images]),
        "reestimate_norms": lambda: reestimate_norms(net, [images]),
    }
    for where, attempt in attempts.items():
        with pytest.raises(PackedFileError, match=f"{where}.*{message}"):
            attempt()
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert not net.eval().training
    with torch.no_grad():
        InPlaceDistillation(net)(images, torch.arange(8))


@pytest.mark.parametrize("norm", NORMS)
def test_trainable_is_equal_to_the_bit_and_trains(norm: str, tmp_path: Path) -> None:
    path, model, images = saved(norm, tmp_path)
    expected = outputs(load_packed(path, model), images)
    net = load_packed(path, model, trainable=True)
    assert not net.training
    assert equal(outputs(net, images), expected)
    assert equal([extract_subnet(net, bits)(images) for bits in net.bits], expected)
    again = save_packed(net, tmp_path / "again.safetensors")
    assert again.read_bytes() == path.read_bytes()
    first, last = train(net, images)
    assert last < first - 0.3  # and below chance, 3 ln 10 = 6.9
    assert last < 6.9
    net.eval()
    reloaded = load_packed(save_packed(net, again), model)
    assert equal(outputs(reloaded, images), outputs(net, images))
    assert not equal(outputs(net, images), expected)


@pytest.mark.parametrize("norm", NORMS)
def test_training_starts_at_what_evaluation_computes(norm: str, tmp_path: Path) -> None:
    """A batch norm that took the batch's statistics would compute something else at once.

    Nine of ten outputs within 2%: scales are folded into the weights while training, and a code on
    a threshold may flip.
    """
    path, model, images = saved(norm, tmp_path)
    net = load_packed(path, model, trainable=True)
    expected = outputs(net, images)
    for ours, theirs in zip(outputs(net.train(), images), expected, strict=True):
        assert ((ours - theirs).abs() <= 0.02 * theirs.abs().max()).float().mean() > 0.9


@pytest.mark.parametrize(
    ("name", "bits", "profile"),
    [
        ("cifar_resnet8", [2, 3, 4], "paper"),
        ("cifar_resnet8", [2, 3, 4], "finn"),
        ("test_nfnet", [2, 4], "paper"),  # standardised weights with gains
        ("test_convnext", [2, 4], "paper"),
    ],
)
def test_models(name: str, bits: list[int], profile: str, tmp_path: Path) -> None:
    images = torch.randn(4, 3, 32, 32)
    model = timm.create_model(name, num_classes=10)
    net = multiquantize(model, bits, profile=profile, input_shape=(1, 3, 32, 32))
    path = save_packed(trained(net, images), tmp_path / "net.safetensors")
    expected = outputs(net.eval(), images)
    loaded = load_packed(path, trainable=True)
    assert equal(outputs(loaded, images), expected)
    InPlaceDistillation(loaded).train().step(images, torch.arange(4))
    without = [n for n, p in loaded.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    frozen = [name for name, p in loaded.named_parameters() if not p.requires_grad]
    assert all(name.endswith(".gain") for name in frozen)
    assert bool(frozen) == (name == "test_nfnet")


def test_latent_weights_are_the_values_of_their_codes(net: MultiQuantNet, tmp_path: Path) -> None:
    net.source = ModelSource("own", "TinyNet")
    path = save_packed(net, tmp_path / "net.safetensors")
    loaded = load_packed(path, TinyNet(), trainable=True)
    layers = zip(net.modules(), loaded.modules(), strict=True)
    for ours, theirs in layers:
        if isinstance(ours, CodeLayer) and not isinstance(ours, LayerSlice):
            assert len(theirs.weight.unique()) <= 4
            assert torch.equal(theirs.quant_weight(), ours.quant_weight())


@pytest.mark.parametrize("eps", [1e-12, 1e-8, 1e-5, 1e-3, 0.0312, 0.1, 0.499])
def test_any_eps_gives_the_stored_bits(eps: float) -> None:
    """Variance and eps add up to 1, and its root's inverse is 1."""
    norm = nn.BatchNorm2d(64, eps=eps)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
        norm.running_var.fill_(1.0 - eps)
    scale, shift = scale_and_shift(norm)
    assert torch.equal(scale, norm.weight)
    assert torch.equal(shift, norm.bias)


def test_norms_have_what_a_batch_norm_needs(tmp_path: Path) -> None:
    path, model, images = saved("batch norm", tmp_path)
    net = load_packed(path, model, trainable=True).train()
    norms = [module for module in net.modules() if isinstance(module, ScaleShiftNorm)]
    assert norms
    assert all(norm.eps == 1e-5 and norm.weight.requires_grad for norm in norms)
    before = [norm.running_var.clone() for norm in norms]
    with net.floating():
        net(images)
    net(images)
    assert equal([norm.running_var for norm in norms], before)  # there is nothing to update


def test_statistics_that_a_file_has_not_cannot_be_found_again(tmp_path: Path) -> None:
    path, model, images = saved("batch norm", tmp_path)
    net = load_packed(path, model, trainable=True)
    before = outputs(net, images)
    with pytest.raises(PackedFileError, match="reestimate_norms: expected batch norms with stat"):
        reestimate_norms(net, [images])
    assert equal(outputs(net, images), before)


def test_synchronised_norms_stay_factor_and_summand(tmp_path: Path) -> None:
    path, model, images = saved("batch norm", tmp_path)
    expected = outputs(load_packed(path, model), images)
    net = convert_sync_batchnorm(load_packed(path, model, trainable=True))
    assert equal(outputs(net, images), expected)
    before = [name for name, value in net.state_dict().items() if "running_var" in name]
    values = [net.state_dict()[name].clone() for name in before]
    net.train()(images)
    assert equal([net.state_dict()[name] for name in before], values)


def test_from_pretrained(tmp_path: Path) -> None:
    path, model, images = saved("batch norm", tmp_path)
    load_packed(path, model).save_pretrained(tmp_path / "folder")
    net = MultiQuantNet.from_pretrained(tmp_path / "folder", model=model, trainable=True)
    assert equal(outputs(net, images), outputs(load_packed(path, model), images))
    first, last = train(net, images, steps=20)
    assert last < first
    with pytest.raises(PackedFileError, match="is for evaluation"):
        MultiQuantNet.from_pretrained(tmp_path / "folder", model=model).train()


def test_a_state_dict_goes_on_where_it_was(tmp_path: Path) -> None:
    """Resume: the file again, then the state dict."""
    path, model, images = saved("batch norm", tmp_path)
    net = load_packed(path, model, trainable=True)
    train(net, images, steps=3)
    resumed = load_packed(path, model, trainable=True)
    resumed.load_state_dict(net.state_dict())
    assert train(net, images, steps=3) == train(resumed, images, steps=3)
