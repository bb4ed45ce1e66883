"""Automatic Attention Pruning as published (arXiv 2303.08595), by one configuration file of scripts/reproduce.

Round 0 trains the network; each later round scores the filters, cuts those whose attention is at most T times their
layer's share of what remains, starts the learning rate anew, trains, and goes on or back by the paper's controller.
Written for a GPU or several (``torchrun``); what is finished is kept in the run's folder, and the same command goes on.

    scripts/reproduce_aap.sh scripts/reproduce/resnet56_cifar10.toml
    python scripts/reproduce_aap.py scripts/reproduce/resnet56_cifar10.toml --epochs 1 --limit 512 --rounds 1
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
from torch import nn

from aap_hw import ranks
from aap_hw.attention import attention_scores
from aap_hw.compile.front.network import Network
from aap_hw.compile.front.partition import partition
from aap_hw.errors import UserError
from aap_hw.files import read_text, write_atomic
from aap_hw.graph import ChannelGraph
from aap_hw.models.origin import Origin
from aap_hw.policy.controller import Controller
from aap_hw.prune.journal import Journal
from aap_hw.prune.run import compose
from aap_hw.prune.samples import calibration_batches
from aap_hw.train.checkpoint import EpochRecord, TrainState
from aap_hw.train.data import LabelledImages
from aap_hw.train.loop import train
from aap_hw.train.settings import TrainSettings
from aap_hw.train.sources import ImageSource

Kept = dict[str, list[int]]
Counts = dict[str, float]
# Of the published figures masks are counted: weights and operations of the filters kept, in convolutions only, and the
# inputs of a layer as many as the filters kept of the one registered before it.
WAYS = ("masks, as the reference counts", "sliced, as the network is")


@pydantic.with_config(pydantic.ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class Setting:
    """A configuration file: the network, its images, the objective with its target in percent, and the training."""

    model: str
    data: str
    objective: str
    target: float
    step: float
    training: TrainSettings
    classes: int | None = None
    input: tuple[int, int, int] | None = None
    rounds: int = 100
    calibration_images: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.objective not in ("accuracy", "parameters", "flops"):
            raise UserError(f"the objective is {self.objective!r}; give accuracy, parameters or flops")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="a file of scripts/reproduce")
    parser.add_argument("--data", help="instead of the file's, as for aap-hw prune; 'random' makes some up")
    parser.add_argument("--out", help="folder of the run; default: runs/reproduce-NAME")
    parser.add_argument("--epochs", type=int, help="of each round, instead of the file's")
    parser.add_argument("--rounds", type=int, help="at most so many, instead of the file's")
    parser.add_argument("--limit", type=int, help="use at most so many images of each split")
    options = parser.parse_args()
    with ranks.joined(os.environ):
        try:
            run(options)
        except UserError as problem:
            if ranks.is_first():
                print(f"error: {problem}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            if ranks.is_first():
                print("interrupted; what is finished is kept, and the same command goes on", file=sys.stderr)
            return 130
    return 0


def run(options: argparse.Namespace) -> None:
    """All rounds of a configuration, and the table that they end with."""
    try:
        values = tomllib.loads(read_text(options.config, "configuration"))
        setting = pydantic.TypeAdapter(Setting).validate_python(values)
    except (tomllib.TOMLDecodeError, pydantic.ValidationError) as problem:
        raise UserError(f"{options.config} cannot be used: {' '.join(str(problem).split())}") from problem
    if options.epochs is not None:
        setting = replace(setting, training=replace(setting.training, epochs=options.epochs))
    if options.rounds is not None:
        setting = replace(setting, rounds=options.rounds)
    setting = replace(setting, data=options.data or setting.data)
    origin = Origin.of(setting.model, setting.input, None, setting.classes)
    data = _images(setting.data, options.limit, origin)
    folder = Path(options.out or f"runs/reproduce-{Path(options.config).stem}")
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal()
    journal.open(folder)
    _check_same(folder, journal, {**asdict(setting), "limit": options.limit})
    result = Reproduction(setting, origin, data, journal).run()
    if ranks.is_first():
        write_atomic(folder / "result.json", json.dumps(result, indent=1) + "\n")
        print(_table(result))
    journal.close()


def _check_same(folder: Path, journal: Journal, asked: Mapping[str, Any]) -> None:
    """Raise UserError if the run in a folder was asked for otherwise: its rounds would be taken for this one's."""
    asked = json.loads(json.dumps(asked))
    known = journal.recall("setting", lambda: asked)
    # A run may go on for more rounds than it was first asked for.
    if differing := [name for name in asked if name != "rounds" and known.get(name) != asked[name]]:
        raise UserError(
            f"{folder} holds a run with other settings ({', '.join(differing)}); delete it, or name another with --out"
        )


