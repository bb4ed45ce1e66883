"""How many channels a trial cut keeps of each group, so that no length is right by chance.

Code that counts on other channels than it should passes a length that is right as long as nothing is cut. It shows in a
trial if lengths that were equal are not equal any more, unless they count the same channels: those of two layers, but
also those of 4 groups of 6 that a norm leaves whole and of a layer of 24. Shares that are left should differ, too, as
code may count a half of another length. Where a group has too few channels for that, it holds as far as it can.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from aap_hw.graph.groups.groups import ChannelGroup, Grouping
from aap_hw.graph.groups.widths import WidthExpr, width_along, width_of_ids
from aap_hw.graph.walk.labelling import Labelling

# How many amounts are looked at for a group.
_AMOUNTS = 64


def lengths_of(labelling: Labelling, grouping: Grouping) -> set[WidthExpr]:
    """All the lengths of axes of a program's tensors, and numbers that its code passes, that change with a width."""
    found = {width_of_ids(ids, grouping) for literal in labelling.literals for _, ids in literal.counts}
    seen: set[bytes] = set()
    for node in labelling.labels:
        for labels in (each for part in labelling.all_labels(node) for each in part):
            if (key := labels.ids.tobytes()) not in seen:
                seen.add(key)
                found.update(width_along((labels,), dim, labels.ids.shape[dim], grouping) for dim in labels.dims)
    return {WidthExpr(each.constant, tuple(sorted(each.terms))) for each in found if each.terms}


def amounts(
    groups: Sequence[ChannelGroup], lengths: Iterable[WidthExpr], full: Mapping[str, int], plan: int = 0
) -> dict[str, int]:
    """How many channels to keep of each of some groups, while all others keep theirs.

    Parameters
    ----------
    lengths
        Those that should not become equal.
    full
        Width of every group.
    plan
        Any number: other plans keep other amounts.
    """
    place = {group.name: number for number, group in enumerate(groups)}
    own: list[list[WidthExpr]] = [[] for _ in groups]  # the lengths that are known once a group's amount is
    for length in lengths:
        if cut := [place[name] for name, _ in length.terms if name in place]:
            own[max(cut)].append(length)
    numbers, widths = {name: number for number, name in enumerate(full)}, dict(full)
    equal, alike = set[tuple[int, int]](), set[float]()
    for group, mine in zip(groups, own, strict=True):
        first = _kept(numbers[group.name], group.width, plan)
        found: list[tuple[int, int, int]] = []
        for kept in [first, *(each for each in range(group.width - 1, 0, -1) if each != first)][:_AMOUNTS]:
            widths[group.name] = kept
            ends, shares = _ends(mine, full, widths)
            found.append((len(mine) - len(ends - equal), len(shares & alike), kept))
            if not any(found[-1][:2]):
                break
        widths[group.name] = min(found, key=lambda each: each[:2])[2]
        ends, shares = _ends(mine, full, widths)
        equal |= ends
        alike |= shares
    return {group.name: widths[group.name] for group in groups}


def _ends(
    lengths: Iterable[WidthExpr], full: Mapping[str, int], widths: Mapping[str, int]
) -> tuple[set[tuple[int, int]], set[float]]:
    """What lengths were and are, and the shares of them that are left."""
    ends = {(each.at(full), each.at(widths)) for each in lengths}
    return ends, {after / before for before, after in ends}


def _kept(number: int, width: int, plan: int) -> int:
    """How many channels a trial keeps of a group at first, by its number and width.

    Neighbours lose different amounts. A length that is rounded may be right all the same, as 12 // 4 counts the first 3
    of 12 channels and 9 // 4 the first 2 of 9: the later plans tell.
    """
    return 1 + (7 * number + 3 * plan) % width if plan else width - 1 - number % (width // 2)
