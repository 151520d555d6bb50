"""Where the network is cut, found from the graph alone.

A *separator* is a node that every path from the image to the outputs passes. The stem ends at the
first separator behind the first convolutions: the first convolution itself where there is one, the
sum of its parallel parts where the stem is re-parameterised; with the norm and whatever
parameter-free separators follow. Where other layers stand before that separator, as in networks of
several paths, the stem ends behind each of the first convolutions.

The head is the *output layers* and whatever follows: layers that no other layer comes behind, with
no parameters and nothing of a branch between them and the outputs. That is the classifier, several
parallel ones, or the last convolution of each output. An output without such a layer, as that of a
residual block, is a branch's own: the head reads it as it is. The linear parameter-free nodes in
front (pooling, flatten, dropout) belong to the head with it.
"""

from collections.abc import Collection, Iterable

import torch
import torch.nn.functional as F
from torch import fx, nn

from brevitas_multiquant.errors import did_you_mean
from brevitas_multiquant.quant.layers import CONVOLUTIONS, WEIGHTED
from brevitas_multiquant.rewrite.graph.kinds import has_parameters, is_norm
from brevitas_multiquant.rewrite.graph.paths import (
    descendants,
    image_path,
    nodes_between,
    separators,
)
from brevitas_multiquant.rewrite.graph.sizes import Joint
from brevitas_multiquant.rewrite.graph.trace import Trace, is_tensor, shape_of

_STATELESS_LINEAR_MODULES = (
    *(nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool3d),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.Flatten, nn.Identity),
)
_STATELESS_LINEAR_CALLS = {
    torch.flatten,
    torch.mean,
    F.adaptive_avg_pool2d,
    F.avg_pool2d,
    F.adaptive_avg_pool3d,
    F.avg_pool3d,
    "flatten",
    "mean",
    "view",
    "reshape",
    "squeeze",
}


NOTHING = "none"
"""In place of a module's name: nothing is stem, or head, and all layers are in the branches."""


