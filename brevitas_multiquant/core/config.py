"""The configuration of a multi-branch network: frozen, validated, versioned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brevitas_multiquant.core.grids import WEIGHT_FORMATS, WeightFormat
from brevitas_multiquant.core.selection import Selection, check_bits, resolve_selection
from brevitas_multiquant.errors import ConfigError

CONFIG_VERSION = 1
PROFILES = ("paper", "finn")
MERGES = ("mean", "sum")
HALF_WIDTHS = ("macs", "channels")
BRANCH_INITS = ("copy", "shuffle")
_CHOICES = ("profile", "merge")
_LATER = {"half_width": "macs", "weights": "odd"}  # what files hold that were written without them


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse a value that is not one of the choices.

    Raises:
        ConfigError: naming the option, the choices and the value.
    """
    if value not in choices:
        raise ConfigError(f"{name}: expected one of {list(choices)}, got {value!r}")


@dataclass(frozen=True)
class MultiQuantConfig:
    """What a multi-branch network is, apart from its weights.

    Args:
        bits: candidate bit-widths, ascending.
        selection: bit-width -> branch indices.
        profile: ``"paper"``: stem, residual path and classifier stay float; ``"finn"``: they are
            quantized too, as FPGAs need it.
        merge: ``"mean"`` or ``"sum"`` (eq. 6) of the branch outputs.
        half_width: how wide the half branch of odd bit-widths is: ``"macs"``, the widest that costs
            at most half of a branch; ``"channels"``, half of the channels.
        weights: name of the branches' `WeightFormat`: ``"odd"``, ``"int2"`` or ``"ternary"``.

    Raises:
        BitWidthError, SelectionError, ConfigError: a value outside its range.

    Example:
        >>> config = MultiQuantConfig.create([2, 4])
        >>> MultiQuantConfig.from_dict(config.to_dict()) == config
        True
    """

    bits: tuple[int, ...]
    selection: Selection
    profile: str = "paper"
    merge: str = "mean"
    half_width: str = "macs"
    weights: str = "odd"

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", check_bits(self.bits))
        object.__setattr__(self, "selection", resolve_selection(self.selection, self.bits))
        check_choice("profile", self.profile, PROFILES)
        check_choice("merge", self.merge, MERGES)
        check_choice("half_width", self.half_width, HALF_WIDTHS)
        check_choice("weights", self.weights, tuple(WEIGHT_FORMATS))

    @property
    def weight_format(self) -> WeightFormat:
        """Which integers the weights of branches are."""
        return WEIGHT_FORMATS[self.weights]

    @classmethod
    def create(
        cls,
        bits: Sequence[int],
        selection: str | Mapping[int, Sequence[int]] = "amortized",
        profile: str = "paper",
        merge: str = "mean",
        half_width: str = "macs",
        weights: str = "odd",
    ) -> "MultiQuantConfig":
        """A configuration from what a user writes: any order of bits, a strategy's name."""
        checked = check_bits(bits)
        resolved = resolve_selection(selection, checked)
        return cls(checked, resolved, profile, merge, half_width, weights)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON and YAML can hold, with the configuration's version."""
        return {
            "version": CONFIG_VERSION,
            "bits": list(self.bits),
            "selection": {str(bit): list(chosen) for bit, chosen in self.selection.items()},
            "profile": self.profile,
            "merge": self.merge,
            "half_width": self.half_width,
            "weights": self.weights,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "MultiQuantConfig":
        """The inverse of `to_dict`.

        Raises:
            ConfigError: another version, or keys missing or unknown.
        """
        expected = {"version", "bits", "selection", *_CHOICES, *_LATER}
        data = {**_LATER, **data} if isinstance(data, Mapping) else data
        if not isinstance(data, Mapping) or set(data) != expected:
            raise ConfigError(f"configuration: expected the keys {sorted(expected)}, got {data!r}")
        if data["version"] != CONFIG_VERSION:
            raise ConfigError(
                f"configuration: expected version {CONFIG_VERSION}, got {data['version']!r}; "
                "install the release of brevitas_multiquant that wrote it"
            )
        try:
            selection = {
                int(bit) if isinstance(bit, str) else bit: tuple(chosen)
                for bit, chosen in data["selection"].items()
            }
        except (AttributeError, TypeError, ValueError):
            raise ConfigError(
                f"configuration: expected selection to map bit-widths to lists of branches, "
                f"got {data['selection']!r}"
            ) from None
        return cls(data["bits"], selection, **{name: data[name] for name in (*_CHOICES, *_LATER)})
