"""A trial cut shows whether the model's own code follows when its channels get fewer.

An exported program shows the value of a length but not where the code took it from, so where channels are
reshaped or new tensors are made (`Labelling.doubtful`), only running the code with fewer channels tells. All
groups are cut a little, the cut model is exported again, and every tensor must come out as long as predicted.
Nets without doubtful nodes need no trial.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import Node

from aap_hw.graph import surgery
from aap_hw.graph.groups import Grouping, find_groups
from aap_hw.graph.labelling import Labelling
from aap_hw.graph.labels import Labels
from aap_hw.graph.source import explain
from aap_hw.graph.widths import width_along

Exporter = Callable[[nn.Module], ExportedProgram]


def settle(labelling: Labelling, program: ExportedProgram, model: nn.Module, export: Exporter) -> Grouping:
    """Groups of a labelled program, those frozen that a trial cut shows to be wrong.

    First what reaches a doubtful node is frozen; if the rest still does not come out as predicted, everything
    is.
    """
    grouping = find_groups(labelling)
    if not labelling.doubtful or _first_surprise(labelling, grouping, program, model, export) is None:
        return grouping
    for node in labelling.doubtful:
        reason = explain("is reshaped to lengths that do not follow when channels are cut", node)
        for source in (node, *node.all_input_nodes):
            result = labelling.labels[source]
            for labels in result if isinstance(result, tuple) else (result,):
                if isinstance(labels, Labels):
                    labelling.partition.freeze(labels.ids, reason)
    grouping = find_groups(labelling)
    surprise = _first_surprise(labelling, grouping, program, model, export)
    if surprise is not None:
        reason = explain("is in a model that computes something else once it is cut", surprise)
        for ids in labelling.axes.values():
            labelling.partition.freeze(ids, reason)
        grouping = find_groups(labelling)
    return grouping


def _first_surprise(
    labelling: Labelling, grouping: Grouping, program: ExportedProgram, model: nn.Module, export: Exporter
) -> Node | None:
    """Cut all groups a little and return the first node that differs from what was predicted, if one does."""
    keep: dict[str, list[int]] = {}
    for number, group in enumerate(grouping.groups):
        if group.frozen is None and group.width > 1:
            # Different amounts, so that two errors do not cancel.
            keep[group.name] = list(range(max(1, group.width - 1 - number % 3)))
    if not keep:
        return None
    checked = surgery.checked_keep(grouping.groups, keep)
    widths = {group.name: group.width for group in grouping.groups}
    widths.update({name: len(kept) for name, kept in keep.items()})
    try:
        with _quiet():
            trial = export(surgery.cut(model, checked.values()))
    except Exception:
        # Whatever the model's code raises when its numbers no longer fit means the same: it does not follow.
        return labelling.doubtful[0]
    before, after = _calls(program), _calls(trial)
    for old, new in zip(before, after, strict=False):
        if old.target != new.target or _predicted(labelling, grouping, old, widths) != _shapes(new):
            return old
    return None if len(before) == len(after) else before[-1]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep PyTorch from logging errors that a trial is there to find."""
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(previous)


def _calls(program: ExportedProgram) -> list[Node]:
    return [node for node in program.graph.nodes if node.op == "call_function"]


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
