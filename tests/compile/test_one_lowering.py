"""Proves the promise on which every predicted latency rests: a deployed network runs the kernels of the table.

The networks have residual sums, squeeze and excitation, and concatenations. For random width plans, each kernel of the
network that was really cut and compiled is a point of the enumeration at its very key and widths; its code is
structurally the same as what the measuring library holds for that point; TVM changes neither on the way to machine
code; and at run time nothing else is called.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
import tvm_ffi
from torch import nn
from torchvision.ops import SqueezeExcitation
from tvm import relax, tirx

from aap_hw.compile.front.network import Network
from aap_hw.compile.front.partition import partition
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.library.lowering import compile_network, lower_network
from aap_hw.graph import ChannelGraph
from aap_hw.lut import compiling
from aap_hw.lut.compiling import compile_batch
from aap_hw.lut.enumeration import group_candidates, points_of
from aap_hw.lut.measuring import REFERENCE
from aap_hw.models import zoo
from tests.compile.running import target

GRANULARITY, AT_MOST = 8, 4
PLANS_A_NETWORK = 3


@dataclass
class Profiled:
    """A network and what a profile of it would measure."""

    module: nn.Module
    example: torch.Tensor
    graph: ChannelGraph
    network: Network
    candidates: dict[str, tuple[int, ...]]
    points: list[Address]


class Squeezing(nn.Module):
    """Inverted bottlenecks as in EfficientNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.SiLU(inplace=True))
        self.deep = nn.Sequential(nn.Conv2d(24, 40, 3, 1, 1), nn.BatchNorm2d(40), nn.Hardswish())
        self.gates = SqueezeExcitation(40, 10)
        self.back = nn.Sequential(nn.Conv2d(40, 24, 1, bias=False), nn.BatchNorm2d(24))
        self.linear = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.back(self.gates(self.deep(x)))
        return self.linear(x.mean((2, 3)))


