"""The network: switching, errors, parameters, and the names of its state."""

import copy
from fractions import Fraction

import pytest
import torch

from brevitas_multiquant.core.selection import BranchUse, uses_at
from brevitas_multiquant.errors import BitWidthError
from brevitas_multiquant.nn.merge import merge_outputs
from tests.tiny import TinyNet


def test_attributes(net):
    assert net.bits == (2, 4)
    assert net.active_bits == 4
    assert net.selection == {2: (0,), 4: (0, 1)}
    assert net.input_shape == (1, 3, 8, 8)
    assert "bits=[2, 4]" in repr(net) and "merge='mean'" in repr(net)


def test_selection_is_a_copy(net):
    net.selection.clear()
    assert net.selection == {2: (0,), 4: (0, 1)}


def test_at_bits_restores(net):
    with net.at_bits(2) as same:
        assert same is net and net.active_bits == 2
        with net.at_bits(4):
            assert net.active_bits == 4
        assert net.active_bits == 2
    assert net.active_bits == 4


def test_at_bits_restores_after_an_exception(net):
    with pytest.raises(RuntimeError, match="inside"), net.at_bits(2):
        raise RuntimeError("inside")
    assert net.active_bits == 4


def test_floating_restores_after_an_exception(net):
    with pytest.raises(RuntimeError, match="inside"), net.floating():
        raise RuntimeError("inside")
    assert net._active.quantized


@pytest.mark.parametrize("bits", [3, 8, 0, "4", None, True, [4]])
def test_unknown_bit_width(net, bits):
    with pytest.raises(BitWidthError, match=r"expected one of the bit-widths \[2, 4\]"):
        net.set_active_bits(bits)
    with pytest.raises(BitWidthError, match=r"this network was built for"), net.at_bits(bits):
        pass
    assert net.active_bits == 4


def test_forward_is_the_head_of_the_merged_branches(net, images):
    net.eval()
    with torch.no_grad():
        features = net.stem(images)
        outputs = [branch(features) for branch in net.branches]
        assert torch.equal(net(images), net.head((outputs[0] + outputs[1]) / 2))
        with net.at_bits(2):
            assert torch.equal(net(images), net.head(net.branches[0](features)))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_merge(count):
    outputs = list(torch.randn(count, 5))
    total = torch.stack(outputs).sum(0)
    # at most 3 additions of numbers near 1, in any order
    torch.testing.assert_close(merge_outputs(outputs, "sum"), total, rtol=0, atol=1e-6)
    torch.testing.assert_close(merge_outputs(outputs, "mean"), total / count, rtol=0, atol=1e-6)


def test_sum_merges_differ_from_mean(make_net, images):
    model = TinyNet()
    by_mean, by_sum = (make_net(model, merge=merge).eval() for merge in ("mean", "sum"))
    with torch.no_grad(), by_mean.floating(), by_sum.floating():
        mean, total = (n.stem(images) for n in (by_mean, by_sum))
        assert torch.equal(mean, total)
        assert not torch.equal(by_mean(images), by_sum(images))


def test_parameters_are_split_in_two_without_overlap(net):
    ranges = [id(p) for p in net.range_parameters()]
    model = [id(p) for p in net.model_parameters()]
    assert len(set(ranges)) == len(ranges) and len(set(model)) == len(model)
    assert set(ranges) | set(model) == {id(p) for p in net.parameters()}
    assert not set(ranges) & set(model)
    # branch 0 runs at 2 and 4 bits, branch 1 at 4 alone: 3 weight ranges per branch, and 2 sites
    # each with a range per bit-width; l and u of all
    assert len(ranges) == 2 * (2 * 3 + 2 * 2 + 2 * 1)


def test_copy_is_independent(net, images):
    twin = copy.deepcopy(net).eval()
    net.eval()
    twin.set_active_bits(2)
    assert net.active_bits == 4
    with torch.no_grad(), net.at_bits(2):
        assert torch.equal(net(images), twin(images))


NORM = ["bias", "num_batches_tracked", "running_mean", "running_var", "weight"]
RANGE = ["lower", "observed", "upper"]
WEIGHT_RANGE = "weight_quant.tensor_quant.range_impl"
ACTIVATION_RANGE = "act_quant.fused_activation_quant_proxy.tensor_quant.range_impl"


def test_state_dict_keys_are_a_contract(make_net):
    """Author's names, one weight range per layer, one activation range per tensor and bit-width."""
    keys = {"stem.stem.weight", *(f"stem.stem_bn.{key}" for key in NORM)}
    keys |= {"head.fc.weight", "head.fc.bias"}
    for branch, bits in {0: (2, 4), 1: (4,)}.items():
        prefix = f"branches.{branch}"
        keys |= {f"{prefix}.conv2.bias"}
        for layer in ("conv1", "conv2", "shortcut"):
            keys |= {f"{prefix}.{layer}.weight"}
            keys |= {f"{prefix}.{layer}.{WEIGHT_RANGE}.{key}" for key in RANGE}
        for bit in bits:
            keys |= {f"{prefix}.{norm}.{bit}.{key}" for norm in ("bn1", "bn2") for key in NORM}
            # named after the first layer that reads the tensor
            for site in ("conv1", "conv2"):
                quantizer = f"{prefix}.input_quants.{site}.{bit}.{ACTIVATION_RANGE}"
                keys |= {f"{quantizer}.{key}" for key in RANGE}
    assert set(make_net().state_dict()) == keys


def test_state_dict_restores_outputs_in_a_fresh_network(make_net, net, images):
    fresh = make_net()
    fresh.load_state_dict(net.state_dict())
    net.eval(), fresh.eval()
    for bits in net.bits:
        with torch.no_grad(), net.at_bits(bits), fresh.at_bits(bits):
            assert torch.equal(fresh(images), net(images))


def test_a_branch_is_as_wide_as_its_widest_use(make_net):
    """Branch 0 runs whole and at half, so that its slice is another module; 1 is whole."""
    net = make_net(bits=(2, 3, 4), selection={2: [0], 3: [1, 0], 4: [0, 1]})
    half = BranchUse(0, Fraction(1, 2))
    assert [*map(net.branch_of, uses_at(net.selection, 3))] == net.branches_at(3)
    assert net.branches_at(3) == [net.branches[1], net.halves["0"]]
    assert net.branch_of(half) is net.halves["0"]
    assert net.branch_of(BranchUse(0)) is net.branches[0]
    only = make_net(bits=(2, 3), selection="serial")
    assert not only.halves
    assert only.branch_of(BranchUse(1, Fraction(1, 2))) is only.branches[1]
