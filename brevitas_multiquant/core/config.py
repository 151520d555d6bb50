"""The configuration: frozen, validated, versioned. Each option is written here, once."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any

from brevitas_multiquant.core.grids import WEIGHT_FORMATS, WeightFormat
from brevitas_multiquant.core.method import METHODS, Method, method_named
from brevitas_multiquant.core.precision import Assignment
from brevitas_multiquant.core.selection import DEFAULT_SELECTION, MAX_BITS, Selection
from brevitas_multiquant.errors import BitWidthError, ConfigError

CONFIG_VERSION = 1


class _NotGiven:
    """Tells an option that nobody gave from any value that somebody may give, None included."""

    def __repr__(self) -> str:
        return "default"


NOT_GIVEN: Any = _NotGiven()
"""Default of an option that may be in a configuration instead."""

_NEWEST_REVISION = {"finn": 2}
"""Profile -> revision of its rules; 1 where there has only been one."""


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse a value that is not one of the choices.

    Raises:
        ConfigError: naming the option, the choices and the value.
    """
    if value not in choices:
        raise ConfigError(f"{name}: expected one of {list(choices)}, got {value!r}")


def option(
    help: str,
    choices: Collection[str] = (),
    *,
    later: bool = False,
    unwritten: bool = False,
    asked: bool = True,
    before: Any = NOT_GIVEN,
) -> dict[str, Any]:
    """What files and command lines need to know of a field of `MultiQuantConfig`: its metadata.

    Args:
        help: for a command line.
        choices: what it may be; none: what the class checks itself.
        later: files of before it was there have the default, or ``before``.
        unwritten: files leave that out.
        asked: users give it under its own name.
        before: what files of before it was there have instead of the default.
    """
    facts = {"later": later, "unwritten": unwritten, "asked": asked, "before": before}
    return {"help": help, "choices": choices, **facts}


def option_of_methods(help: str) -> Any:
    """A field that some methods have: their rows say what it may be, the default first.

    Files have it where it is another than that.
    """
    return field(default=None, metadata=option(help, later=True, unwritten=True))


