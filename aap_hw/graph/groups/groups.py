"""Channel groups: which axes of which parameters are cut together, and which groups may not be cut.

A group is a set of classes (atoms that live and die together) that occur equally often in the very same
parameter axes and tensors, so that any of them can be dropped without regard to the others. Cutting is done
in `surgery`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch.fx import Node

from aap_hw.graph.groups.observed import observed_by_group
from aap_hw.graph.walk.labelling import Labelling
from aap_hw.graph.walk.labels import IntArray, Labels
from aap_hw.graph.walk.ties import Classes

# What is appended to the name of a group of whole heads, so that a plan says what its numbers count.
WHOLE_HEADS = ":heads"


@dataclass(frozen=True, eq=False)
class Axis:
    """The part of one axis of one parameter or buffer that belongs to a group.

    Parameters
    ----------
    parameter
        Fully qualified name; of a tensor with several names, the first.
    dim
        Which axis.
    role
        ``"out"`` (filters that make the channels), ``"in"`` (weights that read them), ``"depthwise"``,
        ``"norm"``, ``"bias"`` or ``"scale"``; ``"fixed"`` in a frozen group, for a parameter used in a way
        not followed.
    index
        Shape (width, multiplicity): the positions along the axis that belong to each channel of the group.
    """

    parameter: str
    dim: int
    role: str
    index: IntArray


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """The channel axes of a network that are cut together.

    Parameters
    ----------
    name
        Path of the first module that makes the channels; a second group made by it gets ``#2`` appended, and one of
        whole heads `WHOLE_HEADS`.
    width
        Number of channels, or of heads.
    frozen
        Why the group cannot be cut, for the user to read; None if it can.
    axes
        Everything that has to be cut, in the order in which the network uses it.
    observed
        Names of the graph's nodes where the attention of the group is read.
    renormalised
        Which norm is taken over the channels, or which window slides along them, for the user to read: cutting some
        changes what it makes of the others. None if there is none.
    """

    name: str
    width: int
    frozen: str | None
    axes: tuple[Axis, ...]
    observed: tuple[str, ...]
    renormalised: str | None = None

    @property
    def is_of_heads(self) -> bool:
        """Whether it counts whole heads of attention, as was asked for."""
        return names_heads(self.name)


def names_heads(name: str) -> bool:
    """Whether a group of this name is of whole heads."""
    return name.partition("#")[0].endswith(WHOLE_HEADS)


@dataclass(frozen=True)
class Grouping:
    """All groups of a network, and which group each atom belongs to.

    Parameters
    ----------
    groups
        In the order in which the network first makes their channels.
    member
        For each atom, the position of its group in `groups`, or -1 (no filter makes it).
    rank
        For each atom, which channel of its group it is.
    """

    groups: tuple[ChannelGroup, ...]
    member: IntArray
    rank: IntArray


def find_groups(labelling: Labelling) -> Grouping:
    """Group the classes of a labelled program."""
    classes = labelling.ties.solve()
    part = _parts(labelling, classes)
    member = np.full(classes.root.size, -1, dtype=np.int64)
    rank = np.full(classes.root.size, -1, dtype=np.int64)
    made: list[tuple[str, IntArray]] = []
    for (name, dim), ids in labelling.axes.items():
        if labelling.roles[name, dim] not in ("out", "depthwise"):
            continue
        roots = classes.root[ids]
        new = roots[member[roots] < 0]
        for number in dict.fromkeys(part[new].tolist()):
            of_part = list(dict.fromkeys(new[part[new] == number].tolist()))
            channels = np.array(of_part, dtype=np.int64)
            member[channels] = len(made)
            rank[channels] = np.arange(channels.size)
            layer = labelling.computed[name].layer if name in labelling.computed else name.rpartition(".")[0]
            made.append((layer or name, channels))
    member, rank = member[classes.root], rank[classes.root]
    axes = _axes_by_group(labelling, member, rank, len(made))
    heads = {int(n) for ids in labelling.whole_heads.values() for n in member[ids[ids >= 0]][:1] if n >= 0}
    observed = observed_by_group(labelling, member, len(made), heads)
    norms = _norms_by_group(labelling, member, len(made))
    groups: list[ChannelGroup] = []
    seen: dict[str, int] = {}
    for number, (module, channels) in enumerate(made):
        module += WHOLE_HEADS if number in heads else ""
        seen[module] = seen.get(module, 0) + 1
        name = module if seen[module] == 1 else f"{module}#{seen[module]}"
        first_reason = int(classes.reason[channels].min())
        frozen = classes.reasons[first_reason] if first_reason < len(classes.reasons) else None
        groups.append(
            ChannelGroup(name, channels.size, frozen, tuple(axes[number]), tuple(observed[number]), norms[number])
        )
    return Grouping(tuple(groups), member, rank)


def _parts(labelling: Labelling, classes: Classes) -> IntArray:
    """For each root, a number that it shares with the roots that occur wherever it does, equally often."""
    part = (classes.reason < len(classes.reasons)).astype(np.int64)
    free = 2
    for ids in _occurrences(labelling):
        roots, counts = np.unique(classes.root[ids[ids >= 0]], return_counts=True)
        if roots.size:
            _, new = np.unique(part[roots] * (counts.max() + 1) + counts, return_inverse=True)
            part[roots] = free + new
            free += int(new.max()) + 1
    return part


def _occurrences(labelling: Labelling) -> Iterable[IntArray]:
    """Every parameter axis and every differently labelled tensor, each once."""
    yield from labelling.axes.values()
    for literal in labelling.literals:
        yield from (ids for _, ids in literal.counts)
    seen: set[tuple[tuple[int, ...], bytes]] = set()
    for result in labelling.labels.values():
        for labels in result if isinstance(result, tuple) else (result,):
            if isinstance(labels, Labels) and labels.dims:
                key = (labels.ids.shape, labels.ids.tobytes())
                if key not in seen:
                    seen.add(key)
                    yield labels.ids


def _axes_by_group(labelling: Labelling, member: IntArray, rank: IntArray, count: int) -> list[list[Axis]]:
    axes: list[list[Axis]] = [[] for _ in range(count)]
    for (parameter, dim), ids in labelling.axes.items():
        role = labelling.roles[parameter, dim]
        for number in dict.fromkeys(member[ids].tolist()):
            if number >= 0:
                axes[number].append(Axis(parameter, dim, role, positions(ids, member, rank, number)))
    return axes


def held_by(labelling: Labelling, grouping: Grouping, node: Node) -> dict[str, frozenset[int]]:
    """Names of the groups whose channels a node's value holds, each with the axes that they run along."""
    parameter = labelling.parameter_name(node)
    if parameter is not None:
        along = [(ids, {dim}) for (name, dim), ids in labelling.axes.items() if name == parameter]
    else:
        along = [(each.ids, set(each.dims)) for part in labelling.all_labels(node) for each in part]
    found: dict[str, frozenset[int]] = {}
    for ids, dims in along:
        member = np.where(ids >= 0, grouping.member[ids], -1)
        for number in np.unique(member[member >= 0]).tolist():
            rank, name = np.where(member == number, grouping.rank[ids], -1), grouping.groups[number].name
            axes = {dim for dim in dims if len(dims) == 1 or (rank != rank.take([0], axis=dim)).any()}
            found[name] = found.get(name, frozenset()) | axes
    return found


def positions(ids: IntArray, member: IntArray, rank: IntArray, number: int) -> IntArray:
    """Where along `ids` the channels of group `number` are: shape (width, multiplicity)."""
    places = np.flatnonzero((ids >= 0) & (member[ids] == number))
    in_order = places[np.argsort(rank[ids[places]], kind="stable")]
    width = np.unique(rank[ids[places]]).size
    return in_order.reshape(width, -1)


def _norms_by_group(labelling: Labelling, member: IntArray, count: int) -> list[str | None]:
    """What is said of the first norm over channels of each group."""
    norms: list[str | None] = [None] * count
    for norm in labelling.renormalised:
        for number in np.unique(member[norm.ids[norm.ids >= 0]]).tolist():
            if number >= 0 and norms[number] is None:
                norms[number] = norm.sentence
    return norms
