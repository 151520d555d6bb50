"""Memories of layers: the fewest LUTs that any choice has, by trying all of them."""

from dataclasses import replace
from itertools import product

import pytest

from brevitas_multiquant.cost import luts
from brevitas_multiquant.cost.luts import Addition, MatrixProduct, Thresholds, Window, total
from brevitas_multiquant.cost.luts.memories import NEVER, fewest_luts

LAYERS = (
    Window(16, (34, 34), (3, 3), 8),
    MatrixProduct(144, 16, 1024, 3, 8, 16, simd=12),
    Thresholds(16, 1024, 14, 4),
    Addition(16, 1024),
    Thresholds(32, 64, 17, 6, pe=2),
)


def every_choice(node):
    """All memories of a layer, written down by hand."""
    if isinstance(node, Thresholds):
        depths = [node.channels // node.pe * 2**stage for stage in range(node.output_bits + 1)]
        return [node, *(replace(node, bram_from=depth, uram_from=NEVER) for depth in depths)]
    if hasattr(node, "ram_style"):
        return [replace(node, ram_style=style) for style in ("auto", "distributed", "block")]
    return [node]


@pytest.mark.parametrize("bram18", [0, 1, 2, 3, 5, 8, 13, 21, 1000])
def test_the_fewest_luts_of_all_choices(bram18):
    sums = [total(choice) for choice in product(*map(every_choice, LAYERS))]
    possible = [one for one in sums if one.bram18 <= bram18 and one.uram == 0]
    luts_, brams = min((one.luts, one.bram18) for one in possible)
    found = total(fewest_luts(LAYERS, bram18))
    assert (found.luts, found.bram18) == (luts_, brams)


def test_layers_keep_everything_else():
    found = fewest_luts(LAYERS, 50)
    for before, after in zip(LAYERS, found, strict=True):
        styles = {name: getattr(before, name, 0) for name in ("bram_from", "uram_from")}
        if isinstance(before, Thresholds):
            after = replace(after, **styles)
        elif hasattr(before, "ram_style"):
            after = replace(after, ram_style=before.ram_style)
        assert after == before


def test_too_few_block_rams_still_give_the_fewest():
    """Weights of a large layer do not fit into none: what takes the fewest is chosen."""
    layers = [Thresholds(64, 64, 17, 8), *LAYERS]
    assert total(fewest_luts(layers, 0)).bram18 == min(
        total(choice).bram18 for choice in product(*map(every_choice, layers[:3]))
    )


def test_weights_of_dsps_are_not_free_in_luts():
    """FINN's estimate counts no LUT of them, wherever they are: block RAMs hold them."""
    products = [MatrixProduct(576, 64, 64, 8, 8, 24, pe=4, simd=4)] * 2
    assert [one.ram_style for one in fewest_luts(products, 600)] == ["auto", "auto"]
    need = total(products).bram18
    styles = [one.ram_style for one in fewest_luts(products, need // 2)]
    assert sorted(styles) == ["auto", "distributed"]


def test_other_kinds_of_dsp():
    (found,) = fewest_luts([MatrixProduct(144, 16, 64, 8, 8, 20, simd=12)], 40, "DSP58")
    assert luts.resources(found, "DSP58").dsp == 4
