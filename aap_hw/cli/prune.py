"""``aap-hw prune``: cut a network to its budgets, and train it if there are images to train on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from aap_hw.cli.options import (
    budget_options,
    calibration_option,
    emulated_option,
    input_option,
    lut_option,
    model_option,
    origin_of,
    read_table,
    score_option,
    weights_option,
)

if TYPE_CHECKING:
    from aap_hw.policy import Budget
    from aap_hw.prune.steps import Event

BUDGET_ROUNDS, ACCURACY_ROUNDS = 3, 10
# What tells budgets of different resources apart in the name of a run's folder.
_SUFFIX = {"latency": "", "parameters": "-params", "flops": "-flops"}


@click.command(
    epilog="\b\nExamples:\n  aap-hw prune --model mobilenetv2 --lut lut/x86.json --budget 60%\n"
    "  aap-hw prune --model resnet20 --data embedded --lut lut/x86.json --budget 50% --out runs/first"
)
@model_option
@lut_option
@budget_options
@input_option
@click.option("--data", "data_name", type=click.Choice(["embedded"]), help="Images to train on; default: no training.")
@weights_option
@click.option(
    "--max-accuracy-drop",
    type=click.FloatRange(0, 100),
    help="Instead of budgets: prune as far as this many percentage points of accuracy allow.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    help=f"Steps to the budget; default {BUDGET_ROUNDS}. With --max-accuracy-drop at most so many; default "
    f"{ACCURACY_ROUNDS}.",
)
@click.option("--epochs", default=4, show_default=True, type=click.IntRange(min=1), help="Epochs of training a round.")
@click.option(
    "--learning-rate",
    default=0.05,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Of each round's start.",
)
@click.option("--seed", default=0, show_default=True, type=int, help="Of training.")
@calibration_option
@score_option
@emulated_option
@click.option("--out", metavar="FOLDER", help="Run folder; default: runs/MODEL-DEVICE-BUDGET.")
def command(
    model_name: str,
    lut_path: str,
    budgets: list[Budget],
    input_size: tuple[int, ...] | None,
    data_name: str | None,
    weights: str | None,
    max_accuracy_drop: float | None,
    rounds: int | None,
    epochs: int,
    learning_rate: float,
    seed: int,
    calibration_images: int | None,
    score: str,
    allow_emulated: bool,
    out: str | None,
) -> None:
    """Prune a network until it meets its budgets, keeping the filters with the most attention.

    With --data it is trained in rounds; without, it is cut in one go and not trained. With --max-accuracy-drop it gets
    as fast as the accuracy allows; rounds that lose too much are undone.
    """
    from aap_hw.cli.run_screen import PruneScreen
    from aap_hw.errors import UserError
    from aap_hw.prune.accuracy import prune_within
    from aap_hw.prune.device import device_of
    from aap_hw.prune.rounds import prune
    from aap_hw.prune.run import RunFolder
    from aap_hw.prune.task import PruneSettings, Task
    from aap_hw.train.data import load_embedded
    from aap_hw.train.loop import TrainSettings

    table = read_table(lut_path)
    if weights is None and data_name == "embedded" and model_name == "resnet20":
        weights = "embedded"
    origin = origin_of(model_name, input_size, None if weights == "none" else weights)
    if budgets and max_accuracy_drop is not None:
        raise UserError("give budgets or --max-accuracy-drop, not both: one is met at any accuracy, one at any latency")
    asked = "-".join(str(budget).replace("%", "pct") + _SUFFIX[budget.resource.name] for budget in budgets)
    asked = asked or f"{max_accuracy_drop:g}-drop"
    name = f"{model_name}-{table.device['name']}-{asked}" + ("" if score == "attention" else f"-{score}")
    run = RunFolder(Path(out) if out else Path("runs") / name)
    run.check_free()
    device, why_predicted = device_of(table)
    screen = PruneScreen(run.path, why_predicted)

    def on_event(event: Event) -> None:
        if event.name == "start":
            run.create()
        run.append_event({"event": event.name, **event.figures})
        screen.show(event)

    task = Task(origin, table, load_embedded(), data_name is not None, device, allow_emulated)
    training = TrainSettings(epochs=epochs, learning_rate=learning_rate)
    rounds = rounds or (BUDGET_ROUNDS if budgets else ACCURACY_ROUNDS)
    settings = PruneSettings(rounds, calibration_images, score, training=training, seed=seed)
    try:
        if max_accuracy_drop is None:
            pruned, summary = prune(task, budgets, settings, on_event)
        else:
            pruned, summary = prune_within(task, max_accuracy_drop, settings, on_event)
        run.save(pruned, summary)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"no run was saved in {run.path}; the same command begins it anew") from None
    screen.finish(summary)