class Concatenating(nn.Module):
    """A dense block, batch norms before convolutions, a shortcut among zeros, and a plain concatenation behind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = (
            nn.Conv2d(3, 16, 3, 2, 1),
            nn.Conv2d(16, 40, 3, 1, 1),
            nn.Conv2d(56, 24, 3, 1, 1),
        )
        self.first, self.second = nn.BatchNorm2d(16), nn.BatchNorm2d(56)
        self.linear = nn.Linear(80, 10)
        self.sides = (8, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stem = self.stem(x)
        pooled = F.max_pool2d(stem, 3, 2, 1)
        one = self.one(F.relu(self.first(pooled))) + F.pad(pooled, (0, 0, 0, 0, *self.sides))
        two = self.two(F.relu(self.second(torch.cat([pooled, one], 1))))
        return self.linear(torch.cat([pooled, one, two], 1).mean((2, 3)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet20": lambda: zoo.build("resnet20").module,
    "mobilenetv2": lambda: zoo.build("mobilenetv2").module,
    "squeezing": Squeezing,
    "concatenating": Concatenating,
}


# Whole networks, and plans beyond the first: what breaks the promise for them breaks it for the small ones.
SLOW = ("resnet20", "mobilenetv2")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in NETWORKS],
)
def profiled(request: pytest.FixtureRequest) -> Profiled:
    module, example = NETWORKS[request.param]().eval(), torch.randn(1, 3, 32, 32)
    graph = ChannelGraph.trace(module, (example,))
    network = partition(graph)
    candidates = group_candidates(graph, GRANULARITY, AT_MOST)
    return Profiled(module, example, graph, network, candidates, points_of(network, candidates))


def random_cut(profiled: Profiled, seed: int) -> tuple[dict[str, int], nn.Module]:
    random = np.random.default_rng(seed)
    plan = {name: int(random.choice(widths)) for name, widths in profiled.candidates.items()}
    keep = {
        group.name: random.permutation(group.width)[: plan[group.name]].tolist()
        for group in profiled.graph.groups
        if plan[group.name] < group.width
    }
    assert keep
    return plan, profiled.graph.cut(profiled.module, keep)


def kernels_of(module: nn.Module, example: torch.Tensor) -> tuple[list[Address], tvm.IRModule]:
    """Addresses and lowered module of a network traced from scratch."""
    graph = ChannelGraph.trace(module, (example,))
    network = partition(graph)
    state = {name: tensor.detach() for name, tensor in graph.program.state_dict.items()}
    lowered = lower_network(network, network.dense, state, target())
    return [kernel.at(network.dense) for kernel in network.kernels], lowered


def code_of(module: tvm.IRModule) -> dict[str, tirx.PrimFunc]:
    return {str(v.name_hint): f for v, f in module.functions.items() if isinstance(f, tirx.PrimFunc)}


def measured_code(points: list[Address], monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[Address, tirx.PrimFunc]:
    """What the measuring library holds for points, caught just before it is turned into machine code."""
    caught: list[tvm.IRModule] = []
    monkeypatch.setattr(compiling, "export_library", lambda module, *_: caught.append(module))
    compile_batch(points, target(), 2, folder / "batch.so")
    (module,) = caught
    called = {
        str(name): binding.value.args[0].name_hint
        for name in [f"point_{i}" for i in range(len(points))]
        for binding in module[name].body.blocks[0].bindings
        if isinstance(binding.value, relax.Call) and binding.value.op.name == "relax.call_tir"
    }
    code = code_of(module)
    return {point: code[called[f"point_{i}"]] for i, point in enumerate(points)}


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, PLANS_A_NETWORK))]
)
def test_every_kernel_of_a_cut_network_is_in_the_enumeration_with_the_same_code(
    profiled: Profiled, seed: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan, cut = random_cut(profiled, seed)
    addresses, lowered = kernels_of(cut, profiled.example)
    assert addresses == [kernel.at(plan) for kernel in profiled.network.kernels]
    assert set(addresses) <= set(profiled.points)
    unique = list(dict.fromkeys(addresses))
    measured = measured_code(unique, monkeypatch, tmp_path)
    deployed = code_of(lowered)
    for name, address in zip(calls_in(lowered), addresses, strict=True):
        assert tvm_ffi.structural_equal(measured[address], deployed[name], map_free_vars=True), (name, address)


def calls_in(lowered: tvm.IRModule) -> list[str]:
    """Names of the kernels that the main function calls, in order."""
    values = [b.value for block in lowered["main"].body.blocks for b in block.bindings]
    return [
        str(value.args[0].name_hint)
        for value in values
        if isinstance(value, relax.Call) and getattr(value.op, "name", "") == "relax.call_tir"
    ]


def test_tvm_leaves_the_kernels_as_they_are(profiled: Profiled) -> None:
    _, cut = random_cut(profiled, seed=9)
    _, lowered = kernels_of(cut, profiled.example)
    with target().tvm:
        optimised = relax.get_default_pipeline(target().tvm)(lowered)
    before, after = code_of(lowered), code_of(optimised)
    # The one addition is the copy of the logits into their final shape.
    assert after.keys() - before.keys() <= {"reshape"}
    for name, code in before.items():
        assert tvm_ffi.structural_equal(bare(code), bare(after[name]), map_free_vars=True), name


def bare(code: tirx.PrimFunc) -> tirx.PrimFunc:
    return code.without_attr("global_symbol") if "global_symbol" in code.attrs else code


def test_running_network_calls_its_kernels_and_nothing_else(profiled: Profiled, tmp_path: Path) -> None:
    plan, cut = random_cut(profiled, seed=11)
    network = compile_network(cut, profiled.example, target(), tmp_path / "cut.so")
    called = count_calls(tmp_path / "cut.so", "main", [profiled.example.numpy()])
    assert called.pop("reshape", 0) <= 1
    by_operator = Counter(dict.fromkeys({k.key.op for k in network.kernels}, 0))
    for name, count in called.items():
        by_operator[name.rpartition("_")[0]] += count
    assert by_operator == Counter(kernel.key.op for kernel in network.kernels)
    assert len(network.kernels) == len(profiled.network.kernels)
    assert plan.keys() >= set(network.dense)


def test_measured_point_calls_its_kernel_once_a_copy_and_nothing_else(tmp_path: Path) -> None:
    add, relu = (KernelKey.make(op, (4, 4), 1) for op in ("add", "relu"))
    points = [REFERENCE, Address(add, (16, 16)), Address(relu, (8, 8))]
    batch = compile_batch(points, target(), 4, tmp_path / "batch.so")
    assert batch.copies == (4, 4, 4)
    for index, shapes in enumerate(batch.shapes):
        inputs = [np.zeros(shape, "float32") for shape in shapes]
        assert count_calls(batch.library, f"point_{index}", inputs) == Counter({f"kernel_{index}": 4})


def count_calls(library: Path, function: str, inputs: list[np.ndarray]) -> Mapping[str, int]:
    """How often a library's function calls what, apart from TVM's own bookkeeping."""
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu())
    called: Counter[str] = Counter()

    def note(_function: Any, name: str, before: bool, _result: Any, *_arguments: Any) -> None:
        if before and not name.startswith("vm.builtin."):
            called[name] += 1

    machine.set_instrument(note)
    machine[function](*[tvm.runtime.tensor(array) for array in inputs])
    return called