@dataclass(frozen=True)
class MultiQuantConfig:
    """What a network of run-time bit-widths is, apart from its weights.

    Args:
        bits: candidate bit-widths, ascending.
        selection: bit-width -> branch indices.
        profile: ``"paper"``: stem, residual path and classifier stay float; ``"finn"``: they are
            quantized too, as FPGAs need it.
        merge: ``"mean"`` or ``"sum"`` (eq. 6) of the branch outputs.
        half_width: how wide the half branch of odd bit-widths is: ``"macs"``, the widest that costs
            at most half of a branch; ``"channels"``, half of the channels.
        weights: name of the branches' `WeightFormat`: ``"odd"``, ``"int2"`` or ``"ternary"``.
        method: name of a row of `METHODS`.
        assignment: bits of every site for good, of ``"individual"``; given as ``bits`` it is both.
        grid: which integers weights are at a bit-width: ``"centered"``, ``"modified"``,
            ``"double"`` and ``"cascade"`` nest, ``"original"`` is to the nearest odd one,
            ``"symmetric"`` and ``"integer"`` to the nearest of two's complement, without the most
            negative one or with.
        weight_range: what places weights between -1 and 1, of `quant.range_kinds.WEIGHT_RANGES`.
        activation_range: what places activations between 0 and 1, of
            `quant.range_kinds.ACTIVATION_RANGES`.
        shortcuts: ``"float"``: the 1x1 convolutions of shortcuts stay as they are;
            ``"quantized"``.
        norms: what chooses a norm, of ``"bit_mixer"``: ``"transitional"``, the bits of the layers
            in front of it and behind; ``"own"``, of the one in front; ``"bits"``, the network's.
        revision: of the profile's rules; 0 is the newest, which is 2 for ``"finn"``: products,
            and averages in stem and head, are quantized too. Files keep theirs.

    Those from ``assignment`` to ``norms``, and ``merge``, ``half_width`` and ``weights``, are
    options of some methods (`core.method.Method.options`); in others they have to be left alone.

    Raises:
        BitWidthError, SelectionError, ConfigError: a value outside its range.

    Example:
        >>> config = MultiQuantConfig.create([2, 4])
        >>> MultiQuantConfig.from_dict(config.to_dict()) == config
        True
    """

    bits: tuple[int, ...] = field(default=(2, 4, 6, 8), metadata=option("candidate bit-widths"))
    selection: Selection = field(
        default=DEFAULT_SELECTION,  # type: ignore[arg-type]
        metadata=option("amortized, serial or a mapping to branches"),
    )
    profile: str = field(default="paper", metadata=option("finn: for FPGAs", ("paper", "finn")))
    merge: str = field(default="mean", metadata=option("of the branch outputs", ("mean", "sum")))
    half_width: str = field(
        default="macs",
        metadata=option("of half branches, for odd bits", ("macs", "channels"), later=True),
    )
    weights: str = field(
        default="odd", metadata=option("integers of the branches", WEIGHT_FORMATS, later=True)
    )
    method: str = field(
        default="multiquant",
        metadata=option("how bit-widths are trained", METHODS, later=True, unwritten=True),
    )
    assignment: Assignment | None = field(
        default=None,
        metadata=option("bits of every site", later=True, unwritten=True, asked=False),
    )
    grid: str | None = option_of_methods("integers that weights are at a bit-width")
    weight_range: str | None = option_of_methods("what places weights between -1 and 1")
    activation_range: str | None = option_of_methods("what places activations between 0 and 1")
    shortcuts: str | None = option_of_methods("1x1 convolutions of shortcuts: as they are, or not")
    norms: str | None = option_of_methods("what chooses norms")
    revision: int = field(
        default=0,
        metadata=option("of the profile", later=True, unwritten=True, asked=False, before=1),
    )

    def __post_init__(self) -> None:
        row = method_named(self.method)
        self._set(bits=row.check_bits(self.bits))
        self._set(selection=row.topology.resolve(self.selection, self.bits))
        for one in FIELDS:
            if one.metadata["choices"]:
                check_choice(one.name, getattr(self, one.name), tuple(one.metadata["choices"]))
            self._check_option_of(row, one)
        self._check_assignment()
        if self.shortcuts == "float" and self.profile == "finn":
            raise ConfigError(
                "shortcuts: expected 'quantized' with the profile 'finn', whose hardware has no "
                "float layers in branches, got 'float', which is how the method was published"
            )
        newest = _NEWEST_REVISION.get(self.profile, 1)
        if self.revision not in range(newest + 1):
            expected = f"from 1 to {newest}, or 0 for the newest"
            raise ConfigError(f"revision: expected {expected}, got {self.revision!r}")
        self._set(revision=self.revision or newest)

    def _check_option_of(self, row: Method, one: Field[Any]) -> None:
        """Of the options that not every method has: the method's default, or its choice."""
        value = getattr(self, one.name)
        if value != one.default:
            _refuse_of_others(row, one.name, value)
        if choices := row.options.get(one.name):
            self._set(**{one.name: choices[0] if value is None else value})
            check_choice(one.name, getattr(self, one.name), choices)

    def _check_assignment(self) -> None:
        if self.assignment is None:
            return
        if not isinstance(self.assignment, Assignment):
            raise ConfigError(
                f"assignment: expected an Assignment, got {type(self.assignment).__name__}"
            )
        if self.bits != (self.assignment.bits,):
            raise ConfigError(
                f"bits: expected [{self.assignment.bits}] as in the assignment, got "
                f"{list(self.bits)}: pass the assignment as bits"
            )
        for site, precision in self.assignment.items():
            if max(precision) > MAX_BITS:
                raise BitWidthError(
                    f"assignment, {site}: expected at most {MAX_BITS} bits, got {tuple(precision)}"
                )

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def weight_format(self) -> WeightFormat:
        """Which integers the weights of branches are."""
        return WEIGHT_FORMATS[self.weights]

    @classmethod
    def create(
        cls,
        bits: Sequence[int] | Assignment,
        selection: str | Mapping[int, Sequence[int]] = DEFAULT_SELECTION,
        *values: str,
        **options: str,
    ) -> "MultiQuantConfig":
        """A configuration from what a user writes: any order of bits, a strategy's name.

        Args:
            bits: candidate bit-widths; or an assignment, of the method ``"individual"``.
            selection: a strategy's name, or a mapping.
            *values: the other options, in the order of the class.
            **options: the other options.
        """
        names = [one.name for one in FIELDS[2:]]
        given = {**dict(zip(names, values, strict=False)), **options}
        return cls(**_unfolded({"bits": bits, "selection": selection, **given}))

    @classmethod
    def agreed(cls, config: "MultiQuantConfig | None", **asked: Any) -> "MultiQuantConfig":
        """One configuration from a whole one, from single options, or from both if they agree.

        Args:
            config: a whole one.
            **asked: single options; `NOT_GIVEN` was not asked for.

        Raises:
            ConfigError: not a configuration, or an option that is another one there.

        Example:
            >>> MultiQuantConfig.agreed(None, bits=[4, 2], merge="sum", profile=NOT_GIVEN).merge
            'sum'
        """
        given = {name: value for name, value in asked.items() if value is not NOT_GIVEN}
        if config is not None and not isinstance(config, cls):
            raise ConfigError(
                f"config: expected a {cls.__name__}, got {type(config).__name__}: "
                f"{cls.__name__}.create(bits, ...) makes one"
            )
        whole = {} if config is None else {"bits": config.bits, "method": config.method}
        given = _unfolded(given)
        alone = cls(**{**whole, **given})
        for name, value in given.items():
            _refuse_of_others(method_named(alone.method), name, value)
        if config is None:
            return alone
        for name in given:
            here, there = getattr(alone, name), getattr(config, name)
            if here != there:
                raise ConfigError(
                    f"{name}: expected it as an option or in config, got {here!r} as an option and "
                    f"{there!r} in config: leave one out"
                )
        return config

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON and YAML can hold, with the configuration's version."""
        row = method_named(self.method)
        values = {
            one.name: getattr(self, one.name)
            for one in FIELDS
            if not (one.metadata["unwritten"] and getattr(self, one.name) == _default(one, row))
        }
        if self.assignment is not None:
            values["assignment"] = self.assignment.to_dict()
        values["bits"] = list(self.bits)
        values["selection"] = {str(bit): list(chosen) for bit, chosen in self.selection.items()}
        return {"version": CONFIG_VERSION, **values}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "MultiQuantConfig":
        """The inverse of `to_dict`.

        Raises:
            ConfigError: another version, or keys missing or unknown.
        """
        later = {one.name: _in_older_files(one) for one in FIELDS if one.metadata["later"]}
        expected = {"version", *(one.name for one in FIELDS)}
        values = {**later, **data} if isinstance(data, Mapping) else data
        if not isinstance(values, dict) or set(values) != expected:
            always = expected - {one.name for one in FIELDS if one.metadata["unwritten"]}
            raise ConfigError(f"configuration: expected the keys {sorted(always)}, got {data!r}")
        version = values.pop("version")
        if version != CONFIG_VERSION:
            raise ConfigError(
                f"configuration: expected version {CONFIG_VERSION}, got {version!r}; "
                "install the release of brevitas_multiquant that wrote it"
            )
        try:
            values["selection"] = {
                int(bit) if isinstance(bit, str) else bit: tuple(chosen)
                for bit, chosen in values["selection"].items()
            }
        except (AttributeError, TypeError, ValueError):
            raise ConfigError(
                f"configuration: expected selection to map bit-widths to lists of branches, "
                f"got {values['selection']!r}"
            ) from None
        if values["assignment"] is not None:
            values["assignment"] = Assignment.from_dict(values["assignment"])
        return cls(**values)


