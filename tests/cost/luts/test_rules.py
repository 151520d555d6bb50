"""Each rule on values by hand, and what it refuses."""

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest

from brevitas_multiquant.cost.luts import (
    Addition,
    DepthwiseProduct,
    Duplication,
    MatrixProduct,
    Node,
    Padding,
    Pool,
    PositionSum,
    Resources,
    Thresholds,
    WidthConverter,
    Window,
    resources,
    total,
)
from brevitas_multiquant.cost.luts.cycles import cycles
from brevitas_multiquant.cost.luts.memory import bram18_for_lines, bram18_for_weights, least_waste
from brevitas_multiquant.errors import HardwareError

PRODUCT = MatrixProduct(
    inputs=144, outputs=16, positions=1024, weight_bits=3, activation_bits=3, accumulator_bits=12
)


class TestProducts:
    def test_luts_by_hand(self):
        # 12 multipliers of (2*ceil(6/6) - 1) * 6 LUTs, 23 adders of 6, 12 bits of sums
        assert resources(replace(PRODUCT, simd=12)).luts == int(300 + 1.1 * (72 + 138 + 12))

    def test_sums_are_no_wider_than_types_allow(self):
        # 144 * 2**5 products of 2**5: 4608 has 13 bits, and a sign
        assert (
            resources(replace(PRODUCT, accumulator_bits=40)).luts
            == resources(replace(PRODUCT, accumulator_bits=14)).luts
        )

    @pytest.mark.parametrize(("weights", "activations", "dsps"), [(3, 8, 0), (8, 3, 0), (4, 4, 24)])
    def test_multipliers_are_dsps_from_four_bits_on_both_sides(self, weights, activations, dsps):
        product = replace(PRODUCT, weight_bits=weights, activation_bits=activations, pe=8, simd=12)
        found = resources(product)
        assert found.dsp == dsps
        assert (found.luts == 0) == (dsps > 0)

    def test_dsps_of_each_family(self):
        product = replace(PRODUCT, weight_bits=4, activation_bits=4, pe=2, simd=4)
        assert [resources(product, dsp).dsp for dsp in ("DSP48E1", "DSP48E2", "DSP58")] == [4, 4, 4]
        product = replace(product, pe=16, simd=9)
        assert [resources(product, dsp).dsp for dsp in ("DSP48E2", "DSP58")] == [36, 48]

    def test_the_oldest_dsp_takes_no_most_negative_weight(self):
        product = replace(PRODUCT, weight_bits=4, activation_bits=4, narrow=False)
        assert resources(product, "DSP48E1").dsp == 0
        assert resources(product, "DSP48E2").dsp == 1

    @pytest.mark.parametrize(
        "changes",
        [{"signed_weights": False}, {"activation_bits": 18}, {"accumulator_bits": 49}],
    )
    def test_what_does_not_fit_a_dsp_stays_in_luts(self, changes):
        product = replace(PRODUCT, **{"weight_bits": 8, "activation_bits": 8, **changes})
        assert resources(product).dsp == 0 < resources(product).luts

    def test_a_sign_gives_an_activation_one_more_bit_of_a_dsp(self):
        product = replace(PRODUCT, weight_bits=8, activation_bits=18, signed_activations=True)
        assert resources(product).dsp == 1

    @pytest.mark.parametrize(
        ("ram_style", "found"),
        [
            # 192 words of 36 bits
            ("auto", Resources(bram18=1)),
            ("block", Resources(bram18=1)),
            ("ultra", Resources(uram=1)),
            ("distributed", Resources(luts=36 * 3)),
        ],
    )
    def test_memory_of_weights(self, ram_style, found):
        product = replace(PRODUCT, simd=12, ram_style=ram_style)
        logic = resources(replace(product, mem_mode="external"))
        assert (logic.bram18, logic.uram) == (0, 0)
        assert resources(product) == logic + found

    def test_depthwise_products_are_dsps_on_versal_alone(self):
        product = DepthwiseProduct(16, (3, 3), 64, 4, 4, 12, pe=4, simd=9)
        assert resources(product, "DSP48E2").dsp == 0 < resources(product, "DSP48E2").luts
        assert resources(product, "DSP58") == Resources(dsp=12)

    def test_shallow_depthwise_weights_take_no_block_ram(self):
        shallow = DepthwiseProduct(14, (3, 3), 64, 4, 3, 12)
        deep = replace(shallow, channels=15)
        assert (shallow.weight_words, deep.weight_words) == (126, 135)
        assert (resources(shallow).bram18, resources(deep).bram18) == (0, 1)


