"""What a network's own samples say of its channels: the score of each, and how much depends on its group."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from aap_hw import ranks
from aap_hw.activity import doing
from aap_hw.attention import ALTERNATIVES, dependence, observed, read_attention, scaled, sensitivities
from aap_hw.compile.front.mixed import MixedNetwork
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.graph.program.inputs import Tensors
from aap_hw.prune.mixture import rounded_by
from aap_hw.prune.samples import calibration_batches
from aap_hw.prune.task import PruneSettings, Task

# Calibration images from which on attention is read batch by batch.
BATCHED_FROM = 64
# Images that tell how much depends on each group: at most so many.
SENSITIVITY_IMAGES = 64


@doing("scoring the filters")
def scores_of(
    task: Task, module: nn.Module, graph: ChannelGraph, settings: PruneSettings
) -> Mapping[str, NDArray[np.float64]]:
    """Score of every channel of a network's groups; ``graph`` must be that of ``module`` as it is now."""
    return scaled(_raw_scores(task, module, graph, settings), settings.score_scale)


def _raw_scores(
    task: Task, module: nn.Module, graph: ChannelGraph, settings: PruneSettings
) -> Mapping[str, NDArray[np.float64]]:
    inputs = task.origin.inputs
    count = settings.images_for(inputs)
    if settings.scored_by == "taylor" and (classes := task.origin.classes) != task.data.classes:
        told = "returns no score for each class" if classes is None else f"tells {classes} classes apart"
        raise UserError(
            f"Taylor scores need the loss on labelled samples, and {task.origin.model} {told} where the samples are of "
            f"{task.data.classes}; choose another --score"
        )
    if settings.scored_by in ALTERNATIVES:
        return ALTERNATIVES[settings.scored_by](module, graph, calibration_batches(task.data, inputs, count))
    distributed = min(count, task.data.count("train")) >= ranks.count()
    batches = (samples for samples, _ in calibration_batches(task.data, inputs, count, distributed=distributed))
    # The graph was traced for one image at a time; for many, another trace for whole batches is soon paid back.
    traced = graph if count <= BATCHED_FROM else None
    is_published = settings.scored_by == "attention"
    seen = observed(
        module,
        batches,
        graph=traced,
        names=inputs.names,
        heads=graph.heads,
        distributed=distributed,
        with_maps=is_published,
    )
    if is_published:
        return seen.scores(settings.reduction, settings.p)
    return read_attention(module, graph, seen.variances(), seen.products())


@doing("finding out what the outputs depend on")
def dependence_of(
    task: Task, module: nn.Module, graph: ChannelGraph, settings: PruneSettings, mixed: MixedNetwork | None
) -> tuple[Mapping[str, float], Mapping[str, Mapping[str, float]]]:
    """Sensitivities of groups, and what rounding costs each domain of a network of mixed precisions."""
    few = _few(task, settings)
    if mixed is None:
        return sensitivities(graph, few), {}
    found = dependence(module, graph, few, *rounded_by(mixed))
    return found.groups, found.rounding


def _few(task: Task, settings: PruneSettings) -> Tensors:
    """Images for what each of them tells a lot about."""
    inputs = task.origin.inputs
    count = min(settings.images_for(inputs), SENSITIVITY_IMAGES)
    batches = [samples for samples, _ in calibration_batches(task.data, inputs, count)]
    return tuple(map(torch.cat, zip(*batches, strict=True)))
