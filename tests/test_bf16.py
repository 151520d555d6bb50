"""bf16: the same levels as fp32, and a network trained in it is what leaves in fp32."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from brevitas_multiquant import (
    InPlaceDistillation,
    ModelSource,
    MultiQuantNet,
    calibrate,
    extract_subnet,
    load_packed,
    save_packed,
)
from brevitas_multiquant.core.clip_quantize import quantize_activation, quantize_weight
from brevitas_multiquant.export import export_qonnx
from brevitas_multiquant.nn import SwitchableQuantizer
from brevitas_multiquant.quant.layers import CodeLayer
from tests.tiny import TinyNet

BITS = (2, 4, 6, 8)


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("bits", [*BITS, 16])
@pytest.mark.parametrize("within_autocast", [False, True])
def test_activation_levels_are_those_of_fp32(bits: int, within_autocast: bool) -> None:
    """Every bf16 number around the range, and the thresholds between the levels among them."""
    codes = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    values = codes[codes.isfinite() & (codes.abs() < 4)]
    lower, upper = torch.tensor(-0.37), torch.tensor(2.11)
    with torch.autocast("cpu", torch.bfloat16, enabled=within_autocast):
        narrow = quantize_activation(values, lower, upper, bits)
    wide = quantize_activation(values.float(), lower, upper, bits)
    assert torch.equal(narrow.float(), wide)
    assert wide.max() == 2**bits - 1


def test_weight_levels_are_those_of_fp32() -> None:
    weights = torch.randn(10_000).bfloat16()
    lower, upper = torch.tensor(-0.9), torch.tensor(1.1)
    narrow = quantize_weight(weights, lower, upper)
    assert torch.equal(narrow.float(), quantize_weight(weights.float(), lower, upper))


def trained_in_bf16(make_net: Callable[..., MultiQuantNet], images: Tensor) -> MultiQuantNet:
    net = make_net(bits=BITS, source=ModelSource("own", "TinyNet"))
    calibrate(net, [images])
    task = InPlaceDistillation(net.train())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        with autocast():
            loss = task(images, torch.arange(4))["loss"]
        loss.backward()
        optimizer.step()
    return net


def test_layers_of_a_bf16_step_use_fp32_levels(
    make_net: Callable[..., MultiQuantNet], images: Tensor
) -> None:
    """What each quantizer emits inside autocast, against fp32 on what it was given."""
    net = trained_in_bf16(make_net, images)
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []
    for module in net.modules():
        if isinstance(module, SwitchableQuantizer):
            module.register_forward_hook(lambda m, given, out: seen.append((m, given[0], out)))
    with autocast(), torch.no_grad():
        inside = {
            name: m.quant_weight() for name, m in net.named_modules() if isinstance(m, CodeLayer)
        }
        net(images)
    given_types = {given.dtype for _, given, _ in seen}
    assert torch.bfloat16 in given_types
    for quantizer, given, emitted in list(seen):
        assert torch.equal(quantizer(given.float()), emitted.float())
    for name, codes in inside.items():
        assert torch.equal(net.get_submodule(name).quant_weight(), codes.float())  # type: ignore[operator]


def test_evaluation_in_fp32_agrees_with_what_is_exported(
    make_net: Callable[..., MultiQuantNet], images: Tensor, tmp_path: Path
) -> None:
    """The exporter executes each file, and refuses one with a flipped code."""
    net = trained_in_bf16(make_net, images).eval()
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    loaded = load_packed(save_packed(net, tmp_path / "net.safetensors"), TinyNet())
    for bits in BITS:
        with torch.no_grad(), net.at_bits(bits), loaded.at_bits(bits):
            logits = net(images)
            assert torch.equal(extract_subnet(net, bits)(images), logits)
            assert torch.equal(loaded(images), logits)
    assert set(export_qonnx(net, tmp_path / "qonnx")) == set(BITS)
