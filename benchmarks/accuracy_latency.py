"""Accuracy against measured latency on CIFAR-10: our networks against other ways to a faster one, all else being equal.

Every method is brought to the same share of the unpruned network's float32 latency on one table, then trained the same
(all training images, epochs, seeds, settings, the unpruned network as a teacher), quantised if it is one in int8, and
evaluated on all test images. Latencies are those of all networks timed in turn, on a machine that does nothing else.

It takes many hours. What is finished is in a folder as text, and may be committed and taken up on another machine; an
unfinished training goes on after its last epoch. The same command starts and goes on. On several cores, run
`--stages train` several times at once after `--stages plan`, and `--stages measure,report` when nothing else runs.

    python benchmarks/accuracy_latency.py --data cifar10:data --checkpoints resnet20-12fca82f.th,resnet56-4bfd9763.th \
        --folder docs/results/accuracy_latency/long
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _accuracy_network import Network
    from _cells import Journal, Unfinished

    from aap_hw.compile.keys.precision import NetworkPrecision
    from aap_hw.train.settings import TrainSettings

ROOT = Path(__file__).parent.parent
LONG = ROOT / "docs" / "results" / "accuracy_latency" / "long"
STAGES = ("plan", "measure", "train", "report")
DEFAULT_METHODS = ("joint", "torch_pruning_int8", "exact", "unpruned_int8")
# Test images that show how a training gets on; the final accuracy is that of all of them.
GLANCE = 500
Journals = Mapping[str, "Journal"]


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from _accuracy_network import Network
    from _accuracy_rows import report, summary
    from _cells import Journal
    from _methods import LABELS
    from _report import print_report

    options = _options()
    folder = Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    journals = {stage: Journal(folder / f"{stage}.jsonl") for stage in ("plan", "measure", "train")}
    stages = options.stages.split(",")
    for model in _models(options) if set(stages) - {"report"} else ():
        network = Network(model, options)
        if "plan" in stages:
            plan(network, journals["plan"])
        if "measure" in stages:
            measure(network, journals, options)
        if "train" in stages:
            train(network, journals, options)
    if "report" in stages:
        rows = list(report(journals))
        print_report(rows, summary(rows), options.json)
        if options.plot:
            from _plots import accuracy_against_latency

            accuracy_against_latency(rows, LABELS, Path(options.plot))


def plan(network: Network, journal: Journal) -> None:
    """Choose the channels of every cell that has none yet."""
    from _methods import METHODS, Chooser
    from _report import say

    from aap_hw.compile.keys.precision import INT8, MIXED

    @cache
    def chooser(precision: NetworkPrecision) -> Chooser:
        if precision != INT8:
            return Chooser(network.task, network.dense(precision), network.settings_of(precision))
        floats = network.dense(INT8).floats
        return Chooser(network.task, network.dense(MIXED), network.settings_of(MIXED), floats)

    for cell in network.cells:
        if journal.find(**cell) is not None:
            continue
        method = METHODS[cell["method"]]
        whole_ms = network.dense("fp32").dense_ms
        choice = chooser(method.precision).choice(method.chooser, cell["budget"] * whole_ms)
        chosen = {"kept": None} if choice is None else asdict(choice)
        journal.add({**cell, **chosen, "dense_ms": whole_ms})
        reached = "cannot be reached" if choice is None else f"{choice.predicted_ms:.4f} ms predicted"
        say(f"{_named(cell)}: {reached} of {whole_ms:.4f} ms")


def measure(network: Network, journals: Journals, options: argparse.Namespace) -> None:
    """Time the networks of all plans and the unpruned one in turn, each different network once."""
    from _accuracy_rows import what_of
    from _report import benchmark_device, say

    from aap_hw.prune.measuring import Compilable, measure_networks

    different = {json.dumps(what_of(planned)): planned for _, planned in _planned(network, journals)}.values()
    if all(journals["measure"].find(**what_of(planned)) for planned in different):
        return
    say(f"{network.name}: compiling and timing {len(different)} networks and the unpruned one")
    networks = {
        str(number): Compilable(network.cut(planned["kept"]), planned["precision"], planned["floats"])
        for number, planned in enumerate(different)
    }
    timings = measure_networks(
        {"dense": Compilable(network.module), **networks},
        network.task.origin.inputs,
        benchmark_device(options.device, quick=False),
    )
    dense_ms = timings["dense"].latency_us / 1e3
    for number, planned in enumerate(different):
        measured = {"measured_ms": timings[str(number)].latency_us / 1e3, "dense_measured_ms": dense_ms}
        journals["measure"].add({**what_of(planned), **measured})


def train(network: Network, journals: Journals, options: argparse.Namespace) -> None:
    """Train and evaluate every cell whose plan was not trained yet; one that another process trains is left to it."""
    from _accuracy_rows import what_of
    from _cells import Unfinished
    from _methods import METHODS
    from _report import say

    journal = journals["train"]
    if journal.find(model=network.name, method="dense") is None:
        found = network.accuracies(network.module, {"precision": "fp32"})
        journal.add({"model": network.name, "method": "dense", **found})
        say(f"{network.name} unpruned: {found['accuracy']:.2f} %")
    settings = _settings(network, options)
    how = json.loads(json.dumps({"limit": options.limit, **asdict(settings)}))
    for seed in range(network.seeds):
        for cell, planned in _planned(network, journals):
            # Nothing is cut from a network that is fast enough, and so nothing is trained.
            if seed >= (METHODS[cell["method"]].seeds if planned["kept"] else 1):
                continue
            what = {**what_of(planned), "seed": seed, "settings": how if planned["kept"] else None}
            unfinished = Unfinished(Path(options.unfinished), what)
            with unfinished.taken() as is_ours:
                # By its channels: two methods may choose the same network.
                if not is_ours or journal.find(**what) is not None:
                    continue
                made = _train(network, cell, planned, seed, settings, unfinished, options)
                journal.add({**cell, **what, **made})
                unfinished.remove()
            say(f"{_named(cell)} seed {seed}: {made['accuracy']:.2f} %")


def _train(
    network: Network,
    cell: Mapping[str, Any],
    planned: Mapping[str, Any],
    seed: int,
    settings: TrainSettings,
    unfinished: Unfinished,
    options: argparse.Namespace,
) -> dict[str, Any]:
    from _report import say

    from aap_hw.train.loop import train as train_network

    def tell(epoch: int, epochs: int, loss: float, accuracy: float, seconds: float) -> None:
        say(
            f"{_named(cell)} seed {seed}: epoch {epoch} of {epochs}, loss {loss:.4f}, {accuracy:.1f} % of {GLANCE}, "
            f"{seconds:.0f} s"
        )

    module, began, losses = network.cut(planned["kept"]), time.process_time(), []
    if planned["kept"]:
        result = train_network(
            module,
            _images(network.data, options.limit, seed),
            settings,
            seed=seed,
            inputs=network.task.origin.inputs,
            teacher=network.module,
            on_epoch=tell,
            resume_from=unfinished.state,
            on_checkpoint=unfinished.save,
        )
        losses = [record.loss for record in result.history]
    found = network.accuracies(module, planned)
    return {**found, "epochs": len(losses), "losses": losses, "cpu_s_of_last_process": time.process_time() - began}


def _planned(network: Network, journals: Journals) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Cells whose budget can be reached, and their plans."""
    found = [(cell, journals["plan"].find(**cell)) for cell in network.cells]
    return [(cell, planned) for cell, planned in found if planned is not None and planned["kept"] is not None]


