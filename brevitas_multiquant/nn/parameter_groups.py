"""Which parameters of a network an optimizer treats in which way."""

from collections.abc import Iterator

from torch import nn

from brevitas_multiquant.quant.ranges import LearnedRange


class ParameterGroups(nn.Module):
    """Ranges for an optimizer of their own, and everything else."""

    def range_parameters(self) -> Iterator[nn.Parameter]:
        """The trainable ranges of all quantizers, for an optimizer of their own.

        The l and u of each; or its step, where a method trains that. There are none where data do
        not change ranges, as those of Any-Precision: then no optimizer is needed for them.
        """
        for module in self.modules():
            if isinstance(module, LearnedRange):
                yield from module.parameters(recurse=False)

    def model_parameters(self) -> Iterator[nn.Parameter]:
        """Every parameter that is neither a range nor of a search for bit-widths."""
        learned = (m for m in self.modules() if getattr(m, "learns_apart", False))
        others = (parameter for module in learned for parameter in module.parameters())
        apart = {id(parameter) for parameter in (*self.range_parameters(), *others)}
        return (parameter for parameter in self.parameters() if id(parameter) not in apart)
