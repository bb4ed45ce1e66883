"""What it is worth to know how much a network's outputs depend on each channel group, whatever the outputs mean.

A classifier (the embedded ResNet-20), a detector and a segmentation network (trained here on images that are drawn
here) are cut to a share of their multiply-accumulates. The plans differ in one thing, what a group counts for: as much
as any other (`alike`), as much as the cross-entropy of the network's own answer depends on it (`answer`, classifiers
only), or as much as its outputs do (`outputs`, aap-hw's own way). Accuracy is taken right after the cut, with the
statistics of batch norms taken anew, and after a short training.

    python benchmarks/sensitivity.py --seeds 3 --json -
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from _made_images import Drawn
    from torch import Tensor, nn

    from aap_hw.graph import ChannelGraph

WAYS = ("alike", "answer", "outputs")
BATCH, RATE = 32, 2e-3


@dataclass(frozen=True)
class Case:
    """A trained network and what is done with it.

    Attributes
    ----------
    samples : training images for scores and batch norms (N, C, H, W).
    train : trains a network for so many steps.
    accuracy : of a network, in percent.
    """

    name: str
    network: nn.Module
    samples: Tensor
    train: Callable[[nn.Module, int], None]
    accuracy: Callable[[nn.Module], float]


def main() -> None:
    # PyTorch reads the variable as it is loaded, which it is by now.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    from _report import print_report, say

    options = _options()
    rows: list[dict[str, object]] = []
    for seed in range(options.seeds):
        for case in _cases(options, seed):
            whole = case.accuracy(case.network)
            say(f"{case.name}, seed {seed}: {whole:.1f} % uncut")
            for share, way in product(options.shares, WAYS):
                if way == "answer" and case.name != "classifier":
                    continue
                cut = _cut(case, share, way)
                _refresh(cut, case.samples)
                at_once = case.accuracy(cut)
                case.train(cut, options.retrain)
                rows.append(
                    {
                        "network": case.name,
                        "seed": seed,
                        "macs_pct": share,
                        "groups": way,
                        "uncut_pct": whole,
                        "cut_pct": at_once,
                        "trained_pct": case.accuracy(cut),
                    }
                )
                say(f"  {share} % of the operations, {way}: {at_once:.1f} %, trained {rows[-1]['trained_pct']:.1f} %")
    summary = {
        f"{name}_{way}_{when}": statistics.mean(float(str(row[f"{when}_pct"])) for row in found)
        for name, way, when in product(dict.fromkeys(str(row["network"]) for row in rows), WAYS, ("cut", "trained"))
        if (found := [row for row in rows if (row["network"], row["groups"]) == (name, way)])
    }
    print_report(rows, summary, options.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="how often the networks are trained anew")
    parser.add_argument("--shares", default="60,40,25", help="of the multiply-accumulates, in percent")
    parser.add_argument("--steps", type=int, default=600, help="of training, before the cut")
    parser.add_argument("--retrain", type=int, default=60, help="steps of training after it")
    parser.add_argument("--samples", type=int, default=64, help="images that groups and channels are judged by")
    parser.add_argument("--json", help="write JSON to this file, or to standard output for -")
    parser.add_argument("--quick", action="store_true", help="hardly any training: does it run?")
    options = parser.parse_args()
    options.shares = [int(each) for each in options.shares.split(",")]
    options.images, options.tested = 2000, 300
    if options.quick:
        options.seeds, options.steps, options.retrain, options.samples, options.shares = 1, 2, 1, 4, [50]
        options.images, options.tested = 64, 16
    return options


def _cases(options: argparse.Namespace, seed: int) -> Iterator[Case]:
    from _made_images import Detector, Segmenter, drawn, f1, mean_overlap

    if not seed:  # whose weights are the same each time
        yield _classifier(options)
    train, test = drawn(options.images, 2 * seed), drawn(options.tested, 2 * seed + 1)
    for name, kind, judge in (("detector", Detector, f1), ("segmentation", Segmenter, mean_overlap)):
        torch.manual_seed(seed)
        network = kind()

        def learn(each: nn.Module, steps: int) -> None:
            _train(each, train, steps)

        learn(network, options.steps)
        yield Case(
            name,
            network.eval(),
            train.images[: options.samples],
            learn,
            lambda each, judge=judge: judge(each, test),  # type: ignore[misc]
        )


def _classifier(options: argparse.Namespace) -> Case:
    from aap_hw.inputs import Inputs
    from aap_hw.models import zoo
    from aap_hw.train.data import load_embedded
    from aap_hw.train.evaluation import evaluate

    model = zoo.build("resnet20", "embedded")
    inputs, data = Inputs.of(model.input_shape), load_embedded()
    (images,), labels = _all(data, inputs)

    def learn(network: nn.Module, steps: int) -> None:
        network.train()
        optimizer = torch.optim.Adam(network.parameters(), RATE)
        for chosen in _batches(len(images), steps):
            optimizer.zero_grad()
            F.cross_entropy(network(images[chosen]), labels[chosen]).backward()
            optimizer.step()
        network.eval()

    few = images[:: len(images) // options.samples][: options.samples]
    return Case("classifier", model.module.eval(), few, learn, lambda each: evaluate(each, data, inputs))


def _all(data: object, inputs: object) -> tuple[tuple[Tensor, ...], Tensor]:
    from aap_hw.train.data import LabelledImages

    assert isinstance(data, LabelledImages)
    stored, labels = data.stored("train", range(data.count("train")))
    return data.prepared(stored, inputs), labels  # type: ignore[arg-type]


def _train(network: nn.Module, data: Drawn, steps: int) -> None:
    """Train a network, whose loss is a method of its class."""
    loss = type(network).loss  # type: ignore[attr-defined]
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    network.train()
    for chosen in _batches(len(data.images), steps):
        optimizer.zero_grad()
        loss(network, data.part(chosen)).backward()
        optimizer.step()
    network.eval()


def _batches(count: int, steps: int) -> Iterator[Tensor]:
    random = torch.Generator().manual_seed(1)
    for _ in range(steps):
        yield torch.randint(count, (min(BATCH, count),), generator=random)


def _cut(case: Case, share: int, way: str) -> nn.Module:
    """The network cut to a share of its operations by the best plan, each group of the worth that ``way`` gives it."""
    from aap_hw.attention import observed, read_attention, sensitivities
    from aap_hw.compile.front.network import Kernel
    from aap_hw.compile.front.partition import partition
    from aap_hw.graph import ChannelGraph
    from aap_hw.lut.enumeration import group_candidates
    from aap_hw.lut.predicting import kernel_costs
    from aap_hw.policy import GroupChoice, Problem, allocate, best_channels, kept_share

    graph = ChannelGraph.trace(case.network, (case.samples[:1],))
    network = partition(graph)
    graph = graph.frozen(network.fixed)
    candidates = group_candidates(graph, 1, 16)
    scores = read_attention(case.network, graph, observed(case.network, [case.samples], graph=graph).variances())
    worth: Mapping[str, float] = dict.fromkeys(scores, 1.0)
    if way == "outputs":
        worth = sensitivities(graph, case.samples)
    elif way == "answer":
        worth = _by_answer(graph, case.samples)
    total = sum(worth.values())
    choices = [
        GroupChoice(name, candidates[name], worth[name] / total * _logs(kept_share(scores[name], candidates[name])))
        for name in scores
    ]
    problem = Problem(choices, {"flops": kernel_costs(network, candidates, Kernel.multiply_accumulates)}, [])
    whole = problem.spent("flops", problem.widest())
    widths = allocate(problem, {"flops": whole * share / 100}).widths
    return graph.cut(
        case.network, {name: best_channels(scores[name], width).tolist() for name, width in widths.items()}
    )


def _logs(shares: object) -> object:
    import numpy as np

    return np.log(np.maximum(shares, 1e-6))  # type: ignore[call-overload]


def _by_answer(graph: ChannelGraph, samples: Tensor) -> dict[str, float]:
    """What the cross-entropy of a classifier's own answer depends on: Molchanov et al., 2017, equation 8."""
    from aap_hw.attention import projections, sensitivities

    def own_answer(outputs: list[Tensor], *_: object) -> Tensor:
        return F.cross_entropy(outputs[0], outputs[0].argmax(1), reduction="sum")

    projected, projections._projected = projections._projected, own_answer  # type: ignore[assignment]
    try:
        return sensitivities(graph, samples)
    finally:
        projections._projected = projected


@torch.no_grad()
def _refresh(network: nn.Module, samples: Tensor) -> None:
    """Bring the statistics of batch norms up to date."""
    network.train()
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None
    network(samples)
    network.eval()
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.1


if __name__ == "__main__":
    main()
