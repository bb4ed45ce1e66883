"""What a trial cut does that was not predicted: the model is cut a little and exported again.

Every tensor must come out as long as its labels say, every other number as it was, and a slice must begin and end where
its channels do. The groups that a trial cuts can be chosen, so that `culprits` finds those that are to blame.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import Node

from aap_hw.graph.cut import surgery
from aap_hw.graph.cut.scaling import Rescaling, Setting
from aap_hw.graph.groups.groups import Grouping
from aap_hw.graph.groups.widths import WidthExpr, width_along, width_of_ids
from aap_hw.graph.program.call import Call, added_by_padding, shape_of
from aap_hw.graph.program.source import own_frames
from aap_hw.graph.trial.amounts import amounts, lengths_of
from aap_hw.graph.trial.roots import Root
from aap_hw.graph.walk.computed import computed_weights
from aap_hw.graph.walk.labelling import Labelling
from aap_hw.graph.walk.labels import IntArray
from aap_hw.graph.walk.noted import Literal
from aap_hw.graph.walk.rules.filled import FILLED, NUMBERED
from aap_hw.graph.walk.rules.pieces import bounds

Exporter = Callable[[nn.Module], ExportedProgram]

# Ops whose numbers are lengths, which the shapes of their results tell, and those of which a layer keeps them.
SPLITS = frozenset({"split", "unsafe_split", "split_with_sizes", "unsafe_split_with_sizes", "slice"})
RESHAPES = frozenset({"view", "reshape", "_unsafe_view", "expand", "unflatten"})
NEW = FILLED | {"empty", "new_empty"}
NORMS = frozenset({"group_norm", "layer_norm", "rms_norm"})
LAYERS = NORMS.union(f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3))
PADS = frozenset({"pad", "constant_pad_nd"})
POOLS = frozenset(f"adaptive_avg_pool{n}d" for n in (1, 2, 3))
_LENGTHS = SPLITS | RESHAPES | NEW | LAYERS | POOLS | {"repeat", "tile"}
# Export leaves it out where a tensor lies as it should, as one does whose channels are down to one.
_COPY_IF_NEEDED = "contiguous"
# How often a network is cut if pieces are taken at numbers of which nothing is known.
_PLANS_OF_GUESSES = 4


@dataclass(frozen=True)
class Settled:
    """Groups that were tried, and the attributes and rows of weights that must change with them.

    ``guesses`` says that pieces are taken at numbers of which no attribute tells where they come from, ``checks`` that
    the model's code compares some of the attributes with the channels that it gets.
    """

    grouping: Grouping
    attributes: tuple[Setting, ...]
    rescalings: tuple[Rescaling, ...] = ()
    guesses: bool = False
    checks: bool = False


@dataclass(frozen=True)
class Surprise:
    """The nodes, in the order of the program, of which one is the first that a cut model computes differently.

    ``is_number`` says that a number differs but no length, ``root`` that it changed only as the root of a width did.
    """

    nodes: Sequence[Node]
    root: Root | None = None
    is_number: bool = False


class Trials:
    """Cuts a model a little, exports it and compares, and counts how often.

    Attributes
    ----------
    made : number of exports so far.
    """

    def __init__(self, labelling: Labelling, program: ExportedProgram, model: nn.Module, export: Exporter) -> None:
        self.made = 0
        self._labelling, self._model, self._export = labelling, model, export
        self._program = program
        self._lengths: tuple[Grouping, set[WidthExpr]] | None = None
        self._before = [node for node in calls(program) if node not in labelling.inside]

    def first_surprise(self, settled: Settled, only: Collection[str] | None = None) -> Surprise | None:
        """Cut all groups, or ``only`` those named, and return what first differs from what was predicted, if any."""
        for plan in range(_PLANS_OF_GUESSES if settled.guesses else 1):
            if surprise := self._surprise(settled, only, plan):
                return surprise
        return None

    def _surprise(self, settled: Settled, only: Collection[str] | None, plan: int) -> Surprise | None:
        labelling, grouping = self._labelling, settled.grouping
        free = [group for group in grouping.groups if group.frozen is None and group.width > 1]
        cut = [group for group in free if only is None or group.name in only]
        if not cut or not (labelling.doubtful or labelling.numbers or settled.checks):
            return None
        self.made += 1
        if self._lengths is None or self._lengths[0] is not grouping:
            self._lengths = grouping, lengths_of(labelling, grouping)
        full = {group.name: group.width for group in grouping.groups}
        kept = amounts(cut, self._lengths[1], full, plan)
        checked = surgery.checked_keep(grouping.groups, {name: range(count) for name, count in kept.items()})
        widths = full | kept
        try:
            smaller = surgery.cut(
                self._model,
                checked.values(),
                settled.attributes,
                full,
                labelling.kept,
                settled.rescalings,
                labelling.computed,
            )
            trial = self._export(smaller)
        except Exception as error:
            # Whatever the model's code raises when its numbers no longer fit means the same: it does not follow.
            return Surprise(_raised_at(error, self._before) or labelling.doubtful or self._before)
        # Whatever computes weights is checked where these are cut.
        signature = trial.graph_signature
        inside = computed_weights(trial, smaller, {**signature.inputs_to_parameters, **signature.inputs_to_buffers})[1]
        after = [node for node in calls(trial) if node not in inside]
        removed = surgery.removed_positions(checked.values())
        literals = {literal.node: literal for literal in labelling.literals}
        for old, new in zip(self._before, after, strict=False):
            is_as_long = old.target == new.target and _predicted(labelling, grouping, old, widths) == _shapes(new)
            is_as_predicted = (
                is_as_long
                and _numbers(old) == _numbers(new)
                and _places_follow(labelling, old, new, literals.get(old), grouping, widths)
                and self._keeps_the_same(old, new, trial, removed)
            )
            if not is_as_predicted:
                root = Root.at(labelling, old) if old.target == new.target else None
                if root is None or not root.explains(new, grouping, widths):
                    return Surprise([old], is_number=is_as_long and _numbers(old) != _numbers(new))
                if old not in labelling.roots:
                    return Surprise([old], root)
        return None if len(self._before) == len(after) else Surprise(self._before[-1:])

    def _keeps_the_same(
        self, old: Node, new: Node, trial: ExportedProgram, removed: Mapping[tuple[str, int], IntArray]
    ) -> bool:
        """Whether tensors that the model's code keeps or makes are those of the uncut model without what is gone."""
        for before, after in zip(old.all_input_nodes, new.all_input_nodes, strict=False):
            name = self._labelling.parameter_name(before)
            expected, found = _constant(self._program, before), _constant(trial, after)
            if name not in self._labelling.kept and expected is None and found is None:
                continue  # a parameter, or the result of another call
            if expected is None or found is None:
                return False
            for (parameter, dim), positions in removed.items():
                if parameter == name:
                    expected = surgery.without(expected, dim, positions)
            if expected.shape != found.shape or not torch.allclose(expected, found, equal_nan=True):
                return False
        return True


