"""What a planner knows of a network whose groups may be given a precision as well as a width.

A label's value is that of its width (`aap_hw.prune.choices`) less what rounding costs in its precision, both in units
of the mean sensitivity of a group (`aap_hw.attention.rounding`). So a plan is worth the more the less is lost,
whichever way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aap_hw.attention import Rounded
from aap_hw.compile.front.mixed import MixedNetwork
from aap_hw.compile.keys.precision import FP32, HALF, INT8, is_with_half
from aap_hw.lut.calibrating import Slowdown
from aap_hw.lut.mixed import Labels, in_all_precisions, mixed_costs
from aap_hw.lut.predicting import CostOfKernel, kernel_costs
from aap_hw.policy import Allocation, KernelCost

Widths = Mapping[str, Sequence[int]]


def rounded_by(network: MixedNetwork) -> tuple[dict[str, Rounded], list[str]]:
    """What is rounded with each domain, and to which precisions."""
    domains = {name: Rounded(each.values, each.layers) for name, each in network.domains.items()}
    return domains, [INT8, *([network.half] if is_with_half(network.precision) else [])]


@dataclass(frozen=True, eq=False)
class Mixture:
    """Precisions of one network.

    Attributes
    ----------
    network : its kernels in each mixture.
    rounding : what rounding costs each domain by precision, int8 and what half precision is, in the unit of
        sensitivities.
    slowdowns : how much longer the network takes than the sum of its kernels, where all of it is in one precision, if
        that is known.
    """

    network: MixedNetwork
    rounding: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    slowdowns: Mapping[str, Slowdown] = field(default_factory=dict)

    def labels(self, allowed: Widths, open_groups: Sequence[str]) -> list[Labels]:
        """The labels of each group that may be cut, and of a stand-in for each domain that no such group stands for.

        Parameters
        ----------
        allowed
            Widths that are left to each group.
        open_groups
            Groups that may be cut, or were cut to one width.
        """
        both = self.network.precisions
        domain_of = {group: domain for domain in self.network.domains.values() for group in domain.groups}
        found = []
        for group in open_groups:
            widths, domain = tuple(allowed[group]), domain_of.get(group)
            if domain is not None and any(widths):
                found.append(Labels(group, widths, both, domain.name))
            elif len(widths) > 1:
                found.append(Labels(group, widths))
        # What may be removed does not stand for others, as it has no precision then.
        known = {labels.domain for labels in found if labels.widths[0] or len(self._groups(labels.domain)) == 1}
        for domain in self.network.domains.values():
            if domain.name not in known:
                # What was removed is in no precision: any will do.
                is_left = not domain.groups or any(any(allowed[group]) for group in domain.groups)
                name = f"{domain.name} (precision)"  # which no group is called
                found.append(Labels(name, (1,), both if is_left else both[:1], domain.name))
        return found

    def _groups(self, domain: str) -> tuple[str, ...]:
        return self.network.domains[domain].groups if domain else ()

    def loss(self, domain: str, precision: str) -> float:
        """What it costs that a domain is in a precision, in the unit of sensitivities."""
        found = self.rounding.get(domain, {})
        return 0.0 if precision == FP32 else found.get(self.network.half if precision == HALF else precision, 0.0)

    def alike(self, labels: Sequence[Labels]) -> list[tuple[str, ...]]:
        """Choices that share a domain."""
        blocks = [tuple(each.name for each in labels if each.domain == name) for name in self.network.domains]
        return [block for block in blocks if len(block) > 1]

    def latency(self, allowed: Widths, labels: Sequence[Labels], cost: CostOfKernel) -> list[KernelCost]:
        """Each kernel's latency by labels."""
        return mixed_costs(self.network, allowed, labels, cost)

    def counted(self, allowed: Widths, labels: Sequence[Labels], cost: CostOfKernel) -> list[KernelCost]:
        """What does not depend on precisions, by labels."""
        return in_all_precisions(kernel_costs(self.network.floating, allowed, cost), labels)

    def precisions(self, found: Allocation, labels: Sequence[Labels]) -> dict[str, str]:
        """The precision of each domain by what its choices were given; what is removed has no say."""
        last = sorted((each for each in labels if each.domain), key=lambda each: found.widths[each.name] > 0)
        return {each.domain: found.precisions[each.name] for each in last}

    def slowdown(self, floats: Sequence[str], mixed: Slowdown) -> Slowdown:
        """How much longer the network takes than its kernels if some layers are in floating point."""
        in_bytes, exact = self.network.precisions
        if self.network.is_floating(floats):
            return self.slowdowns.get(exact, mixed)
        return mixed if floats else self.slowdowns.get(in_bytes, mixed)

    def by_group(self, precisions: Mapping[str, str]) -> dict[str, str]:
        """The precision that each group is read in, and each value that no group makes by what it is called."""
        return {
            name: precisions[domain.name]
            for domain in self.network.domains.values()
            for name in (domain.groups or (domain.name,))
        }
