"""Parallelism by hand; tests/cost/luts/test_finn.py compares it with FINN's."""

import pytest

from brevitas_multiquant.cost.luts import (
    Addition,
    DepthwiseProduct,
    MatrixProduct,
    Pool,
    Thresholds,
    Window,
    fold,
    target_cycles,
    unfolded,
)
from brevitas_multiquant.cost.luts.cycles import cycles
from brevitas_multiquant.errors import HardwareError

PRODUCT = MatrixProduct(144, 16, 1024, 3, 3, 12)  # 2,359,296 products


def folded(node, target, dsp="DSP48E2"):
    (one,) = fold([node], target, dsp)
    return one


@pytest.mark.parametrize(
    ("fps", "clock_ns", "expected"),
    [(1000, 5.0, 200000), (333, 5.0, 600600), (0.5, 10.0, 2 * 10**8)],
)
def test_cycles_of_a_frame(fps, clock_ns, expected):
    assert target_cycles(fps, clock_ns) == expected


@pytest.mark.parametrize("arguments", [(0,), (-5,), (100, 0.0), (3 * 10**8,)])
def test_frame_rates_that_cannot_be(arguments):
    with pytest.raises(HardwareError, match="target_fps"):
        target_cycles(*arguments)


@pytest.mark.parametrize(
    ("target", "pe", "simd"),
    [
        (10**7, 1, 1),
        (2359296, 1, 1),
        (2359295, 1, 2),
        (200000, 1, 12),
        (140000, 2, 12),  # 16 inputs of 3 bits would be wider than 36
        (20000, 16, 12),
    ],
)
def test_inputs_up_to_the_width_of_a_memory_then_outputs(target, pe, simd):
    (found,) = fold([PRODUCT], target)[:1]
    assert (found.pe, found.simd) == (pe, simd)


def test_a_wider_word_is_taken_if_it_meets_the_target():
    """FINN looks at the cycles before it looks at the width."""
    found = folded(PRODUCT, 147456)
    assert (found.pe, found.simd, found.simd * found.weight_bits) == (1, 16, 48)


def test_streams_in_hls_have_a_widest():
    wide = MatrixProduct(64, 4096, 10**6, 3, 8, 20)
    assert folded(wide, 1).pe * folded(wide, 1).simd * 3 <= 8191
    in_dsps = MatrixProduct(64, 4096, 10**6, 4, 8, 20)
    assert folded(in_dsps, 1).pe == 4096


def test_layers_of_streams_take_the_least_divisor_of_their_channels():
    assert [folded(Thresholds(12, 100, 8, 2), target).pe for target in (1200, 599, 301, 100)] == [
        *(1, 3, 4, 12),
    ]
    assert folded(Addition(12, 100), 400).pe == 3


def test_a_window_gives_whole_windows_only_if_all_channels_are_too_slow():
    window = Window(4, (34, 34), (3, 3), 8)
    slow, fast = folded(window, 9400), folded(window, 1200)
    assert (slow.simd, slow.parallel) == (4, False)
    assert (fast.simd, fast.parallel, cycles(fast)) == (4, True, 34 * 34 + 2)


def test_a_depthwise_product_shares_its_parallelism_with_its_window():
    window = Window(16, (10, 10), (3, 3), 4, depthwise=True)
    product = DepthwiseProduct(16, (3, 3), 64, 2, 4, 9)
    target = cycles(product) // 4
    found_window, found = fold([window, product], target)
    assert found_window.simd == found.pe == 8  # 4 would do for the product, not for its window
    assert cycles(found_window) <= target and not found_window.parallel


def test_kernels_are_read_at_once_when_all_channels_are():
    window = Window(4, (34, 34), (3, 3), 4, depthwise=True)
    product = DepthwiseProduct(4, (3, 3), 1024, 2, 4, 9)
    found_window, found = fold([window, product], 1200)
    assert (found.pe, found.simd, found_window.parallel) == (4, 9, True)


def test_pools_too():
    window = Window(16, (8, 8), (2, 2), 4, stride=(2, 2), depthwise=True)
    found_window, found = fold([window, Pool(16, (2, 2), 16)], 300)
    assert found_window.simd == found.pe == 8


def test_the_slowest_layer_sets_the_pace_of_all():
    table = Thresholds(64, 10**4, 8, 2)
    fast_alone = folded(table, 20000)
    slow = Window(4, (500, 500), (3, 3), 8)  # 250,002 cycles at best
    assert (fast_alone.pe, fold([slow, table], 20000)[1].pe) == (32, 4)


def test_folding_again_changes_nothing():
    nodes = [PRODUCT, Thresholds(16, 1024, 8, 2)]
    once = fold(nodes, 50000)
    assert fold(once, 50000) == once and tuple(map(unfolded, once)) == tuple(nodes)


@pytest.mark.parametrize("after", [[], [PRODUCT]])
def test_a_depthwise_window_without_a_reader(after):
    window = Window(16, (10, 10), (3, 3), 4, depthwise=True)
    with pytest.raises(HardwareError, match="expected a DepthwiseProduct or a Pool right behind"):
        fold([window, *after], 1000)


@pytest.mark.parametrize("target", [0, -1])
def test_less_than_a_cycle(target):
    with pytest.raises(HardwareError, match="target: expected one cycle a frame or more"):
        fold([PRODUCT], target)