class Joints:
    """Finds the tensors at which a traced model is cut; collects reasons where it cannot.

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
        self._kinds = firsts
        self._traced = traced
        self._reasons = reasons
        self._path = image_path(traced)
        self._on_path = set(self._path)
        self._separators = separators(self._path)
        self._layers = [n for n in self._path if isinstance(traced.module(n), WEIGHTED)]

    def find(self, stem: str | None = None, head: str | None = None) -> tuple[Joint, Joint]:
        """The tensors that the stem hands to the branches, and the branches to the head.

        What the head reads of the stem's is in both.

        Args:
            stem: name of the module that ends the stem, or `NOTHING`.
            head: name of the module that starts the head, or `NOTHING`.
        """
        behind = self._head() if head is None else self._named_head(head)
        before = self._stem(behind) if stem is None else self._named_stem(stem, behind)
        if self._reasons:
            return (), ()
        read = self._frontier(behind)
        before -= behind
        rest = set(self._path) - before - behind
        used = {source for node in rest for source in node.all_input_nodes} | set(read)
        return self._ordered((before | {self._traced.image}) & used), read

    def _ordered(self, nodes: Collection[fx.Node]) -> Joint:
        return tuple(node for node in self._path if node in nodes)

    def _frontier(self, behind: Collection[fx.Node]) -> Joint:
        """What the head reads, and outputs that are not made in it."""
        read = {source for node in behind for source in node.all_input_nodes}
        return self._ordered(({*read, *self._traced.outputs} & self._on_path) - set(behind))

    def _stem(self, behind: Collection[fx.Node]) -> set[fx.Node]:
        """The nodes of the stem."""
        firsts = self._firsts()
        if not firsts:
            self._reasons.append(
                "expected at least one convolution between image and logits, found none"
            )
            return set()
        rest = self._path[self._path.index(firsts[-1]) :]
        joint = next((node for node in rest if node in set(self._separators)), None)
        if joint is not None and joint not in behind:
            single = set(nodes_between([self._traced.image], [joint])) | {joint}
            if not any(layer in single and layer not in firsts for layer in self._layers):
                return single | set(self._followers(joint))
        return self._of_image() | {
            node for first in firsts for node in (first, *self._followers(first))
        }

    def _firsts(self) -> list[fx.Node]:
        """Every convolution that no other convolution comes before."""
        behind: set[fx.Node] = set()
        firsts = []
        for node in self._path:
            convolution = isinstance(self._traced.module(node), self._kinds)
            after = any(source in behind for source in node.all_input_nodes)
            if convolution and not after:
                firsts.append(node)
            if convolution or after:
                behind.add(node)
        return firsts

    def _followers(self, first: fx.Node) -> Iterable[fx.Node]:
        """The norm that a first convolution owns, and what follows it without parameters."""
        end = first
        while len(users := [user for user in end.users if user in self._on_path]) == 1:
            (node,) = users
            module = self._traced.module(node)
            owned_norm = is_norm(module) and end is first
            if node.all_input_nodes != [end] or (has_parameters(module) and not owned_norm):
                break
            if not is_tensor(node) or "protects" in node.meta:  # each branch makes its own copy
                break
            yield node
            end = node

    def _of_image(self) -> set[fx.Node]:
        """What is computed of the image without a parameter, such as smaller images."""
        found = {self._traced.image}
        for node in self._path:
            free = not has_parameters(self._traced.module(node)) and node.op != "output"
            sources = [source for source in node.all_input_nodes if source in self._on_path]
            if free and sources and found.issuperset(sources):
                found.add(node)
        return found

    def _head(self) -> set[fx.Node]:
        """The nodes of the head."""
        last = self._last_layers()
        parallel = self._before_parallel(last)
        if parallel is not None:
            behind = set(self._path[self._path.index(parallel) + 1 :])
        else:
            behind = descendants(self._output_layers(last), self._on_path)
        return self._with_linear_nodes_before(behind - {self._traced.graph.output_node()})

    def _last_layers(self) -> list[fx.Node]:
        """The layers that no layer comes behind."""
        before: set[fx.Node] = set()
        for node in reversed(self._path):
            if any(user in before or user in set(self._layers) for user in node.users):
                before.add(node)
        return [node for node in self._layers if node not in before]

    def _before_parallel(self, last: list[fx.Node]) -> fx.Node | None:
        """What several parallel classifiers of one output read."""
        outputs = self._traced.outputs
        shapes = {shape_of(node) for node in (*last, *outputs)}
        if len(last) < 2 or len(outputs) > 1 or len(shapes) > 1 or len(shape_of(last[0])) > 2:
            return None
        until = set(self._path[: self._path.index(last[0])])
        return next((node for node in reversed(self._separators) if node in until), None)

    def _output_layers(self, last: list[fx.Node]) -> list[fx.Node]:
        """The last layers that make outputs: without parameters, or a branch's tensors, behind."""
        of_image = self._of_image()
        chosen = list(last)
        while True:
            behind = descendants(chosen, self._on_path)
            known = behind | of_image
            foreign = {
                node
                for node in behind - set(chosen)
                if has_parameters(self._traced.module(node))
                or not known.issuperset(s for s in node.all_input_nodes if s in self._on_path)
            } - {self._traced.graph.output_node()}
            kept = [n for n in chosen if foreign.isdisjoint(descendants([n], self._on_path))]
            if kept == chosen:
                return kept
            chosen = kept

    def _with_linear_nodes_before(self, behind: set[fx.Node]) -> set[fx.Node]:
        """Pooling and the like belong to the head where nothing but the head reads them."""
        found = set(behind)
        last = self._traced.graph.output_node()
        for node in reversed(self._path):
            users = [user for user in node.users if user in self._on_path]
            if self._is_stateless_linear(node) and found.issuperset(u for u in users if u != last):
                found.add(node)
        return found

    def _named_stem(self, name: str, behind: Collection[fx.Node]) -> set[fx.Node]:
        if name == NOTHING:
            return set()
        inside = self._inside(name, "stem")
        if not inside:
            return set()
        if not inside.isdisjoint(behind):
            self._reasons.append(
                f"stem={name!r}: expected a module in front of the head, which starts after "
                f"{', '.join(node.name for node in self._frontier(behind))}, got one in it"
            )
            return set()
        (*_, end) = (node for node in self._path if node in inside)
        return set(nodes_between([self._traced.image], [end])) | {end}

    def _named_head(self, name: str) -> set[fx.Node]:
        if name == NOTHING:
            return set()
        behind = descendants(self._inside(name, "head"), self._on_path)
        return behind - {self._traced.graph.output_node()}

    def _inside(self, name: str, option: str) -> set[fx.Node]:
        """The nodes of a module."""
        inside = {
            node
            for node in self._path
            if node.op == "call_module" and f"{node.target}.".startswith(f"{name}.")
        }
        if not inside:
            ran = {str(node.target) for node in self._path if node.op == "call_module"}
            known = [inner for inner, _ in self._traced.model.named_modules() if inner]
            near = [n for n in known if any(f"{one}.".startswith(f"{n}.") for one in ran)]
            self._reasons.append(
                f"{option}={name!r}: expected the name of a module that runs between image and "
                f"outputs, found none of that name{did_you_mean(name, near)}"
            )
        return inside

    def _is_stateless_linear(self, node: fx.Node) -> bool:
        module = self._traced.module(node)
        if module is not None:
            return isinstance(module, _STATELESS_LINEAR_MODULES)
        called = node.op in ("call_function", "call_method")
        return called and node.target in _STATELESS_LINEAR_CALLS
