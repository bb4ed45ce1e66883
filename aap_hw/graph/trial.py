"""A trial cut shows whether the model's own code follows when its channels get fewer.

An exported program shows the value of a number but not where the code took it from, so where channels are reshaped,
taken apart or calculated with (`Labelling.doubtful`), only running the code with fewer channels tells. All groups are
cut a little, the cut model is exported again, and every tensor must come out as long as predicted, every other number
as it was. What does not freezes the channels that reach it, and the rest is tried again. Nets without doubtful nodes
need no trial.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import Node

from aap_hw.activity import doing
from aap_hw.graph import surgery
from aap_hw.graph.call import Call
from aap_hw.graph.groups import Grouping, find_groups
from aap_hw.graph.labelling import Labelling, Literal
from aap_hw.graph.labels import Labels
from aap_hw.graph.literals import Attribute, explain_literal
from aap_hw.graph.rules.pieces import bounds
from aap_hw.graph.source import explain, own_frames
from aap_hw.graph.widths import width_along, width_of_ids

Exporter = Callable[[nn.Module], ExportedProgram]

# Each trial is an export; a model whose code holds more numbers than these find out is frozen wherever it may hold one.
ATTEMPTS = 12
# Ops whose numbers are lengths, which the shapes of their results tell, and those of which a layer keeps them.
_SPLITS = frozenset({"split", "unsafe_split", "split_with_sizes", "unsafe_split_with_sizes", "slice"})
_RESHAPES = frozenset({"view", "reshape", "_unsafe_view", "expand", "unflatten"})
_NEW = frozenset({"zeros", "ones", "empty", "new_zeros", "new_ones", "new_empty"})
_LAYERS = frozenset({"group_norm", *(f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3))})
_LENGTHS = _SPLITS | _RESHAPES | _NEW | _LAYERS
_LITERAL = "is taken apart at positions that the model's code fixes"
_RESHAPED = "is reshaped to lengths that do not follow when channels are cut"


@dataclass(frozen=True)
class Settled:
    """Groups that were tried, and the attributes of the model that must change with them."""

    grouping: Grouping
    attributes: tuple[Attribute, ...]


def settle(
    labelling: Labelling, program: ExportedProgram, model: nn.Module, ran: nn.Module, export: Exporter
) -> Settled:
    """Groups of a labelled program, those frozen that a trial cut of the model shows to be wrong.

    Attributes are looked up in `ran`, a copy that has been run, as some are set by the first call. If after several
    trials something still does not come out as predicted, all that reaches a doubtful node is frozen; if the rest then
    does not, everything is.
    """
    for attempt in range(ATTEMPTS):
        settled = _with_attributes(labelling, ran)
        with doing(f"tracing the network: trial cut {attempt + 1} of at most {ATTEMPTS}"):
            blamed = _blamed(labelling, settled, program, model, export)
        if not blamed:
            return settled
        for node in blamed:
            _freeze_at(labelling, node)
        if blamed is labelling.doubtful:
            break
    for node in labelling.doubtful:
        _freeze_at(labelling, node)
    settled = _with_attributes(labelling, ran)
    surprise = _first_surprise(labelling, settled, program, model, export)
    if surprise is not None:
        reason = explain("is in a model that computes something else once it is cut", surprise.nodes[0])
        for ids in labelling.axes.values():
            labelling.partition.freeze(ids, reason)
        settled = _with_attributes(labelling, ran)
    return settled


def _with_attributes(labelling: Labelling, ran: nn.Module) -> Settled:
    """Group, and freeze what numbers count that no attribute explains, until all that is left are explained."""
    while True:
        grouping = find_groups(labelling)
        explained = [(literal, explain_literal(literal, ran, grouping)) for literal in labelling.literals]
        lost = [(literal, ids) for literal, explanation in explained for ids in explanation.unexplained]
        for literal, ids in lost:
            labelling.partition.freeze(ids, explain(_LITERAL, literal.node))
        if not lost:
            found = {(a.module, a.name): a for _, explanation in explained for a in explanation.attributes}
            return Settled(grouping, tuple(found.values()))


def _freeze_at(labelling: Labelling, node: Node) -> None:
    is_literal = any(literal.node is node for literal in labelling.literals)
    reason = explain(_LITERAL if is_literal else _RESHAPED, node)
    for source in _around(node):
        result = labelling.labels[source]
        for labels in result if isinstance(result, tuple) else (result,):
            if isinstance(labels, Labels):
                labelling.partition.freeze(labels.ids, reason)


def _around(node: Node) -> list[Node]:
    """A node and what it reads; of a new tensor, what it meets."""
    sources = node.all_input_nodes or [source for user in node.users for source in (user, *user.all_input_nodes)]
    return [node, *sources]


@dataclass(frozen=True)
class _Surprise:
    """The nodes, in the order of the program, of which one is the first that a cut model computes differently."""

    nodes: Sequence[Node]


def _blamed(
    labelling: Labelling, settled: Settled, program: ExportedProgram, model: nn.Module, export: Exporter
) -> list[Node]:
    """The nodes that a trial finds fault with: the nearest doubtful ones, and those in the same lines of code.

    If their channels are frozen already, a number counts other channels: those that the same modules handle are blamed.
    """
    surprise = _first_surprise(labelling, settled, program, model, export)
    if surprise is None:
        return []
    doubtful, before = set(labelling.doubtful), list(surprise.nodes)
    seen = set(before)
    while before and not doubtful.intersection(before):  # backwards through the program
        before = [node for after in before for node in after.all_input_nodes if node not in seen]
        seen.update(before)
    found = [node for node in before if node in doubtful] or labelling.doubtful
    lines = {next(own_frames(node), None) for node in found} - {None}
    blamed = [node for node in labelling.doubtful if node in found or next(own_frames(node), None) in lines]
    if not any(_is_free(labelling, settled.grouping, node) for node in blamed):
        modules = {_module_of(node) for node in blamed}
        blamed = [node for node in _calls(program) if _module_of(node) in modules]
    return blamed if any(_is_free(labelling, settled.grouping, node) for node in blamed) else labelling.doubtful


def _module_of(node: Node) -> str:
    """Path of the innermost module in whose code a node is."""
    return str(next(reversed((node.meta.get("nn_module_stack") or {"": ("", "")}).values()))[0])


def _is_free(labelling: Labelling, grouping: Grouping, node: Node) -> bool:
    """Whether a channel that can be cut reaches a node."""
    results = [labelling.labels[source] for source in _around(node)]
    parts = [part for result in results for part in (result if isinstance(result, tuple) else (result,))]
    return any(isinstance(part, Labels) and width_of_ids(part.ids.ravel(), grouping).terms for part in parts)


def _first_surprise(
    labelling: Labelling, settled: Settled, program: ExportedProgram, model: nn.Module, export: Exporter
) -> _Surprise | None:
    """Cut all groups a little and return what first differs from what was predicted, if anything does."""
    grouping = settled.grouping
    keep: dict[str, list[int]] = {}
    for number, group in enumerate(grouping.groups):
        if group.frozen is None and group.width > 1:
            # Neighbours lose different amounts, so that no length is right by chance.
            keep[group.name] = list(range(group.width - 1 - number % (group.width // 2)))
    if not keep or not labelling.doubtful:
        return None
    checked = surgery.checked_keep(grouping.groups, keep)
    full = {group.name: group.width for group in grouping.groups}
    widths = full | {name: len(kept) for name, kept in keep.items()}
    before = _calls(program)
    try:
        trial = export(surgery.cut(model, checked.values(), settled.attributes, full))
    except Exception as error:
        # Whatever the model's code raises when its numbers no longer fit means the same: it does not follow.
        return _Surprise(_raised_at(error, before) or labelling.doubtful)
    after = _calls(trial)
    literals = {literal.node: literal for literal in labelling.literals}
    for old, new in zip(before, after, strict=False):
        is_as_predicted = (
            old.target == new.target
            and _predicted(labelling, grouping, old, widths) == _shapes(new)
            and (Call(old).name in _LENGTHS or _numbers(old) == _numbers(new))
            and (old not in literals or _slice_follows(literals[old], new, grouping, widths))
        )
        if not is_as_predicted:
            return _Surprise([old])
    return None if len(before) == len(after) else _Surprise(before[-1:])


def _raised_at(error: BaseException, nodes: Sequence[Node]) -> list[Node]:
    """The nodes in the innermost line of code that both raised an error and made nodes."""
    while error.__cause__ is not None:
        error = error.__cause__
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if found := [node for node in nodes if (frame.filename, frame.lineno) == next(own_frames(node), None)]:
            return found
    return []


def _slice_follows(literal: Literal, new: Node, grouping: Grouping, widths: dict[str, int]) -> bool:
    """Whether a slice begins and ends where predicted; of splits the lengths of the pieces tell."""
    if Call(new).name != "slice":
        return True
    size = new.args[0].meta["val"].shape[Call(new)["dim"]]  # type: ignore[union-attr]
    numbers = [number for number, _ in bounds(Call(new), torch.arange(size).numpy())]
    return numbers == [width_of_ids(ids, grouping).at(widths) for _, ids in literal.counts]


def _calls(program: ExportedProgram) -> list[Node]:
    return [node for node in program.graph.nodes if node.op == "call_function"]


def _numbers(node: Node) -> list[float | bool | str]:
    """All the arguments of a node that are neither tensors nor types."""
    found: list[float | bool | str] = []
    torch.fx.node.map_aggregate(
        (node.args, node.kwargs), lambda value: found.append(value) if isinstance(value, (int, float, str)) else None
    )
    return found


def _values(node: Node) -> list[torch.Tensor]:
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else [value]
    return [item for item in values if isinstance(item, torch.Tensor)]


def _shapes(node: Node) -> list[list[int]]:
    return [list(value.shape) for value in _values(node)]


def _predicted(labelling: Labelling, grouping: Grouping, node: Node, widths: dict[str, int]) -> list[list[int]]:
    result = labelling.labels[node]
    parts = result if isinstance(result, tuple) else (result,)
    predicted: list[list[int]] = []
    for labels, value in zip(parts, _values(node), strict=False):
        assert isinstance(labels, Labels)
        predicted.append(
            [
                width_along(labels, dim, size, grouping).at(widths) if isinstance(size, int) else size
                for dim, size in enumerate(value.shape)
            ]
        )
    return predicted
