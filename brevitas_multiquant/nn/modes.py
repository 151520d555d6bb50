"""Modules that keep one mode whatever the network is put into: norms that their author froze."""

from torch import nn

_FIXED = "fixed_mode"


def fix_mode(module: nn.Module, training: bool) -> None:
    """Keep a module in one mode from now on; `restore_fixed` puts it back there."""
    setattr(module, _FIXED, training)
    module.training = training


def restore_fixed(root: nn.Module) -> None:
    """Put the modules whose mode is fixed back into it.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4))
        >>> fix_mode(net[0], False)
        >>> restore_fixed(net.train())
        >>> net[0].training, net[1].training
        (False, True)
    """
    for module in root.modules():
        fixed = vars(module).get(_FIXED)
        if fixed is not None:
            module.training = fixed


def is_frozen(net: nn.Module, norm: nn.Module) -> bool:
    """Whether a norm keeps its statistics while the network trains.

    Its author's ``train()`` leaves it in evaluation mode, or it is there while the network is not.
    """
    return vars(norm).get(_FIXED) is False or (net.training and not norm.training)