@dataclass(frozen=True)
class Reached:
    """A round's network and what remains of the unpruned one."""

    module: nn.Module
    kept: Kept
    accuracy: float
    remaining: Counts


class Reproduction:
    """The rounds of one configuration."""

    def __init__(self, setting: Setting, origin: Origin, data: LabelledImages, journal: Journal) -> None:
        self._setting, self._origin, self._data, self._journal = setting, origin, data, journal
        self._dense = origin.build()
        self._graph = self._trace(self._dense)
        self._widths = {group.name: group.width for group in self._graph.groups}

    def run(self) -> dict[str, Any]:
        """Prune until the step is spent or the rounds are; the figures of the last round that met the objective."""
        setting = self._setting
        controller = Controller.begin(setting.step)
        reached = {0: Reached(self._dense, {}, self._train(self._dense, 0), self._counts({}))}
        good, number = 0, 0
        for number in range(1, setting.rounds + 1):
            start = reached[controller.start]
            keep = self._journal.recall(f"round/{number}/keep", lambda s=start, c=controller: self._keep(s, c.severity))
            module = self._trace(start.module).cut(start.module, keep)
            kept = compose(start.kept, keep, self._widths)
            reached[number] = Reached(module, kept, self._train(module, number), self._counts(kept))
            met = self._met(reached[0], reached[number])
            good = number if met else good
            controller = controller.after(number, met)
            self._say(number, reached[number], met)
            needed = {0, good, controller.start, *(each.number for each in controller.good)}
            reached = {each: state for each, state in reached.items() if each in needed}
            self._journal.keep_rounds(needed, number)
            if controller.step < setting.step / 2**6:
                break
        return {
            "model": setting.model,
            "objective": setting.objective,
            "target": setting.target,
            "epochs": setting.training.epochs,
            "rounds": number,
            "round": good,
            "accuracy_dense": reached[0].accuracy,
            "accuracy": reached[good].accuracy,
            "remaining": reached[good].remaining,
            "dense": reached[0].remaining,
        }

    def _met(self, dense: Reached, now: Reached) -> bool:
        if self._setting.objective == "accuracy":
            return dense.accuracy - now.accuracy <= self._setting.target + 1e-9
        # The published code's "FLOPs" and "parameters" are those of its masks.
        name = f"{self._setting.objective} ({WAYS[0]})"
        return 100 * (1 - now.remaining[name] / dense.remaining[name]) <= self._setting.target

    def _keep(self, start: Reached, threshold: float) -> Kept:
        """Filters whose attention is above T times their layer's share of what remains; at least one of each layer."""
        graph = self._trace(start.module)
        network = partition(graph)
        count = self._setting.calibration_images
        inputs = self._origin.inputs
        batches = (images for images, _ in calibration_batches(self._data, inputs, count, distributed=True))
        scores = attention_scores(start.module, batches, distributed=True)
        by_flops = self._setting.objective == "flops"
        shares = _shares(network, by_flops)
        keep = {}
        for group in graph.groups:
            if group.frozen is None:
                attention = scores[group.name]
                above = attention > threshold * shares.get(group.name, 0.0)
                above[int(np.argmax(attention))] = True
                if not above.all():
                    keep[group.name] = np.flatnonzero(above).tolist()
        return keep

    def _train(self, module: nn.Module, number: int) -> float:
        setting, journal = self._setting, self._journal

        def save(state: TrainState) -> None:
            journal.save_training(number, state)

        def tell(epoch: int, epochs: int, loss: float, accuracy: float, seconds: float) -> None:
            if ranks.is_first():
                line = f"round {number}: epoch {epoch} of {epochs}, loss {loss:.3f}, accuracy {accuracy:.2f} %"
                print(f"{line} ({seconds:.0f} s)", flush=True)

        state, name = journal.training(number), f"round/{number}/trained"
        if state is None and name in journal:
            return EpochRecord(**journal.value(name)[-1]).accuracy
        result = train(
            module,
            self._data,
            setting.training,
            seed=setting.seed + number,
            inputs=self._origin.inputs,
            on_epoch=tell,
            resume_from=state,
            on_checkpoint=save,
        )
        journal.recall(name, lambda: [asdict(record) for record in result.history])
        return result.accuracy

    def _trace(self, module: nn.Module) -> ChannelGraph:
        return ChannelGraph.trace(module, self._origin.inputs.zeros())

    def _counts(self, kept: Mapping[str, list[int]]) -> Counts:
        """Parameters and operations that remain, counted both ways."""
        network = partition(self._graph)
        widths = {**self._widths, **{name: len(channels) for name, channels in kept.items()}}
        makers = {
            axis.parameter: group.name
            for group in self._graph.groups
            for axis in group.axes
            if axis.role in ("out", "depthwise")
        }
        sliced = self._graph.cut(self._dense, kept)
        masks = {"parameters": 0.0, "flops": 0.0}
        before = (0, 0)
        operations = {kernel.weight: kernel.multiply_accumulates(self._widths) for kernel in network.kernels}
        for name, layer in self._dense.named_modules():
            if not isinstance(layer, nn.Conv2d):
                continue
            group = makers.get(f"{name}.weight")
            out = round(layer.out_channels * (widths[group] / self._widths[group] if group else 1.0))
            read = layer.in_channels // layer.groups
            if layer.groups == 1 and before[0] == layer.in_channels:
                read = before[1]
            weights = float(out * read * layer.kernel_size[0] * layer.kernel_size[1])
            masks["parameters"] += weights
            masks["flops"] += weights * operations[f"{name}.weight"] / layer.weight.numel()
            before = (layer.out_channels, out)
        return {
            **{f"{name} ({WAYS[0]})": value for name, value in masks.items()},
            f"parameters ({WAYS[1]})": float(sum(p.numel() for p in sliced.parameters())),
            f"flops ({WAYS[1]})": float(sum(k.multiply_accumulates(widths) for k in network.kernels)),
        }

    def _say(self, number: int, now: Reached, met: bool) -> None:
        if ranks.is_first():
            share = now.remaining[f"parameters ({WAYS[1]})"] / self._counts({})[f"parameters ({WAYS[1]})"]
            verdict = "kept" if met else "undone"
            print(
                f"round {number}: accuracy {now.accuracy:.2f} %, {share:.1%} of the parameters left; {verdict}",
                flush=True,
            )


