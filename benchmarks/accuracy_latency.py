"""Accuracy against measured latency on CIFAR-10: our widths against four other ways to choose, all else being equal.

Every method is brought to the same latency on the same table, trained the same (images, epochs, seeds, settings), and
evaluated on all test images; then all networks are timed in turn on this machine. Images and checkpoints are the
user's own, by path. What is finished is kept in a folder: run the same command again to go on.

    python benchmarks/accuracy_latency.py --data cifar10:data --checkpoints resnet20-12fca82f.th,resnet56-4bfd9763.th \
        --json docs/results/accuracy_latency/results.json --plot docs/results/accuracy_latency/plot.svg
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
STAGES = ("plan", "train", "measure", "report")
# Test images that show how a training gets on; the final accuracy is that of all of them.
GLANCE = 500
OURS = ("exact", "exact_no_depth")


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from _methods import METHODS
    from _report import print_report

    options = _options()
    methods = options.methods.split(",") if options.methods else list(METHODS)
    budgets = [float(share) / 100 for share in options.budgets.split(",")]
    folder = Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    journals = {stage: Journal(folder / f"{stage}.jsonl") for stage in ("plan", "train", "measure")}
    stages = options.stages.split(",")
    for model in _models(options) if set(stages) - {"report"} else ():
        cells = [{"model": model["name"], "method": m, "budget": b} for b in budgets for m in methods]
        network = Network(model, options)
        if "plan" in stages:
            plan(network, cells, journals["plan"])
        if "train" in stages:
            train(network, cells, journals, options)
        if "measure" in stages:
            measure(network, cells, journals, options)
    if "report" in stages:
        rows = list(report(journals))
        print_report(rows, summary(rows), options.json)
        if options.plot:
            from _plots import accuracy_against_latency

            accuracy_against_latency(rows, METHODS, Path(options.plot))


class Journal:
    """Rows that are finished, one JSON object a line, each written as soon as it is known."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    self.rows.append(json.loads(line))
                except ValueError:  # a line that was being written when the process was killed
                    continue

    def find(self, **wanted: Any) -> dict[str, Any] | None:
        """The latest row with these values."""
        return next((row for row in reversed(self.rows) if wanted.items() <= row.items()), None)

    def add(self, row: dict[str, Any]) -> None:
        """Write a row."""
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        self.rows.append(row)


class Network:
    """One model with its images and its table; built when it is first needed."""

    def __init__(self, model: Mapping[str, Any], options: argparse.Namespace) -> None:
        from aap_hw.graph.program.inputs import Inputs
        from aap_hw.lut.file import load_table
        from aap_hw.models import zoo
        from aap_hw.models.weights import WeightsFile
        from aap_hw.prune.baseline import baseline
        from aap_hw.prune.task import Origin, PruneSettings, Task
        from aap_hw.train.sources import ImageSource

        self.name, self.seeds = str(model["name"]), int(model["seeds"])
        path = model["checkpoint"]
        weights = "embedded" if path == "embedded" else WeightsFile.at(path)
        origin = Origin(self.name, weights, Inputs.of(zoo.entry(self.name).input_shape))
        self.data = ImageSource(options.data).load(origin.inputs)
        if options.quick:
            self.data = self.data.limited(options.limit)
        self.settings = PruneSettings(calibration_images=8 if options.quick else None)
        self.task = Task(origin, load_table(Path(options.lut)), self.data)
        self.dense = baseline(self.task, self.settings)

    def cut(self, kept: Mapping[str, list[int]]) -> Any:
        """The network with some channels of its groups."""
        return self.dense.graph.cut(self.dense.module, kept)


def plan(network: Network, cells: list[dict[str, Any]], journal: Journal) -> None:
    """Choose the channels of every cell that has none yet."""
    from _methods import Chooser
    from _report import say

    missing = [cell for cell in cells if journal.find(**cell) is None]
    if not missing:
        return
    chooser = Chooser(network.task, network.dense, network.settings)
    for cell in missing:
        kept = chooser.kept(cell["method"], cell["budget"] * network.dense.dense_ms)
        widths = None if kept is None else {group: len(channels) for group, channels in kept.items()}
        predicted = None if widths is None else chooser.predicted_ms(widths)
        journal.add({**cell, "kept": kept, "predicted_ms": predicted, "dense_ms": network.dense.dense_ms})
        reached = "cannot be reached" if predicted is None else f"{predicted:.4f} ms predicted"
        say(f"{network.name} {cell['budget']:.0%} {cell['method']}: {reached}")


