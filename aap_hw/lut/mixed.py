"""What the kernels of a network of mixed precisions cost, by the labels of its groups.

A label is a width in a precision. A kernel's form follows from the precisions of two domains at most
(`aap_hw.compile.front.mixed`), and its latency from that and the widths of its groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from aap_hw.compile.front.mixed import Form, MixedNetwork
from aap_hw.errors import UserError
from aap_hw.lut.predicting import CostOfKernel, cost_parts
from aap_hw.policy import KernelCost
from aap_hw.policy.problem import FloatArray


@dataclass(frozen=True)
class Labels:
    """The labels of one choice, in the order of `GroupChoice`: the widths of its first precision, then of the next.

    Only the first precision has the width 0: what is removed has none.

    Attributes
    ----------
    name : of a channel group, or of a domain of which no group can be narrowed.
    widths : ascending.
    precisions : the more exact one last; empty if the group is read in floating point alone.
    domain : of which precisions are those of its labels; empty likewise.
    """

    name: str
    widths: tuple[int, ...]
    precisions: tuple[str, ...] = ()
    domain: str = ""

    @property
    def each(self) -> list[tuple[int, int]]:
        """For each label, the positions of its width and of its precision."""
        of_width = range(len(self.widths))
        return [(w, p) for p in range(max(1, len(self.precisions))) for w in of_width if self.widths[w] or not p]


def mixed_costs(
    mixed: MixedNetwork, widths: Mapping[str, Sequence[int]], choices: Sequence[Labels], cost: CostOfKernel
) -> list[KernelCost]:
    """What each kernel costs, in any unit, by the labels of the choices that it depends on; 0 where there is none such.

    Parameters
    ----------
    widths
        Those that each group may have.
    choices
        Of all groups that have several labels, and of each domain one at least.
    """
    return [part for form in mixed.forms for part in _costs_of_form(form, widths, choices, cost)]


def in_all_precisions(costs: Sequence[KernelCost], choices: Sequence[Labels]) -> list[KernelCost]:
    """Costs by widths, such as of parameters, as costs by labels: the same in each precision."""
    return costs_by_labels((), {(): costs}, choices)


def costs_by_labels(
    domains: Sequence[str],
    by_widths: Mapping[tuple[str, ...], Sequence[KernelCost]],
    choices: Sequence[Labels],
    named: str = "",
) -> list[KernelCost]:
    """Costs by widths that depend on the precisions of some domains, two at most, as costs by labels.

    Parameters
    ----------
    by_widths
        For each combination of precisions of the domains the same costs, of the same groups; one that is missing costs
        nothing.
    named
        What it is that costs so much, for messages.

    Raises
    ------
    UserError : one of the costs would be of more than two choices.
    """
    by_name = {choice.name: choice for choice in choices}
    # What is removed does not tell the precision of others.
    stand_ins = {n: max((c for c in choices if c.domain == n), key=lambda c: c.widths[0] > 0) for n in domains}
    made = []
    for number, part in enumerate(next(iter(by_widths.values()), ())):
        axes = [by_name[name] for name in part.groups]
        axes += [stand_ins[name] for name in domains if all(axis.domain != name for axis in axes)]
        if len(axes) > 2:
            raise UserError(f"the cost of '{named}' depends on more than two groups of channels; plan in one precision")
        deciding = [next(i for i, axis in enumerate(axes) if axis.domain == name) for name in domains]

        def block(at: Sequence[str], deciding: Sequence[int] = deciding, number: int = number) -> FloatArray | None:
            parts = by_widths.get(tuple(at[i] for i in deciding))
            return None if parts is None else parts[number].cost

        made.append(_table(axes, len(part.groups), block))
    return made


def _costs_of_form(
    form: Form, widths: Mapping[str, Sequence[int]], choices: Sequence[Labels], cost: CostOfKernel
) -> list[KernelCost]:
    kernels = {at: kernel for at, kernel in form.kernels.items() if kernel is not None}
    any_of_them = next(iter(kernels.values()))
    free = [name for name in any_of_them.groups if len(widths[name]) > 1]
    known = {choice.domain for choice in choices if choice.name in free}
    exactly = 2 - len(set(form.domains) - known)  # another domain's precision is a choice
    by_widths = {at: cost_parts(kernel, widths, cost, exactly=exactly) for at, kernel in kernels.items()}
    return costs_by_labels(form.domains, by_widths, choices, any_of_them.described)


def _table(axes: Sequence[Labels], wide: int, block: Callable[[Sequence[str]], FloatArray | None]) -> KernelCost:
    """A cost by labels, of what it is by widths at each combination of precisions.

    Only the widths of the first ``wide`` axes matter; of the others the precision alone does.
    """
    shape = [(max(1, len(axis.precisions)), len(axis.widths)) for axis in axes]
    whole = np.zeros([size for pair in shape for size in pair])
    for at in product(*(range(precisions) for precisions, _ in shape)):
        cost = block([axis.precisions[i] if axis.precisions else "" for axis, i in zip(axes, at, strict=True)])
        if cost is not None:
            by_width = np.reshape(cost, [len(axis.widths) if i < wide else 1 for i, axis in enumerate(axes)])
            whole[tuple(each for i in at for each in (i, slice(None)))] = by_width
    by_label = whole.reshape([precisions * count for precisions, count in shape])
    for axis, choice in enumerate(axes):
        by_label = by_label.take([p * len(choice.widths) + w for w, p in choice.each], axis)
    return KernelCost(tuple(axis.name for axis in axes), by_label)
