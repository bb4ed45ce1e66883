"""``aap-hw prune``: cut a network to its budgets, and train it if there are images to train on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from aap_hw.cli.options.budgets import budget_options
from aap_hw.cli.options.cuts import cut_options
from aap_hw.cli.options.device import connect_option
from aap_hw.cli.options.images import data_options
from aap_hw.cli.options.network import model_option_of, network_options
from aap_hw.cli.options.numbers import Number, Whole
from aap_hw.cli.options.precision import planned_precision_option
from aap_hw.cli.options.table import lut_option_of, read_table_to_predict, unmeasured_options
from aap_hw.cli.options.typed import typed
from aap_hw.cli.output import json_option, quiet_option, write_json
from aap_hw.cli.streams import results_alone
from aap_hw.cli.torchrun import one_of_several
from aap_hw.errors import UserError
from aap_hw.prune.defaults import MOST_ROUNDS, ROUNDS, SCHEDULES
from aap_hw.train.defaults import DISTILLATION, EPOCHS, LEARNING_RATE

if TYPE_CHECKING:
    from aap_hw.cli.run_screen import PruneScreen
    from aap_hw.compile.keys.precision import NetworkPrecision
    from aap_hw.prune.defaults import Schedule
    from aap_hw.prune.job import Pruned
    from aap_hw.train.settings import TrainSettings
    from aap_hw.train.sources import ImageSource


OF_TRAINING = (
    "--rounds",
    "--schedule",
    "--epochs",
    "--learning-rate",
    "--training",
    "--seed",
    "--max-accuracy-drop",
    "--qat",
    "--distill",
)


@click.command(
    epilog="\b\nExamples:\n  aap-hw prune --model mobilenetv2 --lut lut/x86.json --budget 60%\n"
    "  aap-hw prune --model resnet20 --data embedded --lut lut/x86.json --budget 50% --out runs/first\n"
    "  aap-hw prune --model resnet20 --data embedded --lut lut/x86.json --budget 50% --precision int8 --qat\n"
    "  aap-hw prune --resume runs/first"
)
@model_option_of()
@lut_option_of(required=False)
@budget_options
@click.option(
    "--device",
    metavar="NAME",
    help="The profile of the table's device, by name or path; default: the one that the table names.",
)
@connect_option
@network_options
@data_options
@click.option("--download", is_flag=True, help="Download the images first (cifar10 and fashion-mnist only).")
@click.option(
    "--no-training",
    is_flag=True,
    help="Cut once and train nothing: --data only ranks the filters, and code of yours trains what is left.",
)
@click.option(
    "--max-accuracy-drop",
    type=Number(0, 100),
    metavar="POINTS",
    help="Percentage points of accuracy that may be lost. Alone: prune as far as that allows. With a budget: once that "
    "is met, train on until the accuracy is back.",
)
@click.option(
    "--rounds",
    type=Whole(min=1),
    metavar="N",
    help=f"Reach the budget in N rounds of pruning and training; default {ROUNDS}. With --max-accuracy-drop alone: at "
    f"most N; default {MOST_ROUNDS}.",
)
@click.option(
    "--schedule",
    type=click.Choice(SCHEDULES),
    default="geometric",
    show_default=True,
    help="What each round removes: the same share of what is left (geometric), or the same amount (additive).",
)
@click.option("--epochs", type=Whole(min=1), help=f"Epochs of training in each round; default {EPOCHS}.")
@click.option(
    "--learning-rate",
    type=Number(min=0, min_open=True),
    help=f"Initial learning rate of each round; default {LEARNING_RATE}.",
)
@click.option(
    "--training",
    metavar="FILE",
    help="TOML file with training settings: optimiser, schedule, augmentation, loss and more; see "
    "docs/data_and_training.md.",
)
@click.option(
    "--distill/--no-distill",
    default=None,
    help="Let the unpruned network teach the pruned one: its outputs are half of what training aims at, labels the "
    "other half. Default: what --training says, else off.",
)
@click.option("--seed", default=0, show_default=True, type=int, help="Random seed of training.")
@planned_precision_option
@click.option(
    "--qat",
    is_flag=True,
    help="With --precision int8 or mixed: train the last round with int8's rounding simulated (quantisation-aware "
    "training); with --max-accuracy-drop alone, every round, as each may be the last.",
)
@cut_options
@unmeasured_options
@click.option("--out", metavar="FOLDER", help="Folder of the run; default: runs/MODEL-DEVICE-BUDGET.")
@click.option("--tensorboard", is_flag=True, help="Also write figures for TensorBoard into the run's folder.")
@click.option(
    "--resume",
    metavar="RUN",
    help="Go on with an interrupted run, given its folder. Add --connect if the device has moved, and nothing else.",
)
@quiet_option
@json_option
@click.pass_context
@results_alone
@one_of_several
def command(
    ctx: click.Context,
    model_name: str | None,
    lut_path: str | None,
    budgets: dict[str, Any],
    network: dict[str, Any],
    source: ImageSource | None,
    download: bool,
    no_training: bool,
    max_accuracy_drop: float | None,
    rounds: int | None,
    schedule: Schedule,
    epochs: int | None,
    learning_rate: float | None,
    training: str | None,
    distill: bool | None,
    seed: int,
    precision: NetworkPrecision,
    qat: bool,
    cuts: dict[str, Any],
    unmeasured: dict[str, Any],
    device: str | None,
    connect_to: str | None,
    out: str | None,
    tensorboard: bool,
    resume: str | None,
    quiet: bool,
    json_to: str | None,
) -> None:
    """Prune a network until it meets its budgets, keeping the filters that matter most.

    With --data, rounds of pruning and training alternate. Without it, or with --no-training, the network is cut once
    and not trained. --max-accuracy-drop makes it as fast as the accuracy allows, and undoes rounds that lose too much.
    An interrupted run goes on with --resume.

    With --precision int8 or half, latencies, budgets and the final accuracy are those of the network in that precision:
    it is trained in float32 and then rounded. In int8, layers that would lose too much stay in float32. With mixed, the
    plan chooses which do, and a share of a latency is one of the unpruned network in float32.
    """
    from aap_hw import api, ranks
    from aap_hw.cli.console import PlainConsole
    from aap_hw.cli.run_screen import PruneScreen
    from aap_hw.prune.task import PruneSettings

    # Standard output is for JSON alone, if it is asked for.
    screen = PruneScreen(PlainConsole(stderr=json_to is not None, quiet=quiet or not ranks.is_first()))
    if resume is not None:
        _only_resume(ctx)
        with screen:
            pruned = api.resume(resume, connect=connect_to, on_event=screen.show)
        _finish(screen, pruned, json_to)
        return
    if no_training and (idle := [name for name in typed(ctx) if name in OF_TRAINING]):
        raise UserError(f"--no-training trains nothing, so {', '.join(idle)} would do nothing; leave one of them out")
    if model_name is None or lut_path is None:
        raise click.UsageError(f"Missing option '{'--model' if model_name is None else '--lut'}'.", ctx)
    settings = PruneSettings(
        rounds,
        **cuts,
        schedule=schedule,
        training=_training(training, epochs, learning_rate, distill),
        seed=seed,
        precision=precision,
        qat=qat,
    )
    table = read_table_to_predict(lut_path, model_name, precision)
    with screen:
        pruned = api.prune(
            model_name,
            table,
            **budgets,
            **network,
            **unmeasured,
            max_accuracy_drop=max_accuracy_drop,
            data=source,
            download=download,
            train=not no_training,
            settings=settings,
            device=device,
            connect=connect_to,
            out=out,
            tensorboard=tensorboard,
            on_event=screen.show,
        )
    _finish(screen, pruned, json_to)


def _finish(screen: PruneScreen, pruned: Pruned, json_to: str | None) -> None:
    from aap_hw import ranks

    if not ranks.is_first():
        return
    if json_to is not None:
        write_json({"run": str(pruned.folder), **pruned.summary}, json_to)
    else:
        screen.finish(pruned)


def _training(path: str | None, epochs: int | None, learning_rate: float | None, distill: bool | None) -> TrainSettings:
    """How to train: by a file, if there is one; options win."""
    from aap_hw.train.settings import TrainSettings

    chosen = TrainSettings() if path is None else TrainSettings.read(path)
    loss = chosen.loss
    if distill is not None:
        loss = replace(loss, distillation=(loss.distillation or DISTILLATION) if distill else 0.0)
    return replace(
        chosen, epochs=epochs or chosen.epochs, learning_rate=learning_rate or chosen.learning_rate, loss=loss
    )


def _only_resume(ctx: click.Context) -> None:
    """Refuse what would be ignored."""
    if others := [name for name in typed(ctx) if name not in ("--resume", "--connect", "--quiet", "--json")]:
        raise UserError(f"--resume goes on with what the run was asked for; leave {', '.join(others)} out")
