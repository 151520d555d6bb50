"""Guards of what holds for one size of image alone."""

from torch import Tensor

from brevitas_multiquant.errors import InputSizeError


def traced_size(x: Tensor, positions: tuple[int, ...], value: int) -> int:
    """``value``, as long as images have the size that the network was converted for.

    Args:
        x: what the part reads, (N, C, ...).
        positions: the sizes of ``x`` behind its channels, for such images.
        value: what was read from the image, or from a tensor of another part.

    Raises:
        InputSizeError: ``x`` comes from images of another size.

    Example:
        >>> import torch
        >>> traced_size(torch.zeros(2, 8, 16, 16), (16, 16), 32)
        32
    """
    if tuple(x.shape[2:]) != positions:
        raise InputSizeError(
            f"expected images of the size that the network was converted for, whose features are "
            f"{positions}, got features of {tuple(x.shape[2:])}: the model reads a size in one "
            f"part and uses it in another ({value} here); convert it with the input_shape you need"
        )
    return value


def images_of_size(x: Tensor, positions: tuple[int, ...]) -> Tensor:
    """The images, if they have the size that the network was converted for.

    Args:
        x: images, (N, C, H, W).
        positions: (H, W).

    Raises:
        InputSizeError: they have another size.

    Example:
        >>> import torch
        >>> images_of_size(torch.zeros(2, 3, 16, 16), (16, 16)).shape
        torch.Size([2, 3, 16, 16])
    """
    if tuple(x.shape[2:]) != positions:
        raise InputSizeError(
            f"expected images of {positions}, got {tuple(x.shape[2:])}: the model's forward takes "
            "numbers from the size of its images, which were decided when it was converted (see "
            "net.plan.notes); convert it with the input_shape you need"
        )
    return x
