"""First and last layer as layers like the others: ``stem="none"``, ``head="none"``."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import brevitas_multiquant.core.cifar_networks  # noqa: F401  (registers the CIFAR networks)
from brevitas_multiquant import (
    calibrate,
    cost,
    extract_subnet,
    load_packed,
    multiquantize,
    save_packed,
)
from brevitas_multiquant.allocation import BitSearch, Budget
from brevitas_multiquant.export import check_finn
from tests.tiny import IMAGE

WHOLE: Any = {"stem": "none", "head": "none", "input_shape": IMAGE}


@pytest.mark.parametrize("profile", ["paper", "finn"])
def test_bits_of_first_and_last_layer_are_searched_for(
    images: Tensor, tmp_path: Any, profile: str
) -> None:
    torch.manual_seed(0)
    model = timm.create_model("cifar_resnet8", num_classes=5)
    net = multiquantize(model, [8], method="individual", profile=profile, **WHOLE)
    calibrate(net, [images])
    assert (net.sites[0], net.sites[-1]) == ("conv1", "fc")
    whole = cost(net)[8].bitops
    search = BitSearch(net, Budget(uniform=3))
    assert whole == 64 * sum(layer.macs for layer in search.problem.sites.layers)
    with torch.no_grad():
        for at, value in enumerate(search.widths.parameters()):
            value.fill_(2 + 0.3 * at)
    settled = search.settle().allocation
    assert settled.cost <= settled.budget
    bits = {bits for site in ("conv1", "fc") for bits in settled.assignment[site]}
    assert bits != {8}
    net.eval()
    with torch.no_grad():
        expected = net(images)
        assert torch.equal(extract_subnet(net, 8)(images), expected)
        packed = save_packed(net, tmp_path / "net.safetensors")
        assert torch.equal(load_packed(packed)(images), expected)
    assert profile == "paper" or not check_finn(net)


def test_a_network_of_branches(images: Tensor) -> None:
    """The self-check holds; logits are merged, as features are elsewhere."""
    net = multiquantize(timm.create_model("cifar_resnet8", num_classes=5), [2, 4], **WHOLE)
    calibrate(net, [images])
    with torch.no_grad(), net.eval().at_bits(4):
        assert torch.equal(extract_subnet(net, 4)(images), net(images))
