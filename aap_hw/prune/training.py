"""A round's training, and what accuracies a run knows: those that decide, and those that are reported.

Where the samples have a split for validation, that one decides, and the test split is looked at once: when the run is
done. Without one the test split decides, too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from aap_hw.compile.keys.precision import FP32
from aap_hw.errors import UserError
from aap_hw.prune.baseline import Baseline
from aap_hw.prune.events import Event, OnEvent
from aap_hw.prune.journal import Journal
from aap_hw.prune.quantised import accuracy_rounded
from aap_hw.prune.steps import State
from aap_hw.prune.task import PruneSettings, Task
from aap_hw.train.checkpoint import EpochRecord
from aap_hw.train.evaluation import evaluate
from aap_hw.train.loop import share_of_batch, train

if TYPE_CHECKING:
    from aap_hw.quantize.aware import AwareProgram

# Share of a training with roundings, at its end, in which batch norms and ranges stay as they are.
SETTLED = 0.25


def train_round(
    task: Task,
    dense: Baseline,
    module: nn.Module,
    settings: PruneSettings,
    number: int,
    on_event: OnEvent,
    journal: Journal,
    aware_of: Collection[str] | None = None,
) -> float:
    """Train a module for one round, from where an interruption left it; its accuracy in percent.

    It is trained in float32, or rounded as it will be in int8, but for the layers that ``aware_of`` names. Then its
    accuracy is that of the last epoch's roundings.

    A round that was trained before, and of which no checkpoint is left, leaves the module's weights as they are: it is
    neither the last one nor the one to be kept.
    """

    def on_epoch(epoch: int, epochs: int, loss: float, accuracy: float, seconds: float) -> None:
        figures = {"epoch": epoch, "epochs": epochs, "loss": loss, "accuracy": accuracy, "seconds": seconds}
        on_event(Event("epoch", figures))

    def on_step(epoch: int, share: float, loss: float, seconds: float) -> None:
        figures = {"epoch": epoch, "epochs": settings.training.epochs, "share": share, "loss": loss, "seconds": seconds}
        on_event(Event("step", figures))

    trained, state = f"round/{number}/trained", journal.training(number)
    history = (
        state.history if state else [EpochRecord(**r) for r in (journal.value(trained) if trained in journal else ())]
    )
    for record in history:
        on_epoch(record.epoch, settings.training.epochs, record.loss, record.accuracy, record.seconds)
    if trained in journal and state is None:
        return history[-1].accuracy
    learns, how, aware = module, settings.training, None
    before_epoch: Callable[[int], None] | None = None
    if aware_of is not None:
        from aap_hw.quantize.aware import AwareProgram  # torchao takes a second to load

        how = replace(how, precision="fp32")  # in which everything is rounded
        learns = aware = AwareProgram(module, task.origin.inputs, share_of_batch(task.data, how), aware_of)
        before_epoch = partial(settle, aware, how.epochs)
    result = train(
        learns,
        task.data,
        how,
        seed=settings.seed + number,
        inputs=task.origin.inputs,
        teacher=dense.module,
        before_epoch=before_epoch,
        on_epoch=on_epoch,
        on_step=on_step,
        resume_from=state,
        on_checkpoint=partial(journal.save_training, number),
    )
    if aware is not None:
        aware.give(module)
    journal.recall(trained, lambda: [asdict(record) for record in result.history])
    return result.accuracy


def settle(aware: AwareProgram, epochs: int, done: int) -> None:
    """Settle a program, or not, before an epoch of a training of several, of which some are done."""
    # A training of one epoch has nothing to settle on before.
    aware.settle(done > 0 and done >= epochs - max(1, int(SETTLED * epochs)))


def dense_accuracy(task: Task, dense: Baseline, journal: Journal) -> float:
    """Accuracy of the unpruned network on the split that decides, in percent."""

    def find() -> float:
        return evaluate(dense.module, task.data, task.origin.inputs, split=task.data.chosen_by)

    return float(journal.recall("dense/accuracy", find))


def tested(task: Task, dense: Baseline, state: State, on_event: OnEvent, journal: Journal) -> dict[str, float]:
    """Accuracies on a test split that decided nothing, for the summary of a run; empty where there is no such split."""
    if not (task.retrain and task.data.has_validation):
        return {}

    def find() -> dict[str, float]:
        found = {
            "accuracy_dense": evaluate(dense.module, task.data, task.origin.inputs),
            "accuracy_pruned": evaluate(state.module, task.data, task.origin.inputs),
        }
        if state.precision != FP32:
            found["accuracy_pruned_float"] = found["accuracy_pruned"]
            found["accuracy_pruned"] = accuracy_rounded(task, state.module, state.int8, "test", state.precision)
        return found

    found: dict[str, float] = journal.recall("tested", find)
    on_event(Event("tested", found))
    return found


def accuracy_figures(
    task: Task, accuracy_dense: float | None, last: Mapping[str, Any], is_chosen: bool, tested: Mapping[str, float]
) -> dict[str, Any]:
    """What a summary says of accuracy.

    Parameters
    ----------
    accuracy_dense, last : accuracy of the unpruned network, and the figures of the round that was kept, both by the
        split that decides.
    is_chosen : whether an accuracy decided anything.
    tested : as of the function of that name.
    """
    decided: dict[str, Any] = {"accuracy_dense": accuracy_dense, "accuracy_pruned": last.get("accuracy")}
    if "accuracy_float" in last:
        decided["accuracy_pruned_float"] = last["accuracy_float"]
    if not tested:
        return {**decided, "chosen_by": task.data.chosen_by if task.retrain and is_chosen else None}
    by_validation = {name.replace("accuracy_", "accuracy_val_"): value for name, value in decided.items()}
    return {**by_validation, **tested, "chosen_by": task.data.chosen_by}


def check_classes(task: Task) -> None:
    """Raise UserError if the samples are not of as many classes as the network tells apart."""
    if task.origin.classes is None:
        raise UserError(
            f"training takes one score for each class and {task.origin.model} returns something else; cut it to a "
            "budget with --no-training, and train it by your own code"
        )
    if task.origin.classes != task.data.classes:
        raise UserError(
            f"{task.origin.model} tells {task.origin.classes} classes apart and the samples are of "
            f"{task.data.classes}; choose a model for these samples, or add --no-training to cut it without training"
        )


def check_drop(task: Task, drop: float) -> None:
    """Raise UserError if an accuracy may not drop by so many percentage points, or nothing is trained."""
    if not 0 <= drop <= 100:
        raise UserError(f"an accuracy may drop by 0 to 100 percentage points, not by {drop}")
    if not task.retrain:
        raise UserError(
            "an accuracy can only be kept by training: add --data without --no-training, or give a --budget instead"
        )
