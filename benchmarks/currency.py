"""Does the value of a plan predict what the plan costs? Removed channels and rounded numbers in one currency.

Networks are cut to random plans of mixed widths and precisions, quantised, and run on test images before any training;
the statistics of batch norms are taken anew. Ranks of the plans' values are compared with those of the measured loss,
accuracy and noise in the outputs. Kinds of plans: all groups cut at random (`both`), half of the groups cut by one step
(`little`), nothing cut (`precision`), where only rounding tells plans apart, and in float32 only residual streams cut
(`stream`) or only what is within blocks (`inner`), where a unit of value should cost the same.

The value's loss by rounding is also multiplied by 0, 0.1, 10 and 100, which must be no better if it is the right
currency.

Networks: the embedded ResNet-20, a network of inverted residuals and depthwise convolutions that is trained here for a
few minutes and kept in runs/currency, and checkpoints trained on CIFAR-10.

    python benchmarks/currency.py --checkpoints FOLDER --cifar10 FOLDER --json -
    python benchmarks/currency.py --kinds stream,inner --granularity 2 --checkpoints FOLDER --cifar10 FOLDER --json -
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from aap_hw.lut.mixed import Labels
    from aap_hw.policy import Problem
    from aap_hw.prune.baseline import Baseline

MEASURES = ("loss", "accuracy", "noise")
KINDS = ("both", "little", "precision", "stream", "inner")
IN_FLOAT32 = ("stream", "inner")
FACTORS = (0.0, 0.1, 1.0, 10.0, 100.0)
BATCH, EPOCHS = 64, 8


@dataclass(frozen=True)
class Case:
    """A trained network that is cut.

    Attributes
    ----------
    shown : calibration images in batches of one size.
    tested : test images and their labels.
    exact : what the network computes of them.
    """

    name: str
    dense: Baseline
    scores: dict[str, np.ndarray]
    labels: list[Labels]
    problem: Problem
    shown: list[tuple[Tensor, ...]]
    tested: tuple[Tensor, Tensor]
    exact: Tensor


@dataclass(frozen=True)
class Cut:
    """The channels that stay of each group that is cut, and the layers that stay in float32."""

    keep: dict[str, list[int]]
    floats: tuple[str, ...]


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from _report import print_report, say

    options = _options()
    rows: list[dict[str, Any]] = []
    known = {} if options.measured is None else _known(options.measured)
    for case in _cases(options, say):
        for kind in options.kinds.split(","):
            for number in range(options.plans):
                value, cut = _chosen(case, kind, number)
                at = (case.name, kind, round(value["of_width"], 6), *cut.floats)
                if at not in known:
                    known[at] = _cost(case, cut)
                row = {"network": case.name, "kind": kind, "plan": number, **known[at], **value}
                rows.append({**row, "floats": " ".join(cut.floats)})
                if number % 10 == 9:
                    say(f"{case.name}, {kind}: {number + 1} of {options.plans} plans")
    print_report(rows, _summary(rows), options.json)


def _known(path: str) -> dict[tuple[object, ...], dict[str, float]]:
    """What plans cost by an earlier report, whatever they were worth in it."""
    rows = json.loads(Path(path).read_text())["rows"]
    return {
        (row["network"], row["kind"], round(row["of_width"], 6), *row["floats"].split()): {
            each: row[each] for each in MEASURES
        }
        for row in rows
    }


def _chosen(case: Case, kind: str, number: int) -> tuple[dict[str, float], Cut]:
    """A random plan's value in several currencies, and what it does to the network."""
    planner = case.dense.planner
    plan = _plan(case, kind, number)
    widths, precisions = dict(planner.costs.network.dense), {}
    of_width = of_precision = 0.0
    for each, choice, at in zip(case.labels, case.problem.choices, plan, strict=True):
        w, p = each.each[at]
        exactest = next(i for i, other in enumerate(each.each) if other == (w, max(0, len(each.precisions) - 1)))
        of_width += float(choice.value[exactest])
        of_precision += float(choice.value[at] - choice.value[exactest])
        if each.domain:
            precisions[each.domain] = each.precisions[p]
        if each.name in widths:
            widths[each.name] = each.widths[w]
    dense = planner.costs.network.dense
    keep = {name: _best(case.scores[name], width) for name, width in widths.items() if width < dense[name]}
    assert planner.costs.mixture is not None
    share = sum(each == "int8" for each in precisions.values()) / len(precisions)
    cut = Cut(keep, tuple(planner.costs.mixture.network.floats(precisions)))
    return {"share_in_int8": share, "of_width": of_width, "of_precision": of_precision}, cut