def train(network: Network, cells: list[dict[str, Any]], journals: Mapping[str, Journal], options: Any) -> None:
    """Train and evaluate every cell whose plan was not trained yet, the unpruned network's accuracy first."""
    from _report import say

    from aap_hw.train.evaluation import evaluate
    from aap_hw.train.loop import train as train_network
    from aap_hw.train.settings import Augmentation, Schedule, TrainSettings

    inputs = network.task.origin.inputs
    settings = TrainSettings(
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        schedule=Schedule(warmup_epochs=0.1),
        augmentation=Augmentation(crop_padding=4),
        precision=options.precision,
    )
    how = {"limit": options.limit, **asdict(settings)}
    if journals["train"].find(model=network.name, method="dense") is None:
        accuracy = evaluate(network.dense.module, network.data, inputs)
        journals["train"].add({"model": network.name, "method": "dense", "accuracy": accuracy})
        say(f"{network.name} unpruned: {accuracy:.2f} %")
    for seed in range(network.seeds):
        for cell in cells:
            planned = journals["plan"].find(**cell)
            if planned is None or planned["kept"] is None:
                continue
            done = {"seed": seed, "kept": planned["kept"], "settings": json.loads(json.dumps(how))}
            # By its channels: two methods may choose the same network.
            if journals["train"].find(model=network.name, **done) is not None:
                continue
            began = time.monotonic()
            module = network.cut(planned["kept"])
            some = _some(network.data, options.limit, seed)
            result = train_network(module, some, settings, seed=seed, inputs=inputs)
            accuracy = evaluate(module, network.data, inputs)
            losses = [record.loss for record in result.history]
            journals["train"].add(
                {**cell, **done, "accuracy": accuracy, "losses": losses, "seconds": time.monotonic() - began}
            )
            took = time.monotonic() - began
            say(f"{network.name} {cell['budget']:.0%} {cell['method']} seed {seed}: {accuracy:.2f} % ({took:.0f} s)")


def measure(network: Network, cells: list[dict[str, Any]], journals: Mapping[str, Journal], options: Any) -> None:
    """Time the networks of all plans and the unpruned one in turn, each different network once."""
    from _report import benchmark_device, say

    from aap_hw.prune.measuring import measure_networks

    planned = [row for cell in cells if (row := journals["plan"].find(**cell)) is not None and row["kept"] is not None]
    if all(journals["measure"].find(model=network.name, kept=row["kept"]) for row in planned):
        return
    different = list({json.dumps(row["kept"]): row["kept"] for row in planned}.values())
    networks = {str(number): network.cut(kept) for number, kept in enumerate(different)}
    say(f"{network.name}: compiling and timing {len(networks)} pruned networks and the unpruned one")
    device = benchmark_device(options.device, quick=False)
    timings = measure_networks({"dense": network.dense.module, **networks}, network.task.origin.inputs, device)
    dense_ms = timings["dense"].latency_us / 1e3
    for number, kept in enumerate(different):
        measured = {"measured_ms": timings[str(number)].latency_us / 1e3, "dense_measured_ms": dense_ms}
        journals["measure"].add({"model": network.name, "kept": kept, **measured})


