"""How the domains of a network in mixed precision are found, and which of them decide about each kernel.

That is not derived from the rules of the precisions but read off their results: the network is made for some dozens of
choices of precisions, drawn at random. A kernel's form must follow from two domains at most, as its cost is then one of
two groups. Where three or more have a say, they become one domain.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, combinations, product

import numpy as np

from aap_hw.compile.front.mixed import Domain, Form, MixedNetwork, Precisions
from aap_hw.compile.front.network import Kernel, Network
from aap_hw.compile.front.partition import Split
from aap_hw.compile.front.precision import layer_of, weights_in_int8
from aap_hw.compile.keys.precision import BFLOAT16, INT8, MIXED, NetworkPrecision
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.graph.program.call import is_tensor


def mixed_network(graph: ChannelGraph, precision: NetworkPrecision = MIXED, half: str = BFLOAT16) -> MixedNetwork:
    """The kernels that a traced network may have, in any mixture of a kind; half precision is ``half``.

    Raises
    ------
    UserError : there is nothing that could be in int8, or a kernel depends on too much for its cost to be told.
    """
    split = Split(graph)
    able = weights_in_int8(split.at(INT8))
    layers = [kernel for kernel in split.floating.kernels if kernel.weight in able]
    if not layers:
        raise UserError("the network has no layer that could be in int8, so there are no precisions to mix")
    merged = _Merged()
    while True:
        domains, read = _domains(split.floating, split.at(INT8), layers, merged, _single_groups(graph))
        mixed = MixedNetwork(split, domains, read, (), precision=precision, half=half)
        forms, apart = _Drawn(mixed).forms()
        if not apart:
            return replace(mixed, forms=tuple(forms))
        for names in apart:
            merged.join(names)


class _Merged:
    """Names of which some stand for one thing: the first of them."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}

    def of(self, name: str) -> str:
        while name in self._first:
            name = self._first[name]
        return name

    def join(self, names: Iterable[str]) -> None:
        first, *others = dict.fromkeys(map(self.of, names))
        self._first |= dict.fromkeys(others, first)


def _single_groups(graph: ChannelGraph) -> dict[str, str]:
    """The free groups of one channel, by the values that hold nothing else: the widths of kernels do not name them."""
    single = {group.name for group in graph.groups if group.width == 1 and group.frozen is None}
    computed = [node.name for node in graph.program.graph.nodes if node.op == "call_function" and is_tensor(node)]
    held = {name: list(graph.groups_at(name)) for name in computed} if single else {}
    return {name: groups[0] for name, groups in held.items() if len(groups) == 1 and groups[0] in single}


def _domains(
    network: Network, in_int8: Network, layers: Sequence[Kernel], merged: _Merged, single: Mapping[str, str]
) -> tuple[dict[str, Domain], dict[str, tuple[str, ...]]]:
    """The domains of a network in float32, and those that each layer reads; ``single`` is of `_single_groups`."""
    makers = {kernel.name: kernel for kernel in network.kernels}
    alone: dict[str, str] = {}  # values that no group makes

    def parts(value: str, layer: str) -> list[str]:
        maker = makers.get(value)
        groups = [name for name, _ in maker.width_out.terms] if maker is not None else []
        return groups or [single.get(value) or alone.setdefault(value, f"input of {layer}")]

    for kernel in layers:
        merged.join(parts(kernel.inputs[0], layer_of(kernel)))
    first = {kernel.name: merged.of(parts(kernel.inputs[0], layer_of(kernel))[0]) for kernel in layers}
    named = set(first.values())
    read: dict[str, list[str]] = defaultdict(list)
    for kernel in layers:
        beside = (merged.of(parts(value, layer_of(kernel))[0]) for value in kernel.inputs[1:])
        read[layer_of(kernel)] += [first[kernel.name], *(name for name in beside if name in named)]
    of_groups: dict[str, list[str]] = defaultdict(list)
    for group in network.dense:
        of_groups[merged.of(group)].append(group)
    stored = _stored(in_int8, first, {group: merged.of(group) for group in network.dense})
    found = {
        name: Domain(
            name,
            tuple(of_groups[name]),
            tuple(dict.fromkeys(layer_of(kernel) for kernel in layers if first[kernel.name] == name)),
            tuple(value for value, domain in stored.items() if domain == name),
        )
        for name in dict.fromkeys(first.values())
    }
    return found, {layer: tuple(dict.fromkeys(names)) for layer, names in read.items()}


def _stored(in_int8: Network, first: Mapping[str, str], of_groups: Mapping[str, str]) -> dict[str, str]:
    """The domains of the program's values that a network in int8 stores as bytes.

    It is that of the layers that read a value, or of what a kernel without weights makes of it, or of its group.
    """
    found: dict[str, str] = {}
    for kernel in reversed(in_int8.kernels):
        made = in_int8.scaled.get(kernel.name)
        if made is not None and (groups := kernel.width_out.terms):
            found.setdefault(made, of_groups[groups[0][0]])
        domain = first.get(kernel.name, "" if kernel.weight or made is None else found.get(made, ""))
        for name in kernel.inputs[:1] if kernel.name in first else kernel.inputs:
            if domain and name in in_int8.scaled:
                found.setdefault(in_int8.scaled[name], domain)
    return {value: domain for value, domain in found.items() if domain in set(first.values())}


