"""A latency table that nobody measured: ResNet-20's kernels at all their widths, with a formula for the latency.

It follows the schema of a real one, so that planning, rounds and the command line can be proven without measuring.
Also a device that only pretends to run what it is given, and a few of the embedded images.
"""

from __future__ import annotations

import functools
import json
import math
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from aap_hw.attention.observer import AttentionObserver
from aap_hw.compile.families import multiply_accumulates
from aap_hw.compile.front.network import Network
from aap_hw.compile.front.partition import partition
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import SCHEDULES
from aap_hw.device import load_profile
from aap_hw.device.connection import LocalDevice
from aap_hw.device.description import DeviceDescription
from aap_hw.graph import ChannelGraph, WholeHeads
from aap_hw.graph.cut import surgery
from aap_hw.graph.program.calling import Names
from aap_hw.graph.program.inputs import Batch, tensors_of
from aap_hw.inputs import Inputs
from aap_hw.lut.calibrating import Slowdown
from aap_hw.lut.enumeration import group_candidates, points_of
from aap_hw.lut.file import dump_table
from aap_hw.lut.predicting import predict_us
from aap_hw.lut.table import LatencyPoint, LatencyTable, NetworkName, Validation
from aap_hw.models import zoo
from aap_hw.models.cifar_resnet import BasicBlock, CifarResNet
from aap_hw.models.origin import Origin
from aap_hw.policy import Allocation, Problem, fitting
from aap_hw.prune import baseline, measuring, scoring
from aap_hw.prune.run import PrunedNetwork
from aap_hw.prune.steps import State
from aap_hw.train.data import LabelledImages, load_embedded

ORIGIN = Origin("resnet20", "embedded", Inputs.of((3, 32, 32)))
# The whole network is said to take this many times the sum of its kernels.
CALIBRATION = 1.25
# What an estimated table says in place of how it was measured.
ESTIMATE = {
    "method": "a formula, version 1",
    "error": {
        "machine": "a CPU at hand", "networks": ["a", "b"], "plans": 40, "mean_pct": 14.2, "worst_pct": 38.0,
        "kendall_tau": 0.93,
    },
}  # fmt: skip


def latency_us(address: Address) -> float:
    """A microsecond a call, the arithmetic, and a little for every value that is written; four digits, as in a file."""
    values = math.prod(address.key.size) * address.width_out
    us = 1 + multiply_accumulates(address) / 4e4 + values / 1e4
    return float(f"{us:.4g}")


@functools.cache
def resnet20() -> tuple[nn.Module, ChannelGraph, Network]:
    """The embedded ResNet-20, its graph and its kernels; shared, so leave it as it is."""
    module = zoo.build("resnet20", "embedded").module
    graph = ChannelGraph.trace(module, (torch.zeros(1, 3, 32, 32),))
    return module, graph, partition(graph)


