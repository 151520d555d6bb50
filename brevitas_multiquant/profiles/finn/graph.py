"""Small changes of a part's graph, and what its nodes are."""

from typing import Any

from torch import fx, nn

from brevitas_multiquant.profiles.finn.quantizers import fixed_point_layer
from brevitas_multiquant.profiles.profile import Parts


def source_of(part: fx.GraphModule) -> fx.Node:
    """What a part's graph reads."""
    return next(node for node in part.graph.nodes if node.op == "placeholder")


def first_channels(source: fx.Node) -> fx.Node:
    """What a half branch reads of the stem's output; the output itself in a whole one."""
    (reader, *others) = source.users
    cut = not others and reader.op == "call_method" and reader.target == "narrow"
    return reader if cut else source


def result_of(part: fx.GraphModule) -> fx.Node:
    """What a part's graph returns."""
    result = part.graph.output_node().args[0]
    assert isinstance(result, fx.Node)
    return result


def module_of(part: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that a node calls; None for any other node."""
    return part.get_submodule(str(node.target)) if node.op == "call_module" else None


def is_call(node: fx.Node) -> bool:
    """Whether a node calls a function or a method."""
    return node.op in ("call_function", "call_method")


def insert_after(part: fx.GraphModule, node: fx.Node, name: str, module: nn.Module) -> None:
    """Everybody who reads ``node`` reads what the module makes of it."""
    part.add_submodule(name, module)
    with part.graph.inserting_after(node):
        inserted = part.graph.call_module(name, (node,))
    node.replace_all_uses_with(inserted, lambda user: user is not inserted)
    inserted.meta = dict(node.meta)


def insert_before(
    part: fx.GraphModule, reader: fx.Node, source: fx.Node, name: str, module: nn.Module
) -> fx.Node:
    """One reader of ``source`` reads what the module makes of it."""
    part.add_submodule(name, module)
    with part.graph.inserting_before(reader):
        inserted = part.graph.call_module(name, (source,))
    inserted.meta = dict(source.meta)
    reader.replace_input_with(source, inserted)
    return inserted


def call_instead(node: fx.Node, part: fx.GraphModule, name: str, module: nn.Module) -> None:
    """The node calls a module of the same operands instead of what it called."""
    part.add_submodule(name, module)
    node.op, node.target = "call_module", name


def swap_layers(parts: Parts, part: fx.GraphModule) -> None:
    """8-bit layers in place of float ones of a kind that hardware has."""
    swapped = []
    for name, module in list(part.named_modules()):
        quantized: Any = fixed_point_layer(module, parts.active)
        if quantized is not None:
            parent, _, leaf = name.rpartition(".")
            setattr(part.get_submodule(parent), leaf, quantized)
            swapped.append(name)
    parts.plan.set_treatment(swapped, "8 bits, shared")
