"""Bit-widths as data: what each site of a network is assigned.

A *site* is a tensor that is quantized once, for all layers that read it; it goes by the author's
name of the first of these layers. An *assignment* gives every site its bits, immutable and good
for JSON and YAML.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from brevitas_multiquant.core.assignment_files import read_values, write_values
from brevitas_multiquant.core.misfits import misfits
from brevitas_multiquant.core.selection import BRANCH_BITS, is_whole
from brevitas_multiquant.core.text_table import text_table
from brevitas_multiquant.errors import BitWidthError, NetworkError

ASSIGNMENT_VERSION = 1


class Precision(NamedTuple):
    """Bits of the weights that read a site, and of its activations."""

    weight: int
    activation: int


class HasSites(Protocol):
    """A network that an assignment can be of.

    Where its weights are not those of branches, it has a ``precision_at(site, bits)`` too.
    """

    @property
    def bits(self) -> tuple[int, ...]:
        """Candidate bit-widths."""

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of its sites."""


class Assignment(Mapping[str, Precision]):
    """Site -> its bits; and the network's bit-width, which chooses branches, norms and ranges.

    A site that is left out has the network's bit-width.

    Args:
        bits: the network's bit-width.
        sites: site -> bits of weights and of activations.

    Raises:
        BitWidthError: anything that is no whole number of bits.

    Example:
        >>> assignment = Assignment(4, {"layer1.conv1": (2, 4), "layer1.conv2": (2, 8)})
        >>> assignment["layer1.conv2"].activation, assignment.is_uniform
        (8, False)
        >>> Assignment.from_dict(assignment.to_dict()) == assignment
        True
        >>> print(assignment)
        network at 4 bits
        site          weight  activation
        layer1.conv1       2           4
        layer1.conv2       2           8
    """

    def __init__(self, bits: int, sites: Mapping[str, tuple[int, int]]) -> None:
        self._bits = _whole("bits", bits)
        if not isinstance(sites, Mapping):
            raise BitWidthError(f"assignment: expected sites as a mapping, got {sites!r}")
        self._sites = {site: _precision(site, pair) for site, pair in sites.items()}
        self._own = {
            site: precision.activation
            for site, precision in self._sites.items()
            if precision.activation != self._bits
        }

    @classmethod
    def uniform(cls, net: HasSites, bits: int) -> "Assignment":
        """Every site of a network at one of its bit-widths: what ``net.set_active_bits(bits)`` is.

        Raises:
            NetworkError: something without sites.
            BitWidthError: not a candidate of the network.

        Example:
            >>> from torchvision.models import resnet18
            >>> from brevitas_multiquant import multiquantize
            >>> net = multiquantize(resnet18(num_classes=10), [2, 4], input_shape=(1, 3, 32, 32))
            >>> low = Assignment.uniform(net, 2)
            >>> low["layer1.0.conv1"], len(low), low.is_uniform
            (Precision(weight=2, activation=2), 16, True)
        """
        if not hasattr(net, "sites"):
            raise NetworkError(
                f"Assignment.uniform: expected a MultiQuantNet, got {type(net).__name__}; call "
                "multiquantize(model, bits) first and pass what it returns"
            )
        cls(bits, {}).require_fits("Assignment.uniform", net.bits, net.sites)
        precision_at = getattr(net, "precision_at", _of_branches)
        return cls(bits, {site: precision_at(site, bits) for site in net.sites})

    @property
    def bits(self) -> int:
        """The network's bit-width."""
        return self._bits

    @property
    def name(self) -> str:
        """Short and stable, for files: the network's bit-width, and a digest of everything.

        Example:
            >>> Assignment(4, {"conv": (2, 2)}).name
            '4b-2f5d54f1'
        """
        sites = {site: list(precision) for site, precision in self.items()}
        text = json.dumps([self._bits, sites], sort_keys=True)
        return f"{self._bits}b-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    @property
    def own(self) -> Mapping[str, int]:
        """Site -> bits of its activations, of the sites where they are not the network's."""
        return MappingProxyType(self._own)

    @property
    def is_uniform(self) -> bool:
        """Whether every site's activations have the network's bit-width, and all weights one."""
        return not self._own and len({site.weight for site in self._sites.values()}) <= 1

    def __getitem__(self, site: str) -> Precision:
        return self._sites[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Assignment):
            return NotImplemented
        return self._bits == other._bits and self._sites == other._sites

    def __hash__(self) -> int:
        return hash((self._bits, frozenset(self._sites.items())))

    def __repr__(self) -> str:
        sites = {site: tuple(precision) for site, precision in self.items()}
        return f"Assignment({self._bits}, {sites!r})"

    def __str__(self) -> str:
        rows = [("site", *Precision._fields), *((site, *pair) for site, pair in self.items())]
        return f"network at {self._bits} bits\n{text_table(rows)}"

    def with_activations(self, activations: Mapping[str, int]) -> "Assignment":
        """The same with other bits of activations at some sites.

        Raises:
            BitWidthError: a site that the assignment does not have.

        Example:
            >>> Assignment(4, {"conv": (2, 4)}).with_activations({"conv": 2})["conv"]
            Precision(weight=2, activation=2)
        """
        unknown = [_unknown(site, self) for site in activations if site not in self]
        if unknown:
            raise BitWidthError(f"with_activations: {'; '.join(unknown)}")
        changed = {site: (self[site].weight, bits) for site, bits in activations.items()}
        return Assignment(self._bits, {**self._sites, **changed})

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON and YAML can hold."""
        sites = {site: precision._asdict() for site, precision in self.items()}
        return {"version": ASSIGNMENT_VERSION, "bits": self._bits, "sites": sites}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Assignment":
        """The inverse of `to_dict`.

        Raises:
            BitWidthError: another version, or something else than `to_dict` gives.
        """
        keys = {"version", "bits", "sites"}
        if not isinstance(data, Mapping) or set(data) != keys:
            raise BitWidthError(f"assignment: expected the keys {sorted(keys)}, got {data!r}")
        if data["version"] != ASSIGNMENT_VERSION:
            raise BitWidthError(
                f"assignment: expected version {ASSIGNMENT_VERSION}, got {data['version']!r}; it "
                "was written by another version of brevitas_multiquant"
            )
        return cls(data["bits"], data["sites"])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file: JSON, or YAML where the name ends so.

        Raises:
            BitWidthError: a name that ends otherwise, or a file that cannot be written.
        """
        write_values(path, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Assignment":
        """Read what `save` wrote, or what somebody wrote by hand.

        Raises:
            BitWidthError: no such file, or something else in it.

        Example:
            >>> import tempfile
            >>> assignment = Assignment(4, {"layer1.conv1": (2, 2)})
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     assignment.save(f"{folder}/mixed.json")
            ...     Assignment.load(f"{folder}/mixed.json") == assignment
            True
        """
        try:
            return cls.from_dict(read_values(path))
        except BitWidthError as error:
            raise BitWidthError(f"{os.fspath(path)}: {error}") from error

    def require_fits(
        self,
        caller: str,
        candidates: Sequence[int],
        sites: Sequence[str],
        weight_bits: int | None = BRANCH_BITS,
        fixed: "Assignment | None" = None,
        tied: bool = False,
    ) -> None:
        """Check that a network can run it.

        Args:
            caller: what starts the error.
            candidates: the network's bit-widths.
            sites: names of its sites.
            weight_bits: those of all of its weights; None: each of the candidates is possible.
            fixed: the bits that its sites have always, of those that have.
            tied: whether a site's weights have as many bits as its activations.

        Raises:
            BitWidthError: with every reason found.
        """
        expected, reasons = list(candidates), []
        if self._bits not in candidates:
            reasons.append(
                f"expected one of the bit-widths {expected} this network was built for, got "
                f"{self._bits!r}"
            )
        for site, precision in self.items():
            if site not in sites:
                reasons.append(_unknown(site, sites))
            reasons += misfits(site, precision, candidates, weight_bits, fixed, tied)
        if reasons:
            raise BitWidthError(f"{caller}: {'; '.join(reasons)}")


Setting = int | Assignment
"""One bit-width for all sites, or bits for each."""


def name_of(setting: Setting) -> str:
    """What files of a setting are called.

    Example:
        >>> name_of(4)
        '4b'
    """
    return setting.name if isinstance(setting, Assignment) else f"{setting}b"


def key_of(setting: Setting) -> str:
    """What JSON documents call a setting: ``4``, or the name of an assignment."""
    return setting.name if isinstance(setting, Assignment) else str(setting)


def described(setting: Setting) -> str:
    """A setting in a sentence.

    Example:
        >>> described(4), described(Assignment(4, {}))
        ('4 bits', 'assignment 4b-a0940be2')
    """
    return f"assignment {setting.name}" if isinstance(setting, Assignment) else f"{setting} bits"


def activation_bits(setting: Setting) -> set[int]:
    """The bits that activations have somewhere; of an assignment, at the sites that it names.

    Example:
        >>> activation_bits(4), activation_bits(Assignment(4, {"conv": (2, 8)}))
        ({4}, {8})
    """
    if not isinstance(setting, Assignment):
        return {setting}
    return {precision.activation for precision in setting.values()}


def network_bits(setting: Setting) -> int:
    """The network's bit-width, which chooses branches, norms and ranges."""
    return setting.bits if isinstance(setting, Assignment) else setting


def _of_branches(site: str, bits: int) -> Precision:
    return Precision(BRANCH_BITS, bits)


def site_meant(name: str, known: Iterable[str], sites: Iterable[str]) -> str:
    """How a message ends where a network has no site of a name: the nearest one, or all sites.

    Args:
        name: given by a user.
        known: what would have been taken.
        sites: of the network.

    Example:
        >>> site_meant("conv9", ["conv1"], ["conv1"]), site_meant("x", ["conv1"], ["conv1"])
        ("did you mean 'conv1'?", "its sites are ['conv1']")
    """
    near = get_close_matches(str(name), list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else f"its sites are {list(sites)}"


def _unknown(site: str, sites: Sequence[str] | Mapping[str, Any]) -> str:
    meant = site_meant(site, sites, sites)
    return f"expected sites of the network, got {site!r}; {meant}"


def _precision(site: Any, pair: Any) -> Precision:
    if not isinstance(site, str):
        raise BitWidthError(f"assignment: expected sites by name, got {site!r}")
    fields = list(Precision._fields)
    if isinstance(pair, Mapping) and set(pair) == set(fields):
        pair = tuple(pair[name] for name in fields)
    if not isinstance(pair, (tuple, list)) or len(pair) != len(fields):
        raise BitWidthError(f"assignment, {site}: expected {fields}, got {pair!r}")
    return Precision(*(_whole(f"{site}, {n}", bits) for n, bits in zip(fields, pair, strict=True)))


def _whole(name: str, bits: Any) -> int:
    if not is_whole(bits) or bits < 1:
        raise BitWidthError(f"assignment, {name}: expected a whole number of bits, got {bits!r}")
    return int(bits)
