"""What an export was asked for, checked before any work is done."""

import importlib
from collections.abc import Sequence

import torch
from torch import Tensor

from brevitas_multiquant.core.image_shapes import is_image_shape
from brevitas_multiquant.core.precision import Assignment, Setting
from brevitas_multiquant.core.selection import chosen_bits
from brevitas_multiquant.errors import BitWidthError, ExportError
from brevitas_multiquant.nn.network import MultiQuantNet

PACKAGES = ("onnx", "onnxoptimizer", "onnxruntime", "qonnx")


def require_packages() -> None:
    """Check that the optional packages of the export are installed.

    Raises:
        ExportError: one is missing.
    """
    for package in PACKAGES:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ExportError(
                f"export: expected the package {package}, which cannot be imported ({error}); "
                'pip install "brevitas-multiquant[export]"'
            ) from error


def require_graph(net: MultiQuantNet) -> None:
    """Check that a file can hold what the network does: no control flow on data.

    Raises:
        ExportError: a module that could not be traced; the file would hold one of its paths.
    """
    opaque = getattr(net.plan, "opaque", [])
    if opaque:
        raise ExportError(
            f"export: expected a network without control flow on data, got {opaque[0]}, which "
            f"could not be traced; a file holds one path alone: {'; '.join(net.plan.untraced)}"
        )


def requested_bits(net: MultiQuantNet, bits: Sequence[int] | None) -> tuple[int, ...]:
    """The bit-widths to export, ascending: all candidates unless told otherwise.

    Raises:
        BitWidthError: none, or one that is not a candidate of the network.
    """
    if bits is None:
        return net.bits
    return chosen_bits(bits, net.bits, "export")


def requested_settings(
    net: MultiQuantNet, bits: Sequence[int] | None, assignments: Sequence[Assignment]
) -> dict[Setting, Setting]:
    """The bit-widths to export, then the assignments.

    Args:
        net: the network.
        bits: as of `requested_bits`; there may be none where there are assignments.
        assignments: of the network; sites that they leave out have the network's bits.

    Returns:
        Bit-width, or assignment as it was given -> the same with every site named, which is a
        bit-width where no site has another one.

    Raises:
        BitWidthError: not candidates of the network, or an assignment that does not fit it.
    """
    if isinstance(assignments, Assignment) or not all(
        isinstance(one, Assignment) for one in assignments
    ):
        raise BitWidthError(
            f"export: expected assignments as a list of Assignment, got {assignments!r}"
        )
    none = isinstance(bits, Sequence) and not bits and assignments
    chosen: dict[Setting, Setting] = {}
    if not none:
        chosen |= {bit: bit for bit in requested_bits(net, bits)}
    for one in assignments:
        chosen[one] = net.view(net._checked("export", one)).setting
    return chosen


def requested_shape(net: MultiQuantNet, input_shape: Sequence[int] | None) -> tuple[int, ...]:
    """The image shape of the files: the network's own unless told otherwise.

    Raises:
        ExportError: not (N, C, H, W) or (N, C, T, H, W), as the network takes, in positive
            integers; or channels that the network does not take.
    """
    shape = tuple(input_shape) if isinstance(input_shape, Sequence) else input_shape
    if shape is None:
        shape = net.input_shape
    own = len(net.input_shape) if net.input_shape is not None else 4
    if not is_image_shape(shape) or len(shape) != own:  # type: ignore[arg-type]
        how_many, dimensions = _DIMENSIONS[own]
        raise ExportError(
            f"export: expected input_shape as {how_many} positive integers {dimensions}, got "
            f"{shape!r}"
        )
    assert shape is not None
    if net.input_shape is not None and shape[1] != net.input_shape[1]:
        raise ExportError(
            f"export: expected input_shape with {net.input_shape[1]} channels, as the network "
            f"takes, got {tuple(shape)}"
        )
    return shape


_DIMENSIONS = {4: ("four", "(N, C, H, W)"), 5: ("five", "(N, C, T, H, W)")}


def requested_images(images: Tensor, shape: Sequence[int]) -> Tensor:
    """Images to compare on, as fp32 on the CPU.

    Args:
        images: (M, C, H, W) or (M, C, T, H, W), any M.
        shape: of the files.

    Raises:
        ExportError: not a tensor of images of that size, or none.
    """
    if not isinstance(images, Tensor) or images.dim() != len(shape) or not len(images):
        got = f"a tensor of shape {tuple(images.shape)}" if isinstance(images, Tensor) else images
        _, dimensions = _DIMENSIONS[len(shape)]
        wanted = dimensions.replace("N", "M")
        raise ExportError(f"export: expected images as a tensor {wanted}, got {got!r}")
    if images.shape[1:] != torch.Size(shape[1:]):
        raise ExportError(
            f"export: expected images of (M, {', '.join(map(str, shape[1:]))}), as the files take, "
            f"got {tuple(images.shape)}; resize them, or pass input_shape="
        )
    return images.detach().float().cpu()
