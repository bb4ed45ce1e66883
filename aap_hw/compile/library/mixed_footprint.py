"""What a network of mixed precisions holds while each of its kernels runs, by the precisions that decide about it.

A value is stored in one type or another, as long as its readers want it, and beside it may be a copy in another type.
Which precisions decide about that is not derived but read off networks of random choices, as kernels are
(`aap_hw.compile.front.mixed`). Where two do not tell, as much is counted as was ever seen at their precisions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product, takewhile

import numpy as np

from aap_hw.compile.front.domains import deciding_sets
from aap_hw.compile.front.mixed import Domain, MixedNetwork, Precisions
from aap_hw.compile.front.network import Network
from aap_hw.compile.front.precision import layer_of
from aap_hw.compile.keys.target import DeviceTarget
from aap_hw.compile.library.footprint import Moment, Value, moments
from aap_hw.graph import WidthExpr

# Domains besides those of its own channels that may decide about a value: those that are read nearest to it.
NEAR = 8

Place = tuple[str, str]
"""A kernel that all mixtures have, and one that comes just before it, or itself."""


@dataclass(frozen=True)
class Held:
    """Values of the same channels that are held at one moment.

    Attributes
    ----------
    group : a channel group without which they are not there; empty if they always are.
    domains : those whose precisions decide which values these are, two at most.
    values : by the precisions; they name no group of their own.
    """

    channels: WidthExpr
    group: str
    domains: tuple[str, ...]
    values: Mapping[tuple[str, ...], tuple[Value, ...]]


def held(moment: Moment) -> list[Held]:
    """What a network of one precision holds at a moment."""
    return [Held(v.channels, v.branch, (), {(): (replace(v, branch=""),)}) for v in moment.held]


def mixed_moments(mixed: MixedNetwork, target: DeviceTarget) -> Iterator[list[Held]]:
    """What a network of mixed precisions holds at each moment, one a kernel of any mixture."""
    choices = list(mixed.drawn(np.random.default_rng(0)))
    order = {kernel.name: i for i, kernel in enumerate(mixed.split.floating.kernels)}
    seen = [_by_place(mixed.network(mixed.floats(chosen)), order, target) for chosen in choices]
    first = [{place[0]: values for place, values in reversed(each.items())} for each in seen]
    reading = _Reading(mixed, choices, order)
    for place in dict.fromkeys(place for each in seen for place in each):
        # Where there is no such kernel, what lives at its place does so when the next one runs, too.
        drawn = [each.get(place, some.get(place[0], ())) for each, some in zip(seen, first, strict=True)]
        yield reading.held(drawn, order.get(place[0], len(order)))


def _by_place(network: Network, order: Mapping[str, int], target: DeviceTarget) -> dict[Place, tuple[Value, ...]]:
    """What is held at each place, in calling order."""
    found: dict[Place, tuple[Value, ...]] = {}
    before = ""
    for moment in reversed(list(moments(network, target))):
        before = moment.kernel if moment.kernel in order else before
        found[before, moment.kernel] = moment.held
    return dict(reversed(found.items()))


class _Reading:
    """Reads off some choices of precisions which of them decide about what is held."""

    def __init__(self, mixed: MixedNetwork, choices: Sequence[Precisions], order: Mapping[str, int]) -> None:
        self._mixed, self._choices = mixed, choices
        self._domain_of = {group: domain.name for domain in mixed.domains.values() for group in domain.groups}
        reading: dict[str, list[int]] = defaultdict(list)
        for kernel in mixed.split.floating.kernels:
            reading[layer_of(kernel)].append(order[kernel.name])
        self._read = {d.name: [i for layer in d.layers for i in reading[layer]] for d in mixed.domains.values()}

    def held(self, drawn: Sequence[Iterable[Value]], at: int) -> list[Held]:
        """What is held at the ``at``-th kernel, of what is in each choice."""
        parts: dict[tuple[WidthExpr, str], list[list[Value]]] = {}
        for i, values in enumerate(drawn):
            for value in values:
                kind = value.channels, value.branch
                parts.setdefault(kind, [[] for _ in drawn])[i].append(replace(value, branch=""))
        near = sorted(self._mixed.domains.values(), key=lambda domain: self._distance(domain, at))
        return [
            self._decided(channels, group, [tuple(sorted(some, key=repr)) for some in each], near)
            for (channels, group), each in parts.items()
        ]

    def _distance(self, domain: Domain, at: int) -> int:
        return min((abs(i - at) for i in self._read[domain.name]), default=len(self._choices))

    def _decided(
        self, channels: WidthExpr, group: str, drawn: Sequence[tuple[Value, ...]], near: Sequence[Domain]
    ) -> Held:
        groups = [*(name for name, _ in channels.terms), *([group] if group else [])]
        own = list(dict.fromkeys(self._domain_of[name] for name in groups if name in self._domain_of))
        others = [domain.name for domain in near if domain.name not in own][:NEAR]
        sets = takewhile(lambda names: len(names) <= 2, deciding_sets(own, others))
        fitting = [names for names in sets if self._fits(names, channels, group)]
        exact = (found for names in fitting if (found := self._by_precisions(names, drawn)) is not None)
        if (values := next(exact, None)) is None:
            values = self._most(fitting[1] if own and len(fitting) > 1 else (), drawn)
        return Held(channels, group, *values)

    def _fits(self, names: Sequence[str], channels: WidthExpr, group: str) -> bool:
        """Whether the bytes are sums of what follows from two choices each."""
        alone = [{name, group} - {""} for name, _ in channels.terms] or [{group} - {""}]
        return all(len(some) + len({*names} - {self._domain_of.get(each) for each in some}) <= 2 for some in alone)

    def _by_precisions(
        self, names: tuple[str, ...], drawn: Sequence[tuple[Value, ...]]
    ) -> tuple[tuple[str, ...], dict[tuple[str, ...], tuple[Value, ...]]] | None:
        """What is held by the precisions of some domains, None if these do not tell, or were not all seen."""
        found: dict[tuple[str, ...], tuple[Value, ...]] = {}
        for chosen, values in zip(self._choices, drawn, strict=True):
            if found.setdefault(tuple(chosen[name] for name in names), values) != values:
                return None
        return (names, found) if len(found) == len(self._mixed.precisions) ** len(names) else None

    def _most(
        self, names: tuple[str, ...], drawn: Sequence[tuple[Value, ...]]
    ) -> tuple[tuple[str, ...], dict[tuple[str, ...], tuple[Value, ...]]]:
        """The most that was seen at the precisions of some domains."""
        dense = self._mixed.floating.dense

        def size(values: tuple[Value, ...]) -> int:
            return sum(value.bytes_at(dense) for value in values)

        found: dict[tuple[str, ...], tuple[Value, ...]] = {}
        for at in product(self._mixed.precisions, repeat=len(names)):
            there = [v for chosen, v in zip(self._choices, drawn, strict=True) if at == tuple(chosen[n] for n in names)]
            found[at] = max(there or drawn, key=size)
        return names, found