def report(journals: Mapping[str, Journal]) -> Iterator[dict[str, Any]]:
    """One flat row for each method at each budget, the unpruned networks first."""
    models = dict.fromkeys(row["model"] for row in journals["plan"].rows)
    for model in models:
        unpruned = journals["train"].find(model=model, method="dense")
        timed = journals["measure"].find(model=model)
        yield {
            "model": model,
            "budget_share": 1.0,
            "method": "unpruned",
            "accuracy": unpruned and unpruned["accuracy"],
            "measured_ms": timed and timed["dense_measured_ms"],
            "measured_share": 1.0,
        }
        cells = {(row["budget"], row["method"]): row for row in journals["plan"].rows if row["model"] == model}
        for (budget, method), planned in sorted(cells.items(), key=lambda item: -item[0][0]):
            row = {"model": model, "budget_share": budget, "method": method, "reached": planned["kept"] is not None}
            if planned["kept"] is not None:
                same = {"model": model, "kept": planned["kept"]}
                timed = journals["measure"].find(**same)
                runs = {r["seed"]: r["accuracy"] for r in journals["train"].rows if same.items() <= r.items()}
                found = list(runs.values())
                row |= {
                    "accuracy": statistics.mean(found) if found else None,
                    "lowest_accuracy": min(found, default=None),
                    "highest_accuracy": max(found, default=None),
                    "seeds": len(found),
                    "predicted_ms": planned["predicted_ms"],
                    "measured_ms": timed and timed["measured_ms"],
                    "measured_share": timed and timed["measured_ms"] / timed["dense_measured_ms"],
                }
            yield row


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How far ours leads or trails the best other method at each budget, with and without depth; None: alone there."""
    figures: dict[str, Any] = {}
    for name in OURS:
        leads = {}
        for ours in rows:
            if ours["method"] != name or ours.get("accuracy") is None:
                continue
            at = (ours["model"], ours["budget_share"])
            same = [row for row in rows if (row["model"], row["budget_share"]) == at and row["method"] not in OURS]
            others = [row["accuracy"] for row in same if row.get("accuracy") is not None]
            leads[at] = ours["accuracy"] - max(others) if others else None
        met = [lead for lead in leads.values() if lead is not None]
        figures |= {f"{name}_won": sum(lead >= 0 for lead in met), f"{name}_of": len(met)}
        figures |= {f"{name}_alone": len(leads) - len(met)}
        figures |= {f"{name}_lead_{model}_{100 * share:.0f}pct": lead for (model, share), lead in leads.items()}
    return figures


def _some(data: Any, limit: int, seed: int) -> Any:
    """The same images for every method: `limit` for training, drawn with the seed, and a few for a glance."""
    import numpy as np

    chosen = np.sort(np.random.default_rng(seed).permutation(data.count("train"))[:limit])
    few = data.limited(GLANCE)
    return replace(few, train_images=data.train_images[chosen], train_labels=data.train_labels[chosen])


def _models(options: argparse.Namespace) -> list[dict[str, Any]]:
    names, paths, seeds = (text.split(",") for text in (options.models, options.checkpoints, options.seeds))
    if not len(names) == len(paths) == len(seeds):
        raise SystemExit("--models, --checkpoints and --seeds need as many values as each other")
    return [{"name": n, "checkpoint": p, "seeds": s} for n, p, s in zip(names, paths, seeds, strict=True)]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="resnet20,resnet56", help="names of the zoo")
    parser.add_argument("--checkpoints", help="one file for each model, or 'embedded'")
    parser.add_argument("--seeds", default="2,1", help="trainings of each cell, for each model")
    parser.add_argument("--data", help="images, as for aap-hw prune: cifar10:FOLDER")
    parser.add_argument("--budgets", default="70,50,35", help="percent of the unpruned network's measured latency")
    parser.add_argument("--methods", help="some of them; default: all")
    parser.add_argument("--limit", type=int, default=5000, help="training images of an epoch")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"], help="of training")
    parser.add_argument("--lut", default=str(ROOT / "docs" / "results" / "accuracy_latency" / "x86.json"))
    parser.add_argument("--device", default="x86", help="device profile to measure with")
    parser.add_argument("--stages", default=",".join(STAGES), help="some of plan,train,measure,report")
    parser.add_argument("--folder", default="runs/accuracy-latency", help="where finished work is kept")
    parser.add_argument("--plot", help="write the plot to this file")
    parser.add_argument("--json", help="write JSON to this file, or to standard output for -")
    parser.add_argument("--quick", action="store_true", help="one small network, embedded images: does it run?")
    options = parser.parse_args()
    if options.quick:
        import tempfile

        options.folder = tempfile.mkdtemp(prefix="aap-hw-accuracy-")
        options.models, options.checkpoints, options.seeds = "resnet20", "embedded", "1"
        options.data, options.lut = "embedded", str(ROOT / "lut" / "x86.json")
        options.budgets, options.methods = "60", "exact,torch_pruning"
        options.limit, options.epochs = 64, 1
    elif options.stages != "report" and not (options.checkpoints and options.data):
        parser.error("give the user's own --data cifar10:FOLDER and --checkpoints FILE,FILE")
    return options


if __name__ == "__main__":
    main()