def _named(cell: Mapping[str, Any]) -> str:
    return f"{cell['model']} {cell['budget']:.0%} {cell['method']}"


def _settings(network: Network, options: argparse.Namespace) -> TrainSettings:
    from aap_hw.train.settings import Augmentation, Loss, Schedule, TrainSettings

    return TrainSettings(
        epochs=network.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        schedule=Schedule(warmup_epochs=0.5),
        augmentation=Augmentation(crop_padding=4),
        loss=Loss(distillation=options.distillation),
        precision=options.precision,
    )


def _images(data: Any, limit: int | None, seed: int) -> Any:
    """All images to train with, or `limit` of them drawn with the seed; of those to test with a few for a glance."""
    import numpy as np

    few = data.limited(GLANCE)
    count = data.count("train")
    chosen = np.sort(np.random.default_rng(seed).permutation(count)[: limit or count])
    return replace(few, train_images=data.train_images[chosen], train_labels=data.train_labels[chosen])


def _models(options: argparse.Namespace) -> list[dict[str, str]]:
    columns = {
        "name": options.models,
        "checkpoint": options.checkpoints,
        "budgets": options.budgets,
        "epochs": options.epochs,
        "seeds": options.seeds,
    }
    values = {name: text.split(",") for name, text in columns.items()}
    if len({len(each) for each in values.values()}) > 1:
        raise SystemExit("--models, --checkpoints, --budgets, --epochs and --seeds need as many values as each other")
    return [dict(zip(values, each, strict=True)) for each in zip(*values.values(), strict=True)]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet20,resnet56", help="names of the zoo")
    parser.add_argument("--checkpoints", help="one file for each model, or 'embedded'")
    parser.add_argument("--data", help="images, as for aap-hw prune: cifar10:FOLDER")
    parser.add_argument("--budgets", default="50+25,50+40", help="percent of the float32 latency, for each model")
    parser.add_argument("--epochs", default="30,20", help="for each model")
    parser.add_argument("--seeds", default="2,1", help="at most so many trainings of a cell, for each model")
    parser.add_argument("--methods", default=",".join(DEFAULT_METHODS), help="names in _methods.py")
    parser.add_argument("--limit", type=int, help="training images of an epoch; default: all")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--distillation", type=float, default=0.5, help="share of the loss, of all methods alike")
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"], help="of training")
    parser.add_argument("--lut", default=str(LONG / "x86.json"), help="the networks' table in mixed precision")
    parser.add_argument("--device", default="x86", help="device profile to measure with")
    parser.add_argument("--stages", default=",".join(STAGES), help="some of plan,measure,train,report")
    parser.add_argument("--folder", default="runs/accuracy-latency", help="for what is finished, as text")
    parser.add_argument("--unfinished", default="runs/accuracy-latency/unfinished", help="for checkpoints")
    parser.add_argument("--plot", help="write the plot to this file")
    parser.add_argument("--json", help="write JSON to this file, or to standard output for -")
    parser.add_argument("--quick", action="store_true", help="one small network, embedded images: does it run?")
    options = parser.parse_args()
    if options.quick:
        import tempfile

        options.folder = tempfile.mkdtemp(prefix="aap-hw-accuracy-")
        options.unfinished = f"{options.folder}/unfinished"
        options.models, options.checkpoints, options.seeds = "resnet20", "embedded", "1"
        options.data, options.lut = "embedded", str(ROOT / "lut" / "x86.json")
        options.budgets, options.methods = "60", "exact,torch_pruning"
        options.limit, options.epochs = 64, "1"
    elif options.stages != "report" and not (options.checkpoints and options.data):
        parser.error("give the user's own --data cifar10:FOLDER and --checkpoints FILE,FILE")
    return options


if __name__ == "__main__":
    main()
