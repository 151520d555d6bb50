"""The branches: they read the stem's codes; what is added or averaged is on a fixed-point grid."""

from torch import fx

from brevitas_multiquant.nn.switchable import SwitchableQuantizer
from brevitas_multiquant.profiles.finn.graph import first_channels, module_of, source_of
from brevitas_multiquant.profiles.finn.modules import CodesToValues, operand_bits
from brevitas_multiquant.profiles.finn.operands import quantize_operands
from brevitas_multiquant.profiles.finn.stem import FIRST
from brevitas_multiquant.profiles.profile import Parts


def quantize_branches(parts: Parts) -> None:
    """Every branch reads the stem's codes, and has quantizers at its sums and averages."""
    first = parts.stem.get_submodule(FIRST)
    assert isinstance(first, SwitchableQuantizer)
    for branch, bits in parts.branches_and_bits():
        _read_codes(branch, first_channels(source_of(branch)), first)
        quantize_operands(branch, {bit: operand_bits(bit) for bit in bits}, parts)
        branch.recompile()


def _read_codes(branch: fx.GraphModule, source: fx.Node, first: SwitchableQuantizer) -> None:
    """Layers read the stem's codes as they are, everybody else the values they stand for."""
    readers = list(source.users)
    own = [node for node in readers if isinstance(module_of(branch, node), SwitchableQuantizer)]
    others = [reader for reader in readers if reader not in own]
    if others:
        branch.add_submodule("stem_values", CodesToValues(first))
        with branch.graph.inserting_after(source):
            values = branch.graph.call_module("stem_values", (source,))
        for reader in others:
            reader.replace_input_with(source, values)
    for reader in own:
        reader.replace_all_uses_with(source)
        branch.graph.erase_node(reader)
        branch.delete_submodule(str(reader.target))
