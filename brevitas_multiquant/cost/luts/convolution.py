"""A convolution and the quantizer behind it, as the layers of hardware that they become."""

from dataclasses import dataclass

from brevitas_multiquant.cost.luts.nodes import (
    DepthwiseProduct,
    MatrixProduct,
    Node,
    Padding,
    Pair,
    Thresholds,
    Window,
)
from brevitas_multiquant.cost.luts.widths import largest_accumulator_bits
from brevitas_multiquant.errors import HardwareError


@dataclass(frozen=True)
class ConvolutionShape:
    """A convolution; a linear layer is a 1x1 convolution of an image of one pixel.

    Args:
        inputs: channels that it reads.
        outputs: channels that it gives.
        size: height and width of its input, without padding.
        kernel: height and width.
        stride: vertical and horizontal.
        padding: rows above and below, columns left and right.
        dilation: vertical and horizontal.
        depthwise: each channel with a kernel of its own; as many outputs as inputs.

    Raises:
        HardwareError: a depthwise one with other outputs than inputs.
    """

    inputs: int
    outputs: int
    size: Pair = (1, 1)
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    depthwise: bool = False

    def __post_init__(self) -> None:
        if self.depthwise and self.inputs != self.outputs:
            raise HardwareError(
                f"ConvolutionShape.outputs: expected {self.inputs}, as many as inputs of a "
                f"depthwise convolution, got {self.outputs}"
            )

    @property
    def padded_size(self) -> Pair:
        """Height and width with the padding."""
        (height, width), (rows, columns) = self.size, self.padding
        return height + 2 * rows, width + 2 * columns

    @property
    def fan_in(self) -> int:
        """Products in one sum."""
        return self.kernel[0] * self.kernel[1] * (1 if self.depthwise else self.inputs)

    def layers(
        self,
        weight_bits: int,
        activation_bits: int,
        output_bits: int = 0,
        *,
        accumulator_bits: int | None = None,
        threshold_bits: int | None = None,
        signed_activations: bool = False,
    ) -> tuple[Node, ...]:
        """Padding, window, product and thresholds, as far as there are any, without parallelism.

        Args:
            weight_bits: of the weights.
            activation_bits: of the input.
            output_bits: of the codes behind it; 0: no quantizer, the sums go on.
            accumulator_bits: of the sums, from the weights where these are known; default: what
                the types allow, usually two or three bits too many.
            threshold_bits: of the thresholds, from the tables where these are known; default: as
                wide as the sums.
            signed_activations: whether the input can be negative.

        Example:
            >>> shape = ConvolutionShape(16, 16, (32, 32), (3, 3), padding=(1, 1))
            >>> [type(layer).__name__ for layer in shape.layers(3, 3, 4)]
            ['Padding', 'Window', 'MatrixProduct', 'Thresholds']
            >>> [type(layer).__name__ for layer in ConvolutionShape(64, 10).layers(8, 8)]
            ['MatrixProduct']
        """
        sums = accumulator_bits or largest_accumulator_bits(
            self.fan_in, weight_bits, activation_bits, signed_activations
        )
        window = self._window(activation_bits)
        height, width = window.output_size
        bits = (weight_bits, activation_bits, sums, signed_activations)
        layers: list[Node] = []
        if any(self.padding):
            layers.append(Padding(self.inputs, window.size[0] * window.size[1]))
        if (self.kernel, self.stride) != ((1, 1), (1, 1)):
            layers.append(window)
        if self.depthwise:
            layers.append(DepthwiseProduct(self.inputs, self.kernel, height * width, *bits))
        else:
            layers.append(MatrixProduct(self.fan_in, self.outputs, height * width, *bits))
        if output_bits:
            table = (threshold_bits or sums, output_bits)
            layers.append(Thresholds(self.outputs, height * width, *table))
        return tuple(layers)

    def _window(self, activation_bits: int) -> Window:
        return Window(
            *(self.inputs, self.padded_size, self.kernel, activation_bits),
            stride=self.stride,
            dilation=self.dilation,
            depthwise=self.depthwise and self.kernel != (1, 1),
        )
