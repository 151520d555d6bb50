"""Brevitas's injectors in pickles: classes that are made while a layer is built have no name.

They become the nearest class that can be imported, and what was let in since. What they hold of
the layer itself, the layer gives them again (`reconnect`).
"""

import copyreg
import sys
from collections.abc import Iterator
from typing import Any

from _dependencies.raw import _RawSpec
from brevitas.inject import ExtendedInjector
from brevitas.proxy.quant_proxy import QuantProxyFromInjector
from torch import nn

_OF_THE_LAYER = frozenset({"proxy_module", "module", "tracked_parameter_list"})


def reconnect(network: nn.Module) -> None:
    """Give the injectors of an unpickled network their layers, for a quantizer that is made anew.

    Example:
        >>> import pickle
        >>> from brevitas.nn import QuantConv2d
        >>> conv = pickle.loads(pickle.dumps(QuantConv2d(3, 8, 3)))
        >>> reconnect(conv)
        >>> conv.weight_quant.quant_injector.module is conv
        True
    """
    for proxy in network.modules():
        if isinstance(proxy, QuantProxyFromInjector) and "proxy_module" not in proxy.quant_injector:
            proxy.quant_injector = proxy.quant_injector.let(proxy_module=proxy)
            if proxy.tracked_module_list:
                proxy.update_tracked_modules()


def _reduced(injector: Any) -> Any:
    named = next(base for base in injector.__mro__ if _can_be_imported(base))
    if named is injector:
        return injector.__qualname__
    return _with, (named, dict(_let_in_since(named, injector)))


def _can_be_imported(kind: type) -> bool:
    return getattr(sys.modules.get(kind.__module__), kind.__qualname__, None) is kind


def _let_in_since(named: Any, injector: Any) -> Iterator[tuple[str, Any]]:
    known = getattr(named, "__dependencies__", {})
    for name, spec in injector.__dependencies__.items():
        if name in _OF_THE_LAYER or spec is known.get(name):
            continue
        source = spec[1]
        yield name, source.dependency if isinstance(source, _RawSpec) else source


def _with(named: Any, let_in: dict[str, Any]) -> Any:
    return named.let(**let_in)


copyreg.pickle(type(ExtendedInjector), _reduced)  # type: ignore[arg-type]