class _Drawn:
    """Networks of some choices of precisions, and what they tell about each kernel."""

    def __init__(self, mixed: MixedNetwork) -> None:
        self._mixed, self._names, self._read = mixed, list(mixed.domains), mixed.read
        self._domain_of = {group: domain.name for domain in mixed.domains.values() for group in domain.groups}
        self._choices: list[Precisions] = []
        self._kernels: list[dict[str, Kernel]] = []
        self._random = np.random.default_rng(0)
        for chosen in mixed.drawn(self._random):
            self._add(chosen)

    def _add(self, chosen: Precisions) -> None:
        network = self._mixed.network(self._mixed.floats(chosen))
        self._choices.append(chosen)
        self._kernels.append({kernel.name: kernel for kernel in network.kernels})

    def forms(self) -> tuple[list[Form], list[tuple[str, ...]]]:
        """All kernels, and the domains that must become one before there are any."""
        while True:
            near = self._near()
            deciding = {name: self._deciding(name, near) for name in near}
            if apart := [names for names in deciding.values() if len(names) > 2]:
                return [], apart
            if apart := [names for name, names in deciding.items() if self._is_wide(name, names)]:
                return [], apart
            if not (missing := self._missing(deciding)):
                return [self._form(name, names) for name, names in deciding.items()], []
            for given in missing:
                self._add(self._mixed.draw(self._random, given))

    def _near(self) -> dict[str, tuple[list[str], list[str]]]:
        """For each kernel, the domains of what it reads and makes, and those of kernels up to two steps away."""
        own: dict[str, dict[str, None]] = defaultdict(dict)
        beside: dict[str, set[str]] = defaultdict(set)
        for kernel in chain.from_iterable(kernels.values() for kernels in self._kernels):
            own[kernel.name] |= dict.fromkeys(self._domain_of[g] for g in kernel.groups if g in self._domain_of)
            own[kernel.name] |= dict.fromkeys(self._read.get(layer_of(kernel), ()))
            for value in kernel.inputs:
                beside[kernel.name].add(value)
                beside[value].add(kernel.name)

        def others(name: str) -> list[str]:
            one = sorted(beside[name])
            two = sorted({further for other in one for further in beside[other]})
            found = dict.fromkeys(chain.from_iterable(own.get(other, ()) for other in (*one, *two)))
            return [domain for domain in found if domain not in own[name]]

        return {name: (list(each), others(name)) for name, each in own.items()}

    def _deciding(self, name: str, near: Mapping[str, tuple[list[str], list[str]]]) -> tuple[str, ...]:
        """The domains that a kernel's form follows from; more than two if no two will do."""
        own, others = near[name]
        for names in deciding_sets(own, others):
            if self._explain(names, name):
                return names
        return tuple(self._names)

    def _explain(self, names: Sequence[str], kernel: str) -> bool:
        found: dict[tuple[str, ...], object] = {}
        for chosen, kernels in zip(self._choices, self._kernels, strict=True):
            form = _form_of(kernels.get(kernel))
            if found.setdefault(tuple(chosen[name] for name in names), form) != form:
                return False
        return True

    def _is_wide(self, kernel: str, names: Sequence[str]) -> bool:
        """Whether a kernel's cost would be one of more than two groups; raises UserError if it will ever be."""
        made = next(kernels[kernel] for kernels in self._kernels if kernel in kernels)
        groups = {self._domain_of.get(group, group) for group in made.groups}
        if not names or len(groups | set(names)) <= 2:
            return False
        if len(names) < 2:
            raise UserError(
                f"the kernel '{made.described}' depends on {' and '.join(sorted(groups | set(names)))}, and a plan of "
                "mixed precisions knows what a kernel costs by two groups; plan in one precision"
            )
        return True

    def _missing(self, deciding: Mapping[str, tuple[str, ...]]) -> list[Precisions]:
        """Precisions of deciding domains that were never drawn together."""
        missing: dict[tuple[tuple[str, str], ...], None] = {}
        for names in dict.fromkeys(deciding.values()):
            seen = {tuple(chosen[name] for name in names) for chosen in self._choices}
            for at in product(self._mixed.precisions, repeat=len(names)):
                if at not in seen:
                    missing[tuple(zip(names, at, strict=True))] = None
        return [dict(each) for each in missing]

    def _form(self, kernel: str, names: tuple[str, ...]) -> Form:
        drawn = zip(self._choices, self._kernels, strict=True)
        return Form(names, {tuple(chosen[name] for name in names): kernels.get(kernel) for chosen, kernels in drawn})


def _form_of(kernel: Kernel | None) -> object:
    """What a kernel costs follows from this."""
    return kernel and (kernel.key, kernel.widths)


def deciding_sets(own: Sequence[str], others: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Sets of domains that may decide, those first that are the likelier; larger ones only to be merged."""
    yield ()
    if len(own) <= 2:
        yield tuple(own)
    every = (*own, *others)
    for size in range(1, 5):
        yield from (each for each in combinations(every, size) if not own or set(own) & set(each))
