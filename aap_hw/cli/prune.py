"""``aap-hw prune``: cut a network to a latency budget, and train it if there are images to train on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from aap_hw.cli.options import DEFAULT_MODEL, budget_option, build_model, input_option, lut_option

if TYPE_CHECKING:
    from aap_hw.policy import Budget


@click.command(
    epilog="\b\nExamples:\n  aap-hw prune --model mobilenetv2 --lut lut/x86.json --budget 60%\n"
    "  aap-hw prune --model resnet20 --data embedded --lut lut/x86.json --budget 50% --out runs/first"
)
@click.option(
    "--model",
    "model_name",
    default=DEFAULT_MODEL,
    metavar="NAME",
    show_default=True,
    help="Network to prune.",
)
@lut_option
@budget_option
@input_option
@click.option("--data", "data_name", type=click.Choice(["embedded"]), help="Images to train on; default: no training.")
@click.option("--weights", metavar="NAME", help="'embedded' (resnet20; the default with --data embedded) or none.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(min=1), help="Steps to the budget.")
@click.option("--epochs", default=4, show_default=True, type=click.IntRange(min=1), help="Epochs of training a round.")
@click.option(
    "--learning-rate",
    default=0.05,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Of each round's start.",
)
@click.option("--seed", default=0, show_default=True, type=int, help="Of training.")
@click.option("--out", metavar="FOLDER", help="Run folder; default: runs/MODEL-DEVICE-BUDGET.")
def command(
    model_name: str,
    lut_path: str,
    budget: Budget,
    input_size: tuple[int, ...] | None,
    data_name: str | None,
    weights: str | None,
    rounds: int,
    epochs: int,
    learning_rate: float,
    seed: int,
    out: str | None,
) -> None:
    """Prune a network until it meets a latency budget, keeping the filters with the most attention."""
    from aap_hw.cli.screen import PruneScreen
    from aap_hw.lut.file import load_table
    from aap_hw.prune.device import device_of
    from aap_hw.prune.rounds import PruneSettings, Task, prune
    from aap_hw.prune.run import Origin, RunFolder
    from aap_hw.train.data import load_embedded
    from aap_hw.train.loop import TrainSettings

    table = load_table(Path(lut_path))
    if data_name == "embedded" and weights is None and model_name == "resnet20":
        weights = "embedded"
    model = build_model(model_name, input_size, weights)
    device, why_not = device_of(table)
    if why_not:
        click.echo(f"latencies are predicted, not measured: {why_not}", err=True)
    name = f"{model.name}-{table.device['name']}-{str(budget).replace('%', 'pct')}"
    run = RunFolder(Path(out) if out else Path("runs") / name)
    run.create()
    screen = PruneScreen(run)
    task = Task(Origin(model.name, weights, model.input_shape), table, load_embedded(), data_name is not None, device)
    training = TrainSettings(epochs=epochs, learning_rate=learning_rate)
    settings = PruneSettings(rounds=rounds, training=training, seed=seed)
    pruned, summary = prune(task, budget, settings, screen.event)
    run.save(pruned, summary)
    screen.finish(summary)