def _shares(network: Network, by_flops: bool) -> dict[str, float]:
    """Share of each group's layers of all remaining parameters or operations."""
    dense = network.dense
    count = {k.name: float(k.multiply_accumulates(dense) if by_flops else k.parameters(dense)) for k in network.kernels}
    total = sum(count.values())
    shares: dict[str, float] = {}
    for kernel in network.kernels:
        for group in dict.fromkeys(name for name, _ in kernel.width_out.terms):
            if kernel.weight:
                shares[group] = shares.get(group, 0.0) + count[kernel.name] / total
    return shares


def _images(source: str, limit: int | None, origin: Origin) -> LabelledImages:
    if source != "random":
        return ImageSource(source, limit).load(origin.inputs)
    # Only to see a configuration run where its images are not at hand.
    random, count = np.random.default_rng(0), limit or 512
    images = random.integers(0, 256, (count, *origin.inputs.each[0].shape), np.uint8)
    labels = np.arange(count, dtype=np.int64) % origin.classes
    return LabelledImages(images, labels, images[:64], labels[:64], tuple(map(str, range(origin.classes))))


def _table(result: Mapping[str, Any]) -> str:
    lines = [
        f"{result['model']}: round {result['round']} of {result['rounds']} is the last that met its objective "
        f"({result['objective']}, {result['target']} %); {result['epochs']} epochs a round",
        f"accuracy {result['accuracy_dense']:.2f} % unpruned, {result['accuracy']:.2f} % pruned",
        f"{'counted':<32}{'parameters':>14}{'operations':>14}",
    ]
    for way in WAYS:
        names = [f"{name} ({way})" for name in ("parameters", "flops")]
        changes = [result["remaining"][name] / result["dense"][name] - 1 for name in names]
        lines.append(f"{way:<32}" + "".join(f"{change:>14.2%}" for change in changes))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
