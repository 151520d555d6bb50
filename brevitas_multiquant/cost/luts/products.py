"""Rules of products: multipliers in LUTs or DSPs, adders, and the memory of the weights."""

from math import ceil
from typing import Literal

from brevitas_multiquant.cost.luts.memory import bram18_for_weights, uram
from brevitas_multiquant.cost.luts.nodes import DepthwiseProduct, MatrixProduct
from brevitas_multiquant.cost.luts.resources import Resources
from brevitas_multiquant.cost.luts.widths import largest_accumulator_bits

DspBlock = Literal["DSP48E1", "DSP48E2", "DSP58"]
DATAPATHS = {"DSP48E1": (18, 25, 48), "DSP48E2": (18, 27, 48), "DSP58": (24, 27, 58)}
"""DSP -> bits of activations, weights and sums that it takes."""
FEWEST_BITS = 4
"""Below, on either side, FINN multiplies in LUTs."""
SHALLOW = 128
"""Weight memories of so few words are not made of block RAM."""


def multiplies_in_dsps(product: MatrixProduct, dsp: DspBlock) -> bool:
    """Whether FINN builds a dense product of DSPs.

    Follows ``SpecializeLayers``, ``_mvu_rtl_possible`` and ``get_dsp_datapath_limits``.

    Args:
        product: the layer.
        dsp: what the board has.

    Example:
        >>> multiplies_in_dsps(MatrixProduct(9, 4, 64, 4, 4, 12), "DSP48E2")
        True
        >>> multiplies_in_dsps(MatrixProduct(9, 4, 64, 3, 8, 12), "DSP48E2")
        False
    """
    activations, weights, sums = DATAPATHS[dsp]
    return (
        min(product.weight_bits, product.activation_bits) >= FEWEST_BITS
        and product.signed_weights
        and (product.narrow or dsp != "DSP48E1")
        # one bit of the signed port is lost to activations without a sign
        and product.activation_bits - product.signed_activations < activations
        and product.weight_bits <= weights
        and product.accumulator_bits <= sums
    )


def depthwise_in_dsps(product: DepthwiseProduct, dsp: DspBlock) -> bool:
    """Whether FINN builds a depthwise product of DSPs: on Versal alone.

    Follows ``SpecializeLayers`` and ``_vvu_rtl_possible``.

    Args:
        product: the layer.
        dsp: what the board has.

    Example:
        >>> product = DepthwiseProduct(8, (3, 3), 64, 4, 4, 12)
        >>> depthwise_in_dsps(product, "DSP48E2"), depthwise_in_dsps(product, "DSP58")
        (False, True)
    """
    return (
        dsp == "DSP58"
        and min(product.weight_bits, product.activation_bits) >= FEWEST_BITS
        and product.signed_weights
        and product.activation_bits - product.signed_activations <= 8
        and product.weight_bits <= 8
    )


def matrix_product(product: MatrixProduct, dsp: DspBlock) -> Resources:
    """Resources of a dense product.

    Follows ``MVAU_rtl.dsp_estimation``: four weights share a DSP48, three products a DSP58.

    Args:
        product: the layer.
        dsp: what the board has.

    Example:
        >>> matrix_product(MatrixProduct(144, 16, 1024, 3, 3, 12, simd=12), "DSP48E2").luts
        544
        >>> matrix_product(MatrixProduct(144, 16, 1024, 4, 4, 12, simd=12), "DSP48E2").dsp
        12
    """
    memory = weight_memory(product)
    if not multiplies_in_dsps(product, dsp):
        return memory + Resources(luts=arithmetic_luts(product))
    if dsp == "DSP58":
        return memory + Resources(dsp=product.pe * ceil(product.simd / 3))
    return memory + Resources(dsp=ceil(product.pe / 4) * product.simd)


