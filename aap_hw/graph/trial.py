"""A trial cut shows whether the model's own code follows when its channels get fewer.

An exported program shows the value of a length but not where the code took it from, so where channels are
reshaped or new tensors are made (`Labelling.doubtful`), only running the code with fewer channels tells. All
groups are cut a little, the cut model is exported again, and every tensor must come out as long as predicted.
Nets without doubtful nodes need no trial.
"""

from __future__ import annotations

from collections.abc import Callable

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
    if not labelling.doubtful:
        return grouping
    if not _follows(labelling, grouping, program, model, export):
        for node in labelling.doubtful:
            for source in (node, *node.all_input_nodes):
                result = labelling.labels[source]
                for labels in result if isinstance(result, tuple) else (result,):
                    if isinstance(labels, Labels):
                        sentence = "is reshaped to lengths that do not follow when channels are cut"
                        labelling.partition.freeze(labels.ids, explain(sentence, node))
        grouping = find_groups(labelling)
        if not _follows(labelling, grouping, program, model, export):
            for ids in labelling.axes.values():
                labelling.partition.freeze(
                    ids, "belongs to a model whose code does not follow when it is cut"
                )
            grouping = find_groups(labelling)
    return grouping


def _follows(
    labelling: Labelling, grouping: Grouping, program: ExportedProgram, model: nn.Module, export: Exporter
) -> bool:
    keep = []
    for number, group in enumerate(grouping.groups):
        if group.frozen is None and group.width > 1:
            # Different amounts, so that two errors do not cancel.
            width = max(1, group.width - 1 - number % 3)
            keep.append((group.name, list(range(width))))
    if not keep:
        return True
    checked = surgery.checked_keep(grouping.groups, dict(keep))
    widths = {group.name: group.width for group in grouping.groups} | {
        name: len(kept) for name, (_, kept) in checked.items()
    }
    try:
        trial = export(surgery.cut(model, checked.values()))
    except Exception:
        # Whatever the model's code raises when its numbers no longer fit means the same: it does not follow.
        return False
    before, after = _tensors(program), _tensors(trial)
    if [node.target for node in before] != [node.target for node in after]:
        return False
    return all(
        _predicted(labelling, grouping, old, widths) == _shapes(new)
        for old, new in zip(before, after, strict=True)
    )


def _tensors(program: ExportedProgram) -> list[Node]:
    return [node for node in program.graph.nodes if node.op == "call_function"]


def _values(node: Node) -> list[torch.Tensor]:
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else [value]
    return [item for item in values if isinstance(item, torch.Tensor)]


def _shapes(node: Node) -> list[list[int]]:
    return [list(value.shape) for value in _values(node)]


def _predicted(
    labelling: Labelling, grouping: Grouping, node: Node, widths: dict[str, int]
) -> list[list[int]]:
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
