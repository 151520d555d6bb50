"""Where the network is cut, found from the graph alone.

A *separator* is a node that every path from the image to the logits passes. The stem ends at the
first separator behind the first convolutions: the first convolution itself where there is one, the
sum of its parallel parts where the stem is re-parameterised; with the norm and whatever
parameter-free separators follow. The head starts at the last separator before the last layers: the
classifier, or several parallel ones; the linear parameter-free separators before it (pooling,
flatten, dropout) belong to the head with it.
"""

import torch
import torch.nn.functional as F
from torch import fx, nn

from brevitas_multiquant.quant.layers import WEIGHTED
from brevitas_multiquant.rewrite.graph.kinds import has_parameters, is_norm
from brevitas_multiquant.rewrite.graph.paths import image_path, nodes_between, separators
from brevitas_multiquant.rewrite.graph.trace import Trace, shape_of

CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d)
_STATELESS_LINEAR_MODULES = (
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.Flatten,
    nn.Dropout,
    nn.Dropout2d,
    nn.Identity,
)
_STATELESS_LINEAR_CALLS = {
    torch.flatten,
    torch.mean,
    F.adaptive_avg_pool2d,
    F.avg_pool2d,
    "flatten",
    "mean",
    "view",
    "reshape",
    "squeeze",
}


class Joints:
    """Finds the two nodes at which a traced model is cut; collects reasons where it cannot.

    Args:
        traced: the model's graph.
        reasons: where a reason to refuse the model is added.
        firsts: kinds of layers that a stem ends behind.
    """

    def __init__(
        self,
        traced: Trace,
        reasons: list[str],
        firsts: tuple[type[nn.Module], ...] = CONVOLUTIONS,
    ) -> None:
        self._firsts = firsts
        self._traced = traced
        self._reasons = reasons
        self._path = image_path(traced)
        self._separators = separators(self._path)

    def stem_end(self, name: str | None = None) -> fx.Node | None:
        """The node whose output the branches read; ``name``: of the module that ends the stem."""
        if name is not None:
            inside = self._separators_in(name, "stem")
            return inside[-1] if inside else None
        end = first = self._first_joint()
        if first is None:
            self._reasons.append(
                "expected at least one convolution between image and logits, found none"
            )
            return None
        for node in self._separators[self._separators.index(first) + 1 :]:
            module = self._traced.module(node)
            owned_norm = is_norm(module) and end is first
            if node.all_input_nodes != [end] or (has_parameters(module) and not owned_norm):
                break
            if "protects" in node.meta:  # each branch makes its own copy
                break
            end = node
        return end

    def head_start(self, name: str | None = None) -> fx.Node | None:
        """The node whose output the head reads; ``name``: of the module that starts the head."""
        if name is not None:
            inside = self._separators_in(name, "head")
            return inside[0].all_input_nodes[0] if inside else None
        start = self._last_joint()
        while start in self._separators and self._is_stateless_linear(start):
            start = start.all_input_nodes[0]
        return start

    def _first_joint(self) -> fx.Node | None:
        """The first separator behind every convolution that no other convolution comes before."""
        behind: set[fx.Node] = set()
        firsts = []
        for node in self._path:
            convolution = isinstance(self._traced.module(node), self._firsts)
            after = any(source in behind for source in node.all_input_nodes)
            if convolution and not after:
                firsts.append(node)
            if convolution or after:
                behind.add(node)
        if not firsts:
            return None
        rest = self._path[self._path.index(firsts[-1]) :]
        return next((node for node in rest if node in set(self._separators)), None)

    def _last_joint(self) -> fx.Node | None:
        """What the classifier reads, or several parallel ones."""
        layers = [n for n in self._path if isinstance(self._traced.module(n), WEIGHTED)]
        before: set[fx.Node] = set()
        for node in reversed(self._path):
            if any(user in before or user in set(layers) for user in node.users):
                before.add(node)
        last = [node for node in layers if node not in before]
        if len(last) == 1 and last[0] in self._separators:
            return last[0].all_input_nodes[0]
        if len(last) > 1 and all(map(self._gives_logits, last)):
            until = self._path[: self._path.index(last[0])]
            return next((n for n in reversed(self._separators) if n in set(until)), None)
        found = f"{last[-1].target} beside others" if last else "none"
        self._reasons.append(
            f"expected a last layer that every path passes (the classifier), found {found}; give "
            "the model a classifier (num_classes), or name where the float head starts (head=...)"
        )
        return None

    def _gives_logits(self, node: fx.Node) -> bool:
        return shape_of(node) == shape_of(self._traced.graph.output_node().args[0])  # type: ignore[arg-type]

    def _separators_in(self, name: str, option: str) -> list[fx.Node]:
        inside = [
            node
            for node in self._separators
            if node.op == "call_module" and f"{node.target}.".startswith(f"{name}.")
        ]
        if not inside:
            self._reasons.append(
                f"{option}={name!r}: expected the name of a module that every path from image to "
                "logits passes, found none of that name"
            )
        return inside

    def _is_stateless_linear(self, node: fx.Node) -> bool:
        module = self._traced.module(node)
        if module is not None:
            return isinstance(module, _STATELESS_LINEAR_MODULES)
        called = node.op in ("call_function", "call_method")
        return called and node.target in _STATELESS_LINEAR_CALLS


def body_between(stem_end: fx.Node, head_start: fx.Node) -> list[fx.Node]:
    """The nodes of a branch; none if the head does not read what the stem gives."""
    body = nodes_between(stem_end, head_start)
    return body if any(stem_end in node.all_input_nodes for node in body) else []