class TestThresholds:
    def test_one_memory_a_bit_each_twice_as_deep(self):
        # 16, 32 and 64 words fill one LUT a bit, 128 two, 256 four
        assert resources(Thresholds(16, 1024, 14, 3)).luts == 14 * 3
        assert resources(Thresholds(16, 1024, 14, 5)).luts == 14 * (3 + 2 + 4)

    def test_exponential_in_the_bits_of_the_output(self):
        luts = [resources(Thresholds(64, 1024, 14, bits)).luts for bits in range(2, 9)]
        ratios = [after / before for before, after in pairwise(luts)]
        assert min(ratios) > 2  # each bit adds a memory as deep as all before it, and one

    def test_parallel_channels_have_tables_of_their_own(self):
        assert resources(Thresholds(16, 1024, 14, 3, pe=16)).luts == 16 * 14 * 3

    def test_deep_tables_go_where_they_are_sent(self):
        table = Thresholds(64, 1024, 14, 8)
        in_brams = resources(replace(table, bram_from=512, uram_from=10**6))
        # 64, 128 and 256 words stay; 512 to 1024 words of 14 bits take a memory of 18 bits
        assert in_brams.luts == 14 * (1 + 2 + 4)
        assert in_brams.bram18 == 1 + 1 + 2 + 4 + 8
        assert resources(replace(table, uram_from=4096)).uram == 2

    def test_one_bound_alone_sends_all_to_ultraram(self):
        assert resources(Thresholds(64, 1024, 14, 3, bram_from=512)) == Resources(uram=3)