def _cost(case: Case, cut: Cut) -> dict[str, float]:
    """What a plan costs."""
    import torch.nn.functional as F

    outputs = _outputs(case, case.dense.graph.cut(case.dense.module, cut.keep), cut.floats, bool(cut.keep))
    labels = case.tested[1]
    change = (outputs - case.exact).double().square().mean() / case.exact.double().var()
    loss, accuracy = float(F.cross_entropy(outputs, labels)), float((outputs.argmax(1) == labels).double().mean())
    return dict(zip(MEASURES, (loss, 100 * accuracy, float(change)), strict=True))


def _plan(case: Case, kind: str, number: int) -> list[int]:
    """A random choice of labels."""
    import numpy as np

    planner = case.dense.planner
    assert planner.costs.mixture is not None
    random = np.random.default_rng([KINDS.index(kind), number])
    share, size = random.random(), random.uniform(0.6, 1.0)
    in_int8 = {name: random.random() < share for name in planner.costs.mixture.network.domains}
    plan = []
    for each in case.labels:
        last = len(each.widths) - 1
        if kind == "both" or (kind in IN_FLOAT32 and case.dense.graph.kinds.get(each.name) == kind):
            w = round(last * min(1.0, max(0.0, random.normal(size, 0.1))))
        else:
            w = last - int(kind == "little" and last > 0 and random.random() < 0.5)
        is_rounded = each.domain and kind not in IN_FLOAT32 and in_int8[each.domain]
        p = 0 if not each.domain else each.precisions.index("int8" if is_rounded else "fp32")
        plan.append(each.each.index((w, p)))
    return plan


def _outputs(case: Case, module: nn.Module, floats: Sequence[str], is_cut: bool) -> Tensor:
    """What a cut network computes of the test images with its layers rounded that are not in float32."""
    import torch

    from aap_hw.quantize import quantise

    if is_cut:
        module = _refreshed(module, case.shown)
    assert case.dense.planner.costs.mixture is not None
    program: nn.Module = module
    if not case.dense.planner.costs.mixture.network.is_floating(floats):
        program = quantise(module, case.shown, floats)
    with torch.no_grad():
        return torch.cat([program(part) for part in case.tested[0].split(BATCH)])


