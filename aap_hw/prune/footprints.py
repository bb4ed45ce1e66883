"""Peak memory as a cost that a policy can choose widths by, made of what ``compile.library.footprint`` counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from aap_hw.compile.front.network import Network
from aap_hw.compile.keys.target import DeviceTarget
from aap_hw.compile.library.footprint import Moment, Value, constant_bytes, moments
from aap_hw.lut.predicting import kernel_costs
from aap_hw.policy import KernelCost, PeakCost
from aap_hw.policy.problem import FloatArray

Candidates = Mapping[str, Sequence[int]]


@dataclass
class _Need:
    """What one moment needs: bytes whatever is chosen, bytes by the candidates of some groups, and what may be removed.

    ``removable`` are values that are not in the bytes, each with the group whose width 0 removes it.
    """

    fixed: float = 0.0
    by_group: dict[str, FloatArray] = field(default_factory=dict)
    removable: list[tuple[str, Value]] = field(default_factory=list)

    def add(self, value: Value, candidates: Candidates) -> None:
        """Count a value."""
        if value.branch:
            self.add_removable(value.branch, replace(value, branch=""), candidates)
            return
        fixed, by_group = _parts(value, candidates)
        self.fixed += fixed
        for name, each in by_group.items():
            self.by_group[name] = self.by_group.get(name, 0.0) + each

    def add_removable(self, group: str, value: Value, candidates: Candidates) -> None:
        """Count a value that goes with a group."""
        least, *others = candidates[group]
        if least > 0:
            self.add(value, candidates)
        elif others:
            self.removable.append((group, value))

    def is_within(self, other: _Need, most: float) -> bool:
        """Whether the other never needs less, this one's removable part being at most ``most``."""
        names = self.by_group.keys() | other.by_group.keys()
        more = [np.max(self.by_group.get(name, 0.0) - other.by_group.get(name, 0.0)) for name in names]
        return bool(self.fixed - other.fixed + most + sum(more) <= 0)

    @property
    def largest(self) -> float:
        """Bytes at the widths that need most."""
        return self.fixed + sum(float(each.max()) for each in self.by_group.values())


def memory_cost(network: Network, candidates: Candidates, target: DeviceTarget) -> PeakCost:
    """Bytes that a network needs, by its groups' candidate widths."""
    needs = [_need(moment, candidates) for moment in moments(network, target)]
    most = [sum(_most(value, candidates) for _, value in each.removable) for each in needs]
    kept: list[_Need] = []
    # The largest first: most of the others need less than one of them at every choice of widths.
    for i in sorted(range(len(needs)), key=lambda i: -needs[i].largest):
        if not any(needs[i].is_within(other, most[i]) for other in kept):
            kept.append(needs[i])
    always = kernel_costs(network, candidates, lambda kernel, widths: constant_bytes(kernel.at(widths), target))
    return PeakCost(always, [_costs(need, candidates) for need in kept])


def _need(moment: Moment, candidates: Candidates) -> _Need:
    need = _Need()
    for value in moment.held:
        need.add(value, candidates)
    # A kernel goes with a group that it reads and nothing else; what it makes may be of a group that stays.
    read, made = moment.kernel.width_in, moment.made
    own = moment.kernel.branch.group if moment.kernel.branch is not None else ""
    if not own and len(read.terms) == 1 and not read.constant and moment.kernel.width_out != read:
        ((own, _),) = read.terms
    if own:
        need.add_removable(own, replace(made, branch=""), candidates)
    else:
        need.add(made, candidates)
    return need


def _parts(value: Value, candidates: Candidates) -> tuple[float, dict[str, FloatArray]]:
    """Bytes of a value at its groups' narrowest widths, and what each of their candidates adds to that.

    Exact, as only values of one group are pitched, and the others are linear in all widths.
    """
    narrowest = {name: candidates[name][0] for name, _ in value.channels.terms}
    fixed = value.bytes_at(narrowest)
    more = {
        name: np.array([value.bytes_at({**narrowest, name: width}) - fixed for width in candidates[name]], float)
        for name in narrowest
        if len(candidates[name]) > 1
    }
    return fixed, more


def _most(value: Value, candidates: Candidates) -> float:
    return value.bytes_at({name: candidates[name][-1] for name, _ in value.channels.terms})


def _costs(need: _Need, candidates: Candidates) -> list[KernelCost]:
    costs = [KernelCost((), np.array(need.fixed))]
    costs += [KernelCost((name,), each) for name, each in need.by_group.items()]
    for group, value in need.removable:
        stays = (np.array(candidates[group]) > 0).astype(float)
        fixed, by_group = _parts(value, candidates)
        costs.append(KernelCost((group,), fixed * stays))
        for name, each in by_group.items():
            costs.append(
                KernelCost((name,), each) if name == group else KernelCost((group, name), np.outer(stays, each))
            )
    return costs