def depthwise_product(product: DepthwiseProduct, dsp: DspBlock) -> Resources:
    """Resources of a depthwise product.

    Follows ``VVAU_rtl.dsp_estimation``.

    Args:
        product: the layer.
        dsp: what the board has.

    Example:
        >>> depthwise_product(DepthwiseProduct(8, (3, 3), 64, 2, 4, 9), "DSP48E2").luts
        323
    """
    memory = weight_memory(product)
    if depthwise_in_dsps(product, dsp):
        return memory + Resources(dsp=product.pe * ceil(product.simd / 3))
    return memory + Resources(luts=arithmetic_luts(product))


def arithmetic_luts(product: MatrixProduct | DepthwiseProduct) -> int:
    """LUTs of control, multipliers, adder tree and accumulator, and of weights held in LUTs.

    Follows ``MVAU_hls.lut_estimation`` and ``VVAU_hls.lut_estimation``, whose constants are those
    of the paper on FINN-R (Blott et al., 2018).

    Args:
        product: the layer.
    """
    bits = product.weight_bits + product.activation_bits
    multipliers = product.simd * (2 * ceil(bits / 6) - 1) * bits
    adders = (2 * product.simd - 1) * bits
    accumulator = min(
        product.accumulator_bits,
        largest_accumulator_bits(
            product.fan_in,
            product.weight_bits,
            product.activation_bits,
            product.signed_activations,
        ),
    )
    logic = product.pe * (multipliers + adders + accumulator)
    return int(300 + 1.1 * logic + _weight_luts(product))


def uncounted_weight_luts(product: MatrixProduct | DepthwiseProduct, dsp: DspBlock) -> int:
    """LUTs of weights that FINN's estimate has not: it counts none of a product in DSPs.

    Args:
        product: the layer.
        dsp: what the board has.

    Example:
        >>> product = MatrixProduct(144, 16, 1024, 8, 8, 22, ram_style="distributed")
        >>> matrix_product(product, "DSP48E2").luts, uncounted_weight_luts(product, "DSP48E2")
        (0, 288)
    """
    return _weight_luts(product) if in_dsps(product, dsp) else 0


def in_dsps(product: MatrixProduct | DepthwiseProduct, dsp: DspBlock) -> bool:
    """Whether FINN builds a product, of either kind, of DSPs.

    Args:
        product: the layer.
        dsp: what the board has.
    """
    if isinstance(product, MatrixProduct):
        return multiplies_in_dsps(product, dsp)
    return depthwise_in_dsps(product, dsp)


def _weight_luts(product: MatrixProduct | DepthwiseProduct) -> int:
    place = (product.mem_mode, product.ram_style)
    in_luts = place == ("internal_decoupled", "distributed") or _is_shallow_embedded(product)
    return _word_bits(product) * ceil(product.weight_words / 64) if in_luts else 0


def weight_memory(product: MatrixProduct | DepthwiseProduct) -> Resources:
    """Block RAMs and UltraRAMs of the weights.

    Follows ``bram_estimation`` and ``uram_estimation`` of ``MVAU`` and ``VVAU``. FINN counts deep
    embedded weights of dense products as both, and so does this.

    Args:
        product: the layer.

    Example:
        >>> weight_memory(MatrixProduct(144, 16, 1024, 3, 3, 12, simd=12)).bram18
        1
    """
    if product.mem_mode == "external" or _is_shallow_embedded(product):
        return Resources()
    dense, embedded = isinstance(product, MatrixProduct), product.mem_mode == "internal_embedded"
    depth, width = product.weight_words, _word_bits(product)
    in_brams = embedded or product.ram_style in ("auto", "block")
    if not dense and product.ram_style == "auto" and depth <= SHALLOW:
        in_brams = False
    in_urams = dense if embedded else product.ram_style == "ultra"
    return Resources(
        bram18=bram18_for_weights(width, depth, with_parity=dense) if in_brams else 0,
        uram=uram(width, depth) if in_urams else 0,
    )


def _word_bits(product: MatrixProduct | DepthwiseProduct) -> int:
    return product.pe * product.simd * product.weight_bits


def _is_shallow_embedded(product: MatrixProduct | DepthwiseProduct) -> bool:
    return product.mem_mode == "internal_embedded" and product.weight_words <= SHALLOW