def _refuse_of_others(row: Method, name: str, value: object) -> None:
    """An option that other methods have and this one has not."""
    having = [method.name for method in METHODS.values() if name in method.options]
    if having and name not in row.options:
        raise ConfigError(
            f"{name}: expected none for the method {row.name!r}, got {value!r}: it is an option "
            f"of {having}"
        )


def _default(one: Field[Any], row: Method) -> Any:
    choices = row.options.get(one.name)
    return choices[0] if choices else _in_older_files(one)


def _in_older_files(one: Field[Any]) -> Any:
    before = one.metadata["before"]
    return one.default if before is NOT_GIVEN else before


def _unfolded(given: dict[str, Any]) -> dict[str, Any]:
    """Options, with an assignment that was given as bits as what it is."""
    assignment = given.get("bits")
    if not isinstance(assignment, Assignment):
        return given
    one = {"bits": (assignment.bits,), "assignment": assignment}
    return {"method": "individual", **given, **one}


FIELDS: tuple[Field[Any], ...] = fields(MultiQuantConfig)
"""Of `MultiQuantConfig`, in order, each with the metadata of `option`."""

OPTIONS = tuple(one for one in FIELDS if one.metadata["asked"])
"""Those that users give by name."""


def choices_of(name: str) -> tuple[str, ...]:
    """What an option may be, in any method; none: what the class checks itself.

    Example:
        >>> choices_of("merge"), choices_of("shortcuts")
        (('mean', 'sum'), ('float', 'quantized'))
    """
    (one,) = (one for one in FIELDS if one.name == name)
    of_methods = (row.options.get(name, ()) for row in METHODS.values())
    return tuple(one.metadata["choices"]) or tuple(dict.fromkeys(sum(of_methods, ())))
