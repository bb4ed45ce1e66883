"""A network whose layers may be in int8 or in floating point: its kernels, by the precision of what they read.

Floating point is float32 in the one mixture and half precision in the other. A domain is what is read in one precision:
the channel groups that one layer reads side by side, or a value that no group makes, such as the network's input. A
layer is in int8 if all domains that it reads are. Everything else follows from the layers that are not
(`aap_hw.compile.front.precision`, `aap_hw.compile.front.half`): which values are stored as bytes, and the kernels that
turn one type into the other.

A kernel's form follows from the precisions of two domains at most, as its cost is then one of two groups. How these are
found is in `aap_hw.compile.front.domains`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain

import numpy as np

from aap_hw.compile.front.network import Branch, Kernel, Network
from aap_hw.compile.front.partition import Split
from aap_hw.compile.keys.precision import BFLOAT16, INT8, MIXED, MIXTURES, NetworkPrecision, mixed_precisions

# Choices of precisions that tell which domains decide about a kernel. That two domains have the same precision in all
# of them, so that one could be taken for the other, is as likely as 2 to the power of minus this.
DRAWN = 32

Precisions = Mapping[str, str]


@dataclass(frozen=True)
class Domain:
    """What is read in one precision.

    Attributes
    ----------
    name : that of its first group, or ``input of LAYER`` of a value that no group makes.
    groups : the channel groups that it is made of.
    layers : that read it, by their names in the model.
    values : of the traced program, that are stored as bytes if all of the network is in int8.
    """

    name: str
    groups: tuple[str, ...]
    layers: tuple[str, ...]
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Form:
    """One kernel in all its forms.

    Attributes
    ----------
    domains : names of those that decide, two at most.
    kernels : by their precisions; None where there is no such kernel.
    """

    domains: tuple[str, ...]
    kernels: Mapping[tuple[str, ...], Kernel | None]


@dataclass(frozen=True, eq=False)
class MixedNetwork:
    """A network in any mixture of two precisions.

    Attributes
    ----------
    precision : which mixtures: of int8 with float32, or with half precision.
    half : what half precision is on the device.
    domains : by name.
    read : the names of the domains that each layer reads; it is in int8 if all of them are.
    branches : for each kernel that goes with a residual branch, by its name, which one.
    """

    split: Split
    domains: Mapping[str, Domain]
    read: Mapping[str, tuple[str, ...]]
    forms: tuple[Form, ...]
    branches: Mapping[str, Branch] = field(default_factory=dict)
    precision: NetworkPrecision = MIXED
    half: str = BFLOAT16

    @property
    def precisions(self) -> tuple[NetworkPrecision, NetworkPrecision]:
        """What a domain may be in, the more exact one last."""
        return mixed_precisions(self.precision)

    @cached_property
    def floating(self) -> Network:
        """All of it in floating point."""
        return self._marked(self.split.at(self.precisions[-1], half=self.half))

    @cached_property
    def everything(self) -> Network:
        """All kernels of all mixtures side by side, for who asks which there are."""
        kernels = (kernel for form in self.forms for kernel in form.kernels.values() if kernel is not None)
        return replace(self.floating, kernels=tuple(kernels))

    def floats(self, precisions: Precisions) -> tuple[str, ...]:
        """The layers in floating point if domains are in these precisions; one that is not named is in int8."""
        return tuple(
            layer for layer, names in self.read.items() if any(precisions.get(name, INT8) != INT8 for name in names)
        )

    def network(self, floats: Collection[str]) -> Network:
        """The kernels if some layers are in floating point; all of them are if there is no other layer."""
        if self.is_floating(floats):
            return self.floating
        return self._marked(self.split.at(self.in_int8, floats=floats, half=self.half))

    @property
    def in_int8(self) -> NetworkPrecision:
        """What a network is in that has any layer in int8."""
        return MIXTURES[self.precision]

    def computed(self, floats: Collection[str]) -> NetworkPrecision:
        """What the network is in if some layers are in floating point."""
        return self.precisions[-1] if self.is_floating(floats) else self.in_int8

    def is_floating(self, floats: Collection[str]) -> bool:
        """Whether no layer is left that could be in int8."""
        return set(self.read) <= set(floats)

    def draw(self, random: np.random.Generator, given: Precisions) -> Precisions:
        """A random choice of precisions, but for those that are given."""
        known = self.precisions
        drawn = random.integers(len(known), size=len(self.domains))
        return {name: known[at] for name, at in zip(self.domains, drawn, strict=True)} | dict(given)

    def drawn(self, random: np.random.Generator) -> Iterator[Precisions]:
        """Choices of precisions that tell what depends on which: all in one, in the other, and random ones."""
        for precision in self.precisions:
            yield dict.fromkeys(self.domains, precision)
        for _ in range(DRAWN):
            yield self.draw(random, {})

    def with_branches(self, networks: Iterable[Network], groups: Collection[str]) -> MixedNetwork:
        """The same, knowing the residual branches of some of its networks, as `removable` has marked them."""
        kernels = chain.from_iterable(network.kernels for network in networks)
        found = {kernel.name: kernel.branch for kernel in kernels if kernel.branch and kernel.branch.group in groups}

        def marked(kernel: Kernel | None) -> Kernel | None:
            return kernel and replace(kernel, branch=found.get(kernel.name))

        forms = tuple(Form(f.domains, {at: marked(kernel) for at, kernel in f.kernels.items()}) for f in self.forms)
        return replace(self, forms=forms, branches=found)

    def _marked(self, network: Network) -> Network:
        kernels = (replace(kernel, branch=self.branches.get(kernel.name)) for kernel in network.kernels)
        return replace(network, kernels=tuple(kernels)) if self.branches else network
