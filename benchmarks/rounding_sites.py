"""What rounding one layer does to the outputs, and which formula foretells it.

Of each layer of a trained network, what it reads and its weights are rounded to int8, and nothing else. The noise in
the outputs on test images, as a share of their variance, is compared with three forecasts from calibration images:

- `price`: what a plan takes for it: the layer's sensitivity times what rounding adds to what it computes, as a share.
- `white`: squared gradients of random projections of the outputs times the variance of rounding, `step^2 / 12`.
- `first_order`: the same projections' change by the errors that rounding really makes, to first order.

    python benchmarks/rounding_sites.py --json -
    python benchmarks/rounding_sites.py --checkpoint resnet20-12fca82f.th --cifar10 FOLDER --json -
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from aap_hw.models.origin import Origin
    from aap_hw.train.data import LabelledImages

DRAWS = 4
FORECASTS = ("price", "white", "first_order")
BATCH = 64


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch
    from _report import print_report, say

    options = _options()
    origin, data = _network(options)
    module = origin.build().eval().requires_grad_(False)
    shown = data.inputs("train", origin.inputs, data.spread("train", options.calibration_images))[0]
    layers: dict[str, nn.Module] = {
        name: each for name, each in module.named_modules() if isinstance(each, torch.nn.Conv2d | torch.nn.Linear)
    }
    found: dict[str, dict[str, Any]] = {name: {"layer": name} for name in layers}
    for name, price in _prices(origin, module, shown).items():
        found[name]["price"] = price
    steps = _forecast(module, layers, shown, found)
    images = data.inputs("test", origin.inputs, data.spread("test", options.images))[0]
    exact = _outputs(module, images)

    def noise() -> float:
        return float((_outputs(module, images) - exact).square().mean() / exact.var())

    for name, layer in layers.items():
        with _rounded(layer, steps[name]):
            found[name]["measured"] = noise()
        say(f"{name}: {found[name]['measured']:.2e} measured, {found[name]['first_order']:.2e} to first order")
    rows = [{"network": origin.model, **row} for row in found.values()]
    print_report(rows, _summary(rows), options.json)


def _prices(origin: Origin, module: nn.Module, shown: Tensor) -> dict[str, float]:
    """Sensitivity times noise over signal of each layer, in any unit."""
    from aap_hw.attention import layer_noise, sensitivities
    from aap_hw.graph import ChannelGraph

    graph = ChannelGraph.trace(module, origin.inputs.zeros())
    noise = layer_noise(module, graph, shown)
    matters = sensitivities(graph, shown, {name: {each.node: each.dim} for name, each in noise.items()})
    return {name: matters[name] * each.noise / each.signal for name, each in noise.items()}


def _forecast(
    module: nn.Module, layers: dict[str, nn.Module], shown: Tensor, found: dict[str, dict[str, Any]]
) -> dict[str, float]:
    """Write down what noise roundings will make by gradients; the step of what each layer reads."""
    import torch

    read: dict[str, Tensor] = {}
    made: dict[str, Tensor] = {}

    def before(name: str) -> Any:
        def hook(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor]:
            # A tensor of its own: what else reads the same value is not rounded.
            own = given[0] * 1.0
            own = own if own.requires_grad else own.requires_grad_()
            own.retain_grad()
            read[name] = own
            return (own,)

        return hook

    def after(name: str) -> Any:
        def hook(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
            own = output * 1.0
            own.retain_grad()
            made[name] = own
            return own

        return hook

    hooks = [layer.register_forward_pre_hook(before(name)) for name, layer in layers.items()]
    hooks += [layer.register_forward_hook(after(name)) for name, layer in layers.items()]
    outputs = module(shown)
    for each in hooks:
        each.remove()
    steps = {name: _step(value.detach()) for name, value in read.items()}
    draw = torch.Generator().manual_seed(0)
    for forecast in FORECASTS[1:]:
        for name in layers:
            found[name][forecast] = 0.0
    # So that the mean square of a projection's change is the change's share of the variance.
    unit = float(outputs.detach().double().std()) * outputs.shape[1] ** 0.5
    for number in range(DRAWS):
        for value in (*read.values(), *made.values()):
            value.grad = None
        direction = torch.randn(outputs.shape, generator=draw) / unit
        (outputs * direction).sum().backward(retain_graph=number < DRAWS - 1)
        for name, layer in layers.items():
            value, step = read[name].detach(), steps[name]
            by_value, by_output = read[name].grad, made[name].grad
            assert by_value is not None
            assert by_output is not None
            weights = _with_weight(layer, _rounded_weight(layer) - _weight(layer), value)
            of_weights = (weights * by_output).flatten(1).sum(1).double()
            of_values = ((_round(value, step) - value) * by_value).flatten(1).sum(1).double()
            white = (by_value.square() * (step**2 / 12) * (value != 0)).flatten(1).sum(1).double()
            found[name]["white"] += float(white.mean() + of_weights.square().mean()) / DRAWS
            found[name]["first_order"] += float((of_values + of_weights).square().mean()) / DRAWS
    return steps


def _with_weight(layer: nn.Module, weight: Tensor, value: Tensor) -> Tensor:
    """What a layer computes with another weight and no bias."""
    import torch

    names = [name for name, _ in layer.named_parameters()]
    given = {name: weight if name == "weight" else torch.zeros_like(getattr(layer, name)) for name in names}
    found: Tensor = torch.func.functional_call(layer, given, (value,))
    return found


def _step(value: Tensor) -> float:
    return float(value.max().clamp(min=0) - value.min().clamp(max=0)) / 255


def _round(value: Tensor, step: Tensor | float) -> Tensor:
    return (value / step).round() * step


def _weight(layer: nn.Module) -> Tensor:
    import torch

    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return weight


def _rounded_weight(layer: nn.Module) -> Tensor:
    weight = _weight(layer)
    largest = weight.flatten(1).abs().amax(1).reshape(-1, *[1] * (weight.dim() - 1))
    return _round(weight, largest / 127)


@contextmanager
def _rounded(layer: nn.Module, step: float) -> Iterator[None]:
    """A layer that reads rounded values and has rounded weights, for a while."""
    hook = layer.register_forward_pre_hook(lambda _, given: (_round(given[0], step),))
    weight, exact = _weight(layer), _weight(layer).data
    weight.data = _rounded_weight(layer).data
    try:
        yield
    finally:
        hook.remove()
        weight.data = exact


def _outputs(module: nn.Module, images: Tensor) -> Tensor:
    import torch

    with torch.no_grad():
        return torch.cat([module(part) for part in torch.split(images, BATCH)]).double()


def _summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Rank correlations with what is measured, and from which to which share of it a forecast of noise is."""
    from scipy.stats import spearmanr

    measured = [row["measured"] for row in rows]
    found = {f"{name}_rank": float(spearmanr([row[name] for row in rows], measured).statistic) for name in FORECASTS}
    for name in FORECASTS:
        ratios = [row[name] / row["measured"] for row in rows]
        found |= {f"{name}_least_ratio": min(ratios), f"{name}_most_ratio": max(ratios)}
    return found


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
    parser.add_argument("--images", type=int, default=256, help="test images")
    parser.add_argument("--calibration-images", type=int, default=64)
    parser.add_argument("--checkpoint", metavar="FILE", help="of resnet20 or resnet56, trained on CIFAR-10")
    parser.add_argument("--cifar10", metavar="FOLDER", help="holds CIFAR-10 in any form that cifar10:FOLDER takes")
    parser.add_argument("--quick", action="store_true", help="few images: does it run?")
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON; - for standard output")
    options = parser.parse_args()
    if options.quick:
        options.images, options.calibration_images = 32, 16
    return options


if __name__ == "__main__":
    main()
