"""Brevitas proxies that keep their quantizer.

Stock proxies build it anew whenever a state dict is loaded, which replaces the trainable ranges and
leaves an optimizer that was made before with the old ones, silently.
"""

from typing import Any

from brevitas.proxy import ActQuantProxyFromInjector, WeightQuantProxyFromInjector


class LearnedRangeWeightQuantProxy(WeightQuantProxyFromInjector):
    """For weights with a trainable range."""

    def init_tensor_quant(self, *args: Any, **kwargs: Any) -> None:
        """Build the quantizer once."""
        if self.tensor_quant is None:
            super().init_tensor_quant(*args, **kwargs)


class LearnedRangeActQuantProxy(ActQuantProxyFromInjector):
    """For activations with a trainable range."""

    def init_tensor_quant(self) -> None:
        """Build the quantizer once."""
        if getattr(self, "fused_activation_quant_proxy", None) is None:
            super().init_tensor_quant()


def activation_tensor_quant(quantizer: Any) -> Any:
    """The ``tensor_quant`` module inside a Brevitas activation quantizer."""
    return quantizer.act_quant.fused_activation_quant_proxy.tensor_quant
