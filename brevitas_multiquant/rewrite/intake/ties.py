"""Parameters that several places share: a branch could not keep them one."""

from collections.abc import Iterable, Mapping

from torch import Tensor, fx, nn

from brevitas_multiquant.rewrite.graph.kinds import is_norm
from brevitas_multiquant.rewrite.graph.trace import Trace


def tied_parameters(model: nn.Module) -> list[str]:
    """Reasons to refuse a model in which two modules share a parameter, or its memory.

    Each layer of a branch has codes and a range of its own, and each bit-width its own norms; a
    module that is called several times is one layer and stays one.
    """
    owners: dict[tuple[int, ...], list[str]] = {}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(_place(parameter), []).append(f"{path}.{name}".lstrip("."))
    return [
        f"{' and '.join(names)} are one parameter (tied weights): expected a parameter for each "
        f"layer; call one module several times, or untie them before: {names[-1]} = "
        "nn.Parameter(...detach().clone())"
        for names in owners.values()
        if len(names) > 1
    ]


def _place(parameter: Tensor) -> tuple[int, ...]:
    """Where a parameter lies in memory; itself where it has none."""
    if parameter.is_meta or not parameter.numel():
        return (id(parameter),)
    return (parameter.data_ptr(), *parameter.shape, *parameter.stride())


def shared_between_parts(traced: Trace, parts: Mapping[str, Iterable[fx.Node]]) -> list[str]:
    """Reasons to refuse a cut that a module with parameters runs on both sides of.

    Args:
        traced: the model's graph.
        parts: ``"stem"``, ``"branch"`` and ``"head"`` -> their nodes.
    """
    seen: dict[int, tuple[str, str]] = {}
    reasons: dict[str, None] = {}
    for part, nodes in parts.items():
        for node in nodes:
            for tensor in _trained_in(traced, node):
                called = str(node.target) if node.op == "call_module" else node.name
                name, first = seen.setdefault(id(tensor), (called, part))
                if first != part:
                    reasons[
                        f"{name} runs in the {first} and in the {part}: expected modules that run "
                        "in one part, since each part has its own copy; give each place a module "
                        "of its own, or move the cut with stem= or head="
                    ] = None
    return list(reasons)


def _trained_in(traced: Trace, node: fx.Node) -> Iterable[Tensor]:
    """Parameters that a node works with, and running statistics."""
    for source in node.all_input_nodes:
        if source.op == "get_attr":
            path, _, name = str(source.target).rpartition(".")
            parameter = traced.model.get_submodule(path)._parameters.get(name)
            yield from () if parameter is None else (parameter,)
    module = traced.module(node)
    if module is not None:
        yield from module.parameters()
        yield from module.buffers() if is_norm(module) else ()
