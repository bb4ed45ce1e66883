"""A run's network as it is rounded: its accuracy in int8 and in half precision.

In int8 also which layers stay in float32, and the scales of the values of the others. Training is in float32. What a
round leaves is quantised after it, on the images that attention is measured on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from aap_hw import ranks
from aap_hw.activity import doing
from aap_hw.compile.keys.precision import FP32, INT8, OTHERS, NetworkPrecision
from aap_hw.errors import UserError
from aap_hw.foreign import reason
from aap_hw.graph.program.inputs import Tensors
from aap_hw.inputs import Inputs
from aap_hw.prune.defaults import LARGEST_LOSS
from aap_hw.prune.journal import Journal
from aap_hw.prune.run import PrunedNetwork
from aap_hw.prune.samples import batch_size, calibration_batches
from aap_hw.prune.task import PruneSettings, Task
from aap_hw.train.evaluation import evaluate
from aap_hw.train.samples import Samples, Split

if TYPE_CHECKING:
    from aap_hw.quantize.form import Int8Form
    from aap_hw.quantize.sensitivity import Loss

# What a journal calls the layers that stay in float32.
FLOATS = "int8/floats"


def layers_in_float32(
    task: Task, module: nn.Module, settings: PruneSettings, drop: float | None, journal: Journal
) -> dict[str, Any]:
    """The layers that stay in float32, as `aap_hw.quantize.FloatLayers` has them, with what was ``allowed`` to be lost.

    They are chosen once, for the unpruned network: plans count them as what they are. The loss is what rounding takes
    of the mean probability of the right class, in percentage points: the accuracy, but for the luck of a few images.
    Of a network that returns no scores of these classes it is the noise in the outputs, in percent of their variance.
    """
    allowed = LARGEST_LOSS if drop is None else min(drop, LARGEST_LOSS)

    def find() -> dict[str, Any]:
        from aap_hw.quantize.sensitivity import float_layers  # torchao takes a second to load

        inputs = task.origin.inputs
        shown = _shown(task.data, inputs, settings.images_for(inputs))
        unit, loss = _loss(task, torch.cat([labels for _, labels in shown]))
        found = float_layers(module, inputs, [batch for batch, _ in shown], loss, allowed)
        return {**asdict(found), "allowed": allowed, "unit": unit}

    known: dict[str, Any] = journal.recall(FLOATS, partial(ranks.found_by_first, find))
    return known


def _loss(task: Task, labels: Tensor) -> tuple[str, Loss]:
    from aap_hw.quantize.ranges import noise_share

    def points(exact: list[Tensor], found: list[Tensor]) -> float:
        right = [torch.cat(each).double().softmax(1).gather(1, labels[:, None]).mean() for each in (exact, found)]
        return 100 * float(right[0] - right[1])

    def percent(exact: list[Tensor], found: list[Tensor]) -> float:
        return 100 * noise_share(exact, found)

    is_judged = task.origin.classes is not None and task.origin.classes == task.data.classes
    return ("points", points) if is_judged else ("% of the outputs' variance", percent)


@doing("quantising the network")
def quantised(task: Task, module: nn.Module, settings: PruneSettings, floats: Collection[str]) -> dict[str, Any]:
    """The form of a trained network in int8, as JSON values."""
    count = settings.images_for(task.origin.inputs)
    return ranks.found_by_first(lambda: _calibrated(module, task.origin.inputs, task.data, count, floats).as_json())


@doing("finding the accuracy of the rounded network")
def accuracy_rounded(
    task: Task, module: nn.Module, form: Mapping[str, Any] | None, split: Split, precision: NetworkPrecision = INT8
) -> float:
    """Accuracy on a split, in percent, of a network in int8 by its form, or without one in half precision.

    The ``precision`` of one in int8 says what its other layers are in.
    """
    from aap_hw.quantize.reference import Program

    inputs = task.origin.inputs
    program, size = _in_half(task, module) if form is None else _in_int8(task, module, form, precision)
    return evaluate(Program(program, inputs.names, size), task.data, inputs, split=split, batch_size=4 * size)


def _in_half(task: Task, module: nn.Module) -> tuple[GraphModule, int]:
    from aap_hw.quantize.halved import halved

    size = batch_size(task.origin.inputs)
    return halved(module, task.origin.inputs, task.target, size), size


def _in_int8(
    task: Task, module: nn.Module, written: Mapping[str, Any], precision: NetworkPrecision
) -> tuple[GraphModule, int]:
    from aap_hw.quantize.form import Int8Form
    from aap_hw.quantize.halved import halved_beside_int8
    from aap_hw.quantize.reference import rounded

    form, inputs = Int8Form.from_json(written), task.origin.inputs
    size = batch_size(inputs)
    try:
        program = form.of(module, inputs, size)
    except UserError:  # for several samples it has another program
        size, program = 1, form.of(module, inputs)
    if OTHERS[precision] == FP32:
        return rounded(*program), size
    alone = form.of(module, inputs), inputs.zeros()
    return halved_beside_int8(program, inputs.zeros(size), task.target, alone), size


def quantised_of(network: PrunedNetwork, data: Samples, *, anew: bool = False) -> GraphModule:
    """The reference of a run's network in int8, for one sample.

    Its scales are those of the run, or are measured ``anew`` on the samples.

    Raises
    ------
    UserError : the scales are not of this network, or damaged.
    """
    from aap_hw.quantize.form import Int8Form
    from aap_hw.quantize.reference import rounded

    inputs, record = network.origin.inputs, network.record
    try:
        form, count = Int8Form.from_json(record["quantisation"]), int(record["calibration_images"])
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        what = f"{problem} is missing" if isinstance(problem, KeyError) else reason(problem)
        raise UserError(
            f"the run's run.json is damaged where it says what is in int8 ({what}); restore it, or run 'aap-hw prune' "
            "again"
        ) from problem
    if anew:
        form = _calibrated(network.module, inputs, data, count, form.floats)
    return rounded(*form.of(network.module, inputs))


def _calibrated(module: nn.Module, inputs: Inputs, data: Samples, count: int, floats: Collection[str]) -> Int8Form:
    from aap_hw.quantize.form import calibrated

    return calibrated(module, inputs, [batch for batch, _ in _shown(data, inputs, count)], floats)


def _shown(data: Samples, inputs: Inputs, count: int) -> list[tuple[Tensors, Tensor]]:
    """Calibration samples and their labels, in batches of one size."""
    batches = list(calibration_batches(data, inputs, count))
    return [batch for batch in batches if len(batch[1]) == len(batches[0][1])]