class TestWindows:
    def test_lines_in_luts(self):
        # two lines of 34 and 3 of the third, each of 16 channels; 8 bits
        window = Window(16, (34, 34), (3, 3), 8)
        assert resources(window).luts == 300 + 8 * -(-71 * 16 // 38)
        assert resources(replace(window, simd=16)).luts == 300 + 128 * 2

    def test_a_stride_reads_ahead(self):
        window = Window(1, (64, 64), (3, 3), 1, stride=(2, 2))
        assert resources(window).luts == 300 + -(-(131 + 64 - 9) // 38)

    def test_whole_windows_keep_lines_and_a_kernel(self):
        window = Window(4, (34, 34), (3, 3), 8, simd=4, parallel=True)
        assert resources(window).luts == 300 + 32 * 2
        assert resources(replace(window, ram_style="block")) == Resources(300, bram18=2)

    def test_lines_in_memories(self):
        window = Window(16, (34, 34), (3, 3), 8, ram_style="block")
        assert resources(window) == Resources(300, bram18=1)
        assert resources(replace(window, ram_style="ultra")) == Resources(300, uram=1)


def test_width_converters():
    # up through the least common multiple: 12 bits, twice and once; then down by 3
    assert resources(WidthConverter(4, 12)) == Resources(luts=1 + 12)
    assert resources(WidthConverter(12, 4)) == Resources(luts=2 + 4)
    assert resources(WidthConverter(4, 6)) == Resources(luts=1 + 12 + 1 + 6)
    assert resources(WidthConverter(6, 6)) == Resources()


@pytest.mark.parametrize(
    ("node", "taken"),
    [
        (Addition(16, 64, pe=2), 512),
        (Duplication(16, 64), 1024),
        (Padding(3, 100), 300),
        (PositionSum(16, 64, pe=4), 260),
        (Pool(16, (2, 2), 16, pe=2), 512),
    ],
)
def test_finn_counts_nothing_for_what_only_passes_on(node, taken):
    assert resources(node) == Resources()
    assert cycles(node) == taken


def test_totals():
    nodes = [PRODUCT, replace(PRODUCT, weight_bits=4, activation_bits=4), Thresholds(16, 1, 14, 3)]
    assert total(nodes) == resources(nodes[0]) + resources(nodes[1]) + Resources(luts=42)
    assert total([]) == Resources()


class TestMemories:
    @pytest.mark.parametrize(
        ("width", "depth", "count"),
        [(1, 16384, 1), (1, 16385, 2), (2, 8192, 1), (3, 4096, 1), (9, 2048, 1), (10, 1024, 1)],
    )
    def test_the_narrowest_shape_holds_a_word(self, width, depth, count):
        assert bram18_for_weights(width, depth, True) == count

    def test_wide_words(self):
        assert bram18_for_weights(36, 512, True) == 1
        assert bram18_for_weights(36, 513, True) == 2
        assert bram18_for_weights(36, 512, False) == 2  # without the parity bits: 32
        assert bram18_for_weights(9, 2048, False) == 2

    def test_lines(self):
        assert [bram18_for_lines(36, depth) for depth in (0, 1, 512, 513, 2049)] == [0, 1, 1, 2, 9]

    def test_least_waste_is_the_first_of_equals(self):
        assert least_waste(72, 4096) == ("uram", 1)
        assert least_waste(36, 512) == ("bram18", 1)
        assert least_waste(5, 64) == ("luts", 5)
        assert least_waste(5, 64, ("bram18",)) == ("bram18", 1)


class TestRefused:
    @dataclass(frozen=True)
    class Unknown(Node):
        channels: int = 4

    def test_kinds_without_a_rule(self):
        with pytest.raises(HardwareError, match=r"expected one of .*'Window'.* got Unknown"):
            resources(self.Unknown())
        with pytest.raises(HardwareError, match=r"cycles: expected one of .* got WidthConverter"):
            cycles(WidthConverter(4, 8))

    def test_kinds_of_dsp(self):
        with pytest.raises(HardwareError, match=r"dsp: expected one of \['DSP48E1', .* 'DSP48'"):
            resources(PRODUCT, "DSP48")

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: replace(PRODUCT, pe=3), "MatrixProduct.pe: expected a divisor of 16, got 3"),
            (lambda: replace(PRODUCT, simd=7), "MatrixProduct.simd: .* divisor of 144, got 7"),
            (lambda: replace(PRODUCT, weight_bits=0), "weight_bits: expected a whole .* 1, got 0"),
            (lambda: replace(PRODUCT, positions=-1), "positions: expected .* least 1, got -1"),
            (lambda: replace(PRODUCT, ram_style="bram"), "ram_style: .* distributed.* got 'bram'"),
            (lambda: replace(PRODUCT, mem_mode="dram"), "mem_mode: expected one of internal_dec"),
            (lambda: Thresholds(16, 1, 8, 2, bram_from=-1), "bram_from: expected .* at least 0"),
            (lambda: replace(PRODUCT, weight_bits=3.5), "expected a whole number, .* got 3.5"),
            (lambda: replace(PRODUCT, simd=True), "MatrixProduct.simd: .* got True"),
            (lambda: Window(4, (9, 9, 9), (3, 3), 8), "Window.size: expected a pair"),
            (lambda: Window(4, (9, 9), (3, 0), 8), "Window.kernel: expected a whole .* got 0"),
            (lambda: Window(4, (2, 2), (3, 3), 8), r"size: expected at least \(3, 3\)"),
            (lambda: Window(4, (9, 9), (3, 3), 8, simd=3), "Window.simd: .* divisor of 4, got 3"),
            (lambda: DepthwiseProduct(8, (3, 3), 1, 2, 2, 8, simd=2), "simd: .* divisor of 9"),
            (lambda: Addition(16, 4, pe=5), "Addition.pe: expected a divisor of 16, got 5"),
            (lambda: Pool(16, (2, 2), 4, pe=5), "Pool.pe: expected a divisor of 16, got 5"),
        ],
    )
    def test_layers_that_cannot_be(self, make, message):
        with pytest.raises(HardwareError, match=message):
            make()