def half_pruned() -> PrunedNetwork:
    """ResNet-20 with random halves of its groups cut, and weights that no other process would make."""
    module, graph, _ = resnet20()
    random = np.random.default_rng(4)
    kept = {
        group.name: sorted(random.choice(group.width, group.width // 2, replace=False).tolist())
        for group in graph.groups
        if not group.frozen
    }
    pruned = graph.cut(module, kept)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for tensor in pruned.state_dict().values():
            if tensor.is_floating_point():
                tensor += 0.01 * torch.rand(tensor.shape, generator=generator)
    record = {"rounds": [{"round": 1, "measured_ms": None}], "budgets": {"latency": "50%"}}
    return PrunedNetwork(ORIGIN, kept, "x86", pruned, record)


def formula_ms(widths: dict[str, int], calibration: float = CALIBRATION) -> float:
    """The latency of ResNet-20 at some widths, from the formula instead of the table."""
    return math.fsum(latency_us(kernel.at(widths)) for kernel in resnet20()[2].kernels) * calibration / 1e3


@functools.cache
def this_device() -> LocalDevice:
    """This machine's CPU."""
    return LocalDevice(load_profile("x86"))


def table(**device: Any) -> LatencyTable:
    """The table of ResNet-20 at 3 x 32 x 32; keywords replace facts of the device, which is not this machine.

    An estimated one says nothing of measurements.
    """
    _, graph, network = resnet20()
    made = table_of(graph, network, **device)
    predicted = predict_us(network, network.dense, made)
    measured = float(f"{CALIBRATION * predicted:.4g}")
    if made.is_estimated:
        made.slowdowns[NetworkName("resnet20", ORIGIN.inputs)] = Slowdown(predicted, measured, 0.0)
        return made
    made.validation.append(Validation("resnet20", ORIGIN.inputs, "dense", network.dense, predicted, measured))
    return made


def table_of(graph: ChannelGraph, network: Network, **device: Any) -> LatencyTable:
    """The table of any network."""
    facts = {
        "name": "x86",
        "profile_hash": "0" * 12,
        "cpu": "a CPU elsewhere",
        "threads": 1,
        "target": {"kind": "llvm"},
    }
    facts |= {"tvm": "0.27.0", "schedules": SCHEDULES, "host": "Linux", "date": "2026-01-01", "provenance": "measured"}
    how = {"warmup": 3, "repeats": 20, "copies": 4, "statistic": "median", "granularity": 4, "at_most": 8}
    how |= {"reference_us": 80.0, "reference_drift": 0.01}
    made = LatencyTable({**facts, **device}, how)
    if made.is_estimated:
        made.measurement = {**ESTIMATE, "granularity": how["granularity"], "at_most": how["at_most"]}
    for address in points_of(network, group_candidates(graph, 4, 8)):
        timed = (0.0, 0) if made.is_estimated else (0.1, 20)
        made.add(address.key, LatencyPoint(address.widths, latency_us(address), *timed))
    return made


def of_this_device() -> dict[str, Any]:
    """Facts that make `table` one of this machine."""
    return this_device().describe().as_json()


@functools.cache
def few_images() -> LabelledImages:
    """256 training and 100 test images, spread over the classes."""
    data = load_embedded()
    train, test = data.spread("train", 256), data.spread("test", 100)
    return LabelledImages(
        data.train_images[train], data.train_labels[train], data.test_images[test], data.test_labels[test],
        data.class_names,
    )  # fmt: skip


@pytest.fixture
def table_file(tmp_path: Path) -> Path:
    """`table` as a file, of a device elsewhere."""
    return write_table(tmp_path / "table.json")


def write_table(path: Path, **device: Any) -> Path:
    """Write `table` to a file and return its path."""
    path.write_text(_text_of_table(json.dumps(device)), "utf-8")
    return path


@functools.cache
def _text_of_table(device: str) -> str:
    made = table(**json.loads(device))
    assert len(made) > 50
    return dump_table(made)


class PretendedDevice:
    """Says of every network what the table says, times a factor for each pruned one that is brought to it.

    Nothing is compiled: what stands in for a library holds the widths of the network.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, latencies: LatencyTable, factors: Sequence[float]) -> None:
        self.profile, self.target = load_profile("x86"), this_device().target
        self._table, self._factors = latencies, list(factors)
        self.brought: list[dict[str, int]] = []
        monkeypatch.setattr(measuring, "compile_network", self._compile)

    def describe(self) -> DeviceDescription:
        """What the table says of its device."""
        return DeviceDescription(**{name: self._table.device[name] for name in DeviceDescription.__annotations__})

    def _compile(self, model: nn.Module, example: object, target: object, library: Path, *_: object) -> None:
        dense = resnet20()[2].dense
        layers = {name: getattr(model.get_submodule(name), "weight", torch.empty(0)) for name in dense}
        widths = {name: weight.shape[0] for name, weight in layers.items()}
        for stage in ("layer2.0", "layer3.0"):  # half of the channels that the shortcut pads go with the other half
            widths[f"{stage}.conv2"] = model.get_submodule(stage).new_channels // 2
        library.write_text(json.dumps(widths))

    def load(self, library: Path) -> PretendedLibrary:
        """Read the widths of a network."""
        widths = json.loads(library.read_text())
        network = resnet20()[2]
        us = CALIBRATION * predict_us(network, widths, self._table)
        if widths != dict(network.dense):
            self.brought.append(widths)
            us *= self._factors[min(len(self.brought), len(self._factors)) - 1]
        return PretendedLibrary(us)


class PretendedLibrary:
    """Takes the same time at each call."""

    def __init__(self, us: float) -> None:
        self._us = us

    def set_inputs(self, function: str, inputs: Sequence[np.ndarray]) -> None:
        """Nothing depends on them."""

    def run(self, function: str) -> list[np.ndarray]:
        """Not asked for."""
        raise NotImplementedError

    def time_us(self, function: str, number: int, repeats: int) -> list[float]:
        """The same each time."""
        return [self._us] * repeats


# What was found out about the shared ResNet-20, by what it depends on.
_KNOWN: dict[tuple[object, ...], Any] = {}


def _told_apart(argument: Any) -> object:
    """What an argument is known by: a graph by its groups, what has no value to compare by being itself."""
    if isinstance(argument, ChannelGraph):
        return tuple((group.name, group.frozen, group.renormalised) for group in argument.groups)
    if isinstance(argument, (str, tuple, list, frozenset, type(None))):
        return tuple(argument) if isinstance(argument, list) else argument
    return id(argument)


@pytest.fixture
def quick_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do once for all tests what many do alike to ResNet-20: build, trace, judge by the same images, plan, cut."""
    share_resnet20(monkeypatch)


def share_resnet20(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the fixture `quick_baseline` does."""
    real: Callable[..., Any] = ChannelGraph.trace
    module, graph, _ = resnet20()

    def trace(
        model: nn.Module, example: tuple[torch.Tensor, ...], names: Names = (), heads: bool | WholeHeads | None = None
    ) -> ChannelGraph:
        if model is module and example[0].shape == (1, 3, 32, 32) and heads is not True:
            return graph
        if model not in built or isinstance(heads, WholeHeads):
            return real(model, example, names, heads=heads)
        key = (real, id(model), tuple(example[0].shape), heads)
        if key not in _KNOWN:
            _KNOWN[key] = real(model, example, names, heads=heads)
        found: ChannelGraph = _KNOWN[key]
        return found

    built: set[nn.Module] = _KNOWN.setdefault(("built",), set())

    def build(self: Origin) -> nn.Module:
        if self == ORIGIN:
            return module
        key = (zoo.build, self.model, self.weights)
        if key not in _KNOWN:
            _KNOWN[key] = zoo.build(self.model, self.weights).module
            built.add(_KNOWN[key])
        other: nn.Module = _KNOWN[key]
        return other

    real_skeleton = Origin.skeleton

    def skeleton(self: Origin) -> nn.Module:
        return module if self.model == ORIGIN.model else real_skeleton(self)

    check, judge, observe = baseline.check_cutting, scoring.sensitivities, scoring.observed

    def once(of: ChannelGraph | None, images: Sequence[Batch], call: Callable[[], Any], *what: object) -> Any:
        """What a call returned of the same groups and images before; a cut also depends on the code that cuts."""
        groups = None if of is None else tuple(group.name for group in of.groups if group.frozen is None)
        shown = tuple(each.numpy().tobytes() for batch in images for each in tensors_of(batch))
        key = (*what, groups, hash(shown), surgery.cut, surgery._shorten)
        if key not in _KNOWN:
            _KNOWN[key] = call()
        return _KNOWN[key]

    def remembered(function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, which returns what it made before of the same arguments if the graph is among them."""

        def call(*arguments: Any, **named: Any) -> Any:
            given = [*arguments, *named.values()]
            graphs = [each for each in given if isinstance(each, ChannelGraph)]
            if not graphs or any(each.program is not graph.program for each in graphs):
                return function(*arguments, **named)
            key = (function, *named, *map(_told_apart, given))
            if key not in _KNOWN:
                _KNOWN[key] = function(*arguments, **named), given  # which keeps the objects that the key names
            return _KNOWN[key][0]

        return call

    def check_cutting(of: ChannelGraph, model: nn.Module, images: Batch) -> None:
        if model is module and of.program is graph.program:
            once(of, [images], lambda: check(of, model, images), check)
        else:
            check(of, model, images)

    def sensitivities(of: ChannelGraph, images: Batch) -> dict[str, float]:
        if of.program is graph.program:
            return dict(once(of, [images], lambda: judge(of, images), judge))
        return judge(of, images)

    def observed(
        model: nn.Module, batches: Iterable[Batch], *, graph: ChannelGraph | None = None, **how: Any
    ) -> AttentionObserver:
        if model is module:
            batches = list(batches)
            call = partial(observe, model, batches, graph=graph, **how)
            seen: AttentionObserver = once(graph, batches, call, observe, *how.items())
            return seen
        return observe(model, batches, graph=graph, **how)

    retrace, solve = State.retrace, fitting.allocate

    def retraced(self: State, inputs: Inputs) -> None:
        """The graph of another network of these widths: nothing reads weights from it."""
        if not isinstance(self.module, CifarResNet):
            retrace(self, inputs)
            return
        shapes = tuple((name, tuple(each.shape)) for name, each in self.module.state_dict().items())
        padded = tuple(each.new_channels for each in self.module.modules() if isinstance(each, BasicBlock))
        key = (retrace, inputs, self.graph.heads, shapes, padded, _told_apart(self.graph))
        if key not in _KNOWN:
            retrace(self, inputs)
            _KNOWN[key] = self.graph
        self.graph = _KNOWN[key]

    def solved(problem: Problem, budgets: Mapping[str, float], **how: float) -> Allocation:
        key = (solve, pickle.dumps((vars(problem), dict(budgets), how)))
        if key not in _KNOWN:
            _KNOWN[key] = solve(problem, budgets, **how)
        found: Allocation = _KNOWN[key]
        return found

    monkeypatch.setattr(State, "retrace", retraced)
    monkeypatch.setattr(fitting, "allocate", solved)
    for name in ("partition", "mixed_network", "removable", "removable_in_both"):
        monkeypatch.setattr(baseline, name, remembered(getattr(baseline, name)))
    monkeypatch.setattr(baseline, "check_cutting", check_cutting)
    monkeypatch.setattr(scoring, "sensitivities", sensitivities)
    monkeypatch.setattr(scoring, "observed", observed)
    monkeypatch.setattr(Origin, "build", build)
    monkeypatch.setattr(Origin, "skeleton", skeleton)
    monkeypatch.setattr(ChannelGraph, "trace", staticmethod(trace))


@pytest.fixture
def quick(quick_baseline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """ResNet-20 is traced once for all tests, and a few embedded images stand for all."""
    monkeypatch.setattr("aap_hw.train.data.load_embedded", few_images)