def _refreshed(module: nn.Module, shown: Sequence[tuple[Tensor, ...]]) -> nn.Module:
    """The module with the statistics of its batch norms taken anew."""
    import torch

    module = copy.deepcopy(module)
    norms = [each for each in module.modules() if isinstance(each, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    with torch.no_grad():
        for batch in shown:
            module(*batch)
    return module.eval()


def _best(scores: np.ndarray, width: int) -> list[int]:
    from aap_hw.policy import best_channels

    return [int(each) for each in best_channels(scores, width)]


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Rank correlations of value with what is measured, each so that 1 is right."""
    from scipy.stats import spearmanr

    found = {}
    for name in dict.fromkeys(row["network"] for row in rows):
        for kind in KINDS:
            some = [row for row in rows if (row["network"], row["kind"]) == (name, kind)]
            for factor in FACTORS:
                value = [row["of_width"] + factor * row["of_precision"] for row in some]
                if len(set(value)) < 3:
                    continue
                by = "" if factor == 1 else f"_times_{factor:g}"
                for measure, sign in (("loss", -1), ("accuracy", 1), ("noise", -1)):
                    rank = float(spearmanr(value, [sign * row[measure] for row in some]).statistic)
                    found[f"{name}_{kind}{by}_{measure}"] = 0.0 if math.isnan(rank) else rank
            paid = [(row["noise"], -row["of_width"] - row["of_precision"]) for row in some]
            if units := [noise / value for noise, value in paid if value > 0]:
                found[f"{name}_{kind}_noise_for_a_unit_of_value"] = median(units)
    return found


def _cases(options: argparse.Namespace, say: Any) -> Iterator[Case]:
    import torch
    from _inverted_residuals import trained
    from _made_up import AT_MOST, made_up_table

    from aap_hw.compile.front.domains import mixed_network
    from aap_hw.graph import ChannelGraph
    from aap_hw.lut.enumeration import group_candidates
    from aap_hw.models.origin import Origin
    from aap_hw.models.weights import WeightsFile
    from aap_hw.prune.baseline import baseline
    from aap_hw.prune.samples import calibration_batches
    from aap_hw.prune.scoring import scores_of
    from aap_hw.prune.task import PruneSettings, Task
    from aap_hw.train.data import load_embedded
    from aap_hw.train.sources.cifar10 import load_cifar10

    embedded, found = load_embedded(), list[tuple[str, str, Any, Any]]()
    networks = options.networks.split(",")
    if "resnet20" in networks:
        found.append(("resnet20, Fashion-MNIST", "resnet20", "embedded", embedded))
    if "inverted_residuals" in networks:
        data = embedded.limited(BATCH) if options.quick else embedded
        weights = trained(data, 1 if options.quick else EPOCHS, Path("runs/currency"), say)
        made = f"{Path(__file__).with_name('_inverted_residuals.py')}:network"
        found.append(("inverted residuals, Fashion-MNIST", made, WeightsFile.at(weights), embedded))
    if options.checkpoints is not None and options.cifar10 is not None:
        of_cifar10 = load_cifar10(Path(options.cifar10))
        for name in options.cifar10_networks.split(","):
            (path,) = sorted(Path(options.checkpoints).glob(f"{name}-*.th"))
            found.append((f"{name}, CIFAR-10", name, WeightsFile.at(path), of_cifar10))
    elif not options.quick:
        say("CIFAR-10 is left out: it takes --checkpoints and --cifar10")
    settings = PruneSettings(precision="mixed", depth=False, calibration_images=options.calibration_images)
    for title, name, weights, data in found:
        origin = Origin.of(name, (3, 32, 32), weights)
        graph = ChannelGraph.trace(origin.build(), origin.inputs.zeros())
        candidates = group_candidates(graph, options.granularity, AT_MOST)
        table = made_up_table(mixed_network(graph).everything, candidates, options.granularity)
        task = Task(origin, table, data, allow_emulated=True)
        dense = baseline(task, settings)
        scores = dict(scores_of(task, dense.module, dense.graph, settings))
        shown = [each for each, _ in calibration_batches(data, origin.inputs, options.calibration_images)]
        images = data.inputs("test", origin.inputs, range(options.images))[0]
        labels = data.stored("test", slice(options.images))[1].long()
        with torch.no_grad():
            exact = torch.cat([dense.module(part) for part in images.split(BATCH)])
        say(f"{title}: {100 * float((exact.argmax(1) == labels).double().mean()):.2f} % of {len(labels)} test images")
        planner = dense.planner
        assert planner.costs.mixture is not None
        free = [name for name, widths in planner.candidates.items() if len(widths) > 1]
        choices = planner.costs.mixture.labels(planner.candidates, free)
        parts = torch.cat([batch[0] for batch in shown]).split(BATCH)
        whole = [(part,) for part in parts if len(part) == BATCH]
        yield Case(title, dense, scores, choices, planner.problem(scores, []), whole, (images, labels), exact)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", type=int, default=40, help="of each kind")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--images", type=int, default=1024, help="test images, a multiple of 64")
    parser.add_argument("--calibration-images", type=int, default=256)
    parser.add_argument("--checkpoints", metavar="FOLDER", help="holds resnet20-*.th and resnet56-*.th")
    parser.add_argument("--cifar10", metavar="FOLDER", help="holds CIFAR-10 in any form that cifar10:FOLDER takes")
    parser.add_argument(
        "--measured", metavar="FILE", help="an earlier report on as many images: take what plans cost from there"
    )
    parser.add_argument("--granularity", type=int, default=8, help="channels between two widths of a group")
    parser.add_argument("--networks", default="resnet20,inverted_residuals", help="of Fashion-MNIST")
    parser.add_argument("--cifar10-networks", default="resnet20", help="of the checkpoints")
    parser.add_argument("--quick", action="store_true", help="three plans of each kind on few images: does it run?")
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON; - for standard output")
    options = parser.parse_args()
    if options.quick:
        options.plans, options.images, options.calibration_images = 3, 2 * BATCH, BATCH
        options.networks = "inverted_residuals"
    return options


if __name__ == "__main__":
    main()