def _constant(program: ExportedProgram, placeholder: Node) -> torch.Tensor | None:
    name = program.graph_signature.inputs_to_lifted_tensor_constants.get(placeholder.name, "")
    tensor = program.constants.get(name)
    if not isinstance(tensor, torch.Tensor):
        return None
    return tensor if tensor.is_complex() else tensor.double()


def _raised_at(error: BaseException, nodes: Sequence[Node]) -> list[Node]:
    """The nodes in the innermost line of code that both raised an error and made nodes."""
    while error.__cause__ is not None:
        error = error.__cause__
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if found := [node for node in nodes if (frame.filename, frame.lineno) == next(own_frames(node), None)]:
            return found
    return []


def _places_follow(
    labelling: Labelling, old: Node, new: Node, literal: Literal | None, grouping: Grouping, widths: dict[str, int]
) -> bool:
    """Whether a slice begins and ends, and padding lies, where predicted; of splits the lengths of the pieces tell."""
    name = Call(new).name
    if name not in PADS and (literal is None or name != "slice"):
        return True
    counts = [] if literal is None else [width_of_ids(ids, grouping).at(widths) for _, ids in literal.counts]
    if name in PADS:
        dims, following = labelling.of(old).dims, iter(counts)
        expected = [
            (dim, next(following) if counts and dim in dims else amount) for dim, amount in _amounts_of_padding(old)
        ]
        return _amounts_of_padding(new) == expected
    size = shape_of(Call(new).first)[Call(new)["dim"]]
    return [number for number, _ in bounds(Call(new), torch.arange(size).numpy())] == counts


def _amounts_of_padding(node: Node) -> list[tuple[int, int]]:
    """The axes that are padded, and by how much, on each side."""
    return [(dim, amount) for dim, sides in enumerate(added_by_padding(Call(node))) for amount in sides if amount]


def calls(program: ExportedProgram) -> list[Node]:
    """The calls of a program, in order, but for copies that are made or not as a tensor lies in memory."""
    nodes = (node for node in program.graph.nodes if node.op == "call_function")
    return [node for node in nodes if Call(node).name != _COPY_IF_NEEDED]


def _numbers(node: Node) -> list[str]:
    """All the arguments of a node that are neither tensors nor types, nor lengths; as text, as NaN equals nothing."""
    call, found = Call(node), list[str]()
    arguments: Any = (node.args, node.kwargs)
    if call.name in NUMBERED:
        arguments = call["fill_value"]
    elif call.name in PADS:
        arguments = (call.get("mode"), call["value"])
    elif call.name in _LENGTHS:
        arguments = ()
    torch.fx.node.map_aggregate(
        arguments, lambda value: found.append(repr(value)) if isinstance(value, (int, float, str)) else None
    )
    return found


def values(node: Node) -> list[torch.Tensor]:
    """The tensors that a node yields."""
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else [value]
    return [item for item in values if isinstance(item, torch.Tensor)]


def _shapes(node: Node) -> list[list[int]]:
    return [list(value.shape) for value in values(node)]


def _predicted(labelling: Labelling, grouping: Grouping, node: Node, widths: dict[str, int]) -> list[list[int]]:
    return [
        [
            width_along(labels, dim, size, grouping).at(widths) if isinstance(size, int) else size
            for dim, size in enumerate(value.shape)
        ]
        for labels, value in zip(labelling.all_labels(node), values(node), strict=False)
    ]
