"""What rounding does to a network's outputs, one layer at a time, and whether the price in plans foretells it.

Of each layer of a trained network, what it reads and its weights are rounded to int8, and nothing else; what else reads
the same value reads it rounded, too. The noise in the outputs on test images, as a share of each output's variance, is
compared with what `aap_hw.attention.dependence` says by training images, which is what plans of mixed precisions pay.

    python benchmarks/rounding_sites.py --json -
    python benchmarks/rounding_sites.py --checkpoint resnet20-12fca82f.th --cifar10 FOLDER --json -
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from aap_hw.graph import ChannelGraph
    from aap_hw.models.origin import Origin
    from aap_hw.train.data import LabelledImages


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch
    from _report import print_report, say

    from aap_hw.attention import Rounded, dependence
    from aap_hw.graph import ChannelGraph

    options = _options()
    origin, data = _network(options)
    module = origin.build().eval().requires_grad_(False)
    shown = data.inputs("train", origin.inputs, data.spread("train", options.calibration_images))[0]
    images = data.inputs("test", origin.inputs, data.spread("test", options.images))[0]
    alone, many = (ChannelGraph.trace(module, (example,)) for example in (shown[:1], shown))
    sites = {layer: Rounded([value], [layer]) for layer, value in _read(alone).items()}
    foretold = dependence(module, alone, shown, sites).noise
    exact, rows = _outputs(many, images), []
    ranges = _ranges(many, shown)
    for layer, value in _read(many).items():
        weight = module.get_submodule(layer).get_parameter("weight")
        kept, weight.data = weight.data, _rounded_weight(weight.data)
        low, high = ranges[value]
        changed = _outputs(many, images, value, max(high, 0.0) / 255 - min(low, 0.0) / 255)
        weight.data = kept
        measured = float(((changed - exact).square().mean(0) / exact.var(0)).mean())
        row = {"layer": layer, "measured": measured, "foretold": foretold[layer]["int8"] / exact.shape[1]}
        rows.append({"network": origin.model, **row})
        say(f"{layer}: {measured:.2e} measured, {row['foretold']:.2e} foretold")
    assert torch.equal(_outputs(many, images), exact)
    print_report(rows, _summary(rows), options.json)


def _read(graph: ChannelGraph) -> dict[str, str]:
    """What each convolution and linear layer reads, as it is called in the traced program."""
    signature, found = graph.program.graph_signature, {}
    for node in graph.program.graph.nodes:
        name = getattr(node.target, "_opname", "")
        if node.op == "call_function" and name in ("conv2d", "linear"):
            weight = signature.inputs_to_parameters[node.args[1].name]
            found[weight.removesuffix(".weight")] = node.args[0].name
    return found


def _outputs(graph: ChannelGraph, images: Tensor, rounded: str = "", step: float = 0.0) -> Tensor:
    """What the network computes if one value is rounded; a batch at a time of the size it was traced for."""
    import torch
    from torch import fx

    from aap_hw.graph.program.outputs import output_tensors

    class Rounding(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            return (value / step).round() * step if n.name == rounded else value

    run, size = Rounding(graph.program.module(check_guards=False)), graph.batch
    with torch.no_grad():
        parts = torch.split(images[: len(images) // size * size], size)
        return torch.cat([output_tensors(run.run(part))[0] for part in parts]).double()


def _ranges(graph: ChannelGraph, images: Tensor) -> dict[str, tuple[float, float]]:
    """The smallest and the largest number of each value."""
    import torch
    from torch import fx

    found: dict[str, tuple[float, float]] = {}

    class Seeing(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                found[n.name] = float(value.min()), float(value.max())
            return value

    with torch.no_grad():
        Seeing(graph.program.module(check_guards=False)).run(images)
    return found


def _rounded_weight(weight: Tensor) -> Tensor:
    step = weight.flatten(1).abs().amax(1).reshape(-1, *[1] * (weight.dim() - 1)) / 127
    return (weight / step).round() * step


def _summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """How well measured noise is foretold: by rank, and from which to which share of it."""
    from scipy.stats import spearmanr

    measured, foretold = ([row[name] for row in rows] for name in ("measured", "foretold"))
    ratios = [one / other for one, other in zip(foretold, measured, strict=True)]
    rank = float(spearmanr(foretold, measured).statistic)
    totals = {"measured_in_all": sum(measured), "foretold_in_all": sum(foretold)}
    return {"rank": rank, "least_ratio": min(ratios), "most_ratio": max(ratios), **totals}


def _network(options: argparse.Namespace) -> tuple[Origin, LabelledImages]:
    from aap_hw.models.origin import Origin
    from aap_hw.models.weights import WeightsFile
    from aap_hw.train.data import load_embedded
    from aap_hw.train.sources.cifar10 import load_cifar10

    if options.checkpoint is None:
        return Origin.of("resnet20", (3, 32, 32), "embedded"), load_embedded()
    name = Path(options.checkpoint).name.partition("-")[0]
    return Origin.of(name, (3, 32, 32), WeightsFile.at(options.checkpoint)), load_cifar10(Path(options.cifar10))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256, help="test images, a multiple of the calibration images")
    parser.add_argument("--calibration-images", type=int, default=64)
    parser.add_argument("--checkpoint", metavar="FILE", help="of resnet20 or resnet56, trained on CIFAR-10")
    parser.add_argument("--cifar10", metavar="FOLDER", help="holds CIFAR-10 in any form that cifar10:FOLDER takes")
    parser.add_argument("--quick", action="store_true", help="few images: does it run?")
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON; - for standard output")
    options = parser.parse_args()
    if (options.checkpoint is None) is not (options.cifar10 is None):
        parser.error("--checkpoint and --cifar10 need each other")
    if options.quick:
        options.images, options.calibration_images = 32, 16
    return options


if __name__ == "__main__":
    main()
