"""Proves that the labels of groups tell what a network of mixed precisions costs: exactly what its kernels do.

The kernels of a plan are those that the partition makes of its layers in float32. Costs are made up, of kernel and
widths, so that two kernels that are taken for each other show; memory is what the kernels are counted to need.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aap_hw.compile.front.domains import mixed_network
from aap_hw.compile.front.mixed import MixedNetwork
from aap_hw.compile.front.network import Kernel
from aap_hw.compile.front.partition import partition
from aap_hw.compile.front.precision import layer_of
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.precision import MIXED, MIXED_HALF
from aap_hw.compile.keys.target import device_target
from aap_hw.compile.library.footprint import peak_bytes
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.lut.enumeration import group_candidates, points_of
from aap_hw.lut.mixed import Labels, in_all_precisions, mixed_costs
from aap_hw.lut.predicting import kernel_costs
from aap_hw.policy import GroupChoice, Problem
from aap_hw.prune.baseline import removable_in_both
from aap_hw.prune.footprints import mixed_memory_cost
from aap_hw.prune.mixture import Mixture


def layer(read: int, made: int, size: int = 1, groups: int = 1, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(read, made, size, stride, size // 2, groups=groups), nn.BatchNorm2d(made))


class Inverted(nn.Module):
    """An inverted bottleneck with a gate, and a residual if nothing else changes."""

    def __init__(self, read: int, made: int, stride: int = 1) -> None:
        super().__init__()
        inner = 3 * read
        self.expand, self.deep = layer(read, inner), layer(inner, inner, 3, inner, stride)
        self.squeeze, self.excite = nn.Conv2d(inner, 8, 1), nn.Conv2d(8, inner, 1)
        self.project, self.adds = layer(inner, made), read == made and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.deep(F.relu6(self.expand(x))))
        y = y * F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        y = self.project(y)
        return x + y if self.adds else y


class Mobile(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = layer(3, 8, 3, stride=2)
        self.blocks = nn.Sequential(Inverted(8, 8), Inverted(8, 16, 2), Inverted(16, 16))
        self.head = nn.Linear(16, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.blocks(F.relu(self.stem(image))), 1).flatten(1))


class Residual(nn.Module):
    """Two stages of residual blocks, the second behind a projection; its inner groups come before the stream.

    The last block has a single channel inside.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = layer(3, 16, 3)
        self.first = nn.ModuleList([nn.Sequential(layer(16, 8, 3), nn.ReLU(), layer(8, 16, 3)) for _ in range(2)])
        self.second = nn.Sequential(layer(16, 16, 3, stride=2), nn.ReLU(), layer(16, 24, 3))
        self.third = nn.Sequential(layer(24, 1, 3), nn.ReLU(), layer(1, 24, 3))
        self.shortcut, self.head = layer(16, 24, 1, stride=2), nn.Linear(24, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.stem(image))
        for block in self.first:
            x = F.relu(x + block(x))
        x = F.relu(self.shortcut(x) + self.second(x))
        x = F.relu(x + self.third(x))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Dense(nn.Module):
    """Layers that read what several others made, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = layer(3, 8, 3), layer(8, 8, 3), layer(16, 8, 3)
        self.mix, self.head = layer(24, 16), nn.Linear(16, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.stem(image))
        x = torch.cat([x, F.relu(self.one(x))], 1)
        x = F.relu(self.mix(torch.cat([x, F.relu(self.two(x))], 1)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def cost_of(address: Address) -> float:
    return 1 + zlib.crc32(repr((str(address.key), address.widths)).encode()) / 2**32


def cost(kernel: Kernel, widths: dict[str, int]) -> float:
    return cost_of(kernel.at(widths))


def plans(
    mixture: Mixture, labels: Sequence[Labels], blocks: Sequence[tuple[str, ...]], count: int
) -> Iterator[tuple[int, ...]]:
    """Random choices of labels that give the groups of a domain one precision, and remove what goes together."""
    rng = np.random.default_rng(1)
    for _ in range(count):
        chosen = {name: str(rng.choice(mixture.network.precisions)) for name in mixture.network.domains}
        gone = {name for block in blocks if rng.random() < 0.3 for name in block}

        def fits(each: Labels, w: int, p: int, gone: set[str] = gone, chosen: dict[str, str] = chosen) -> bool:
            if not each.widths[w] or each.name in gone:
                return not each.widths[w] and each.name in gone
            return not each.domain or each.precisions[p] == chosen[each.domain]

        yield tuple(int(rng.choice([i for i, (w, p) in enumerate(each.each) if fits(each, w, p)])) for each in labels)


TARGET = device_target({"kind": "llvm", "mcpu": "znver4"}, 1)
NETWORKS = [(Mobile, MIXED), (Mobile, MIXED_HALF), (Residual, MIXED), (Residual, MIXED_HALF)]
# What kernels read and make beside int8, without those that turn an input image.
CONVERTING = {"int8", "float32_int8", "int8_float32"}
WITH = {
    MIXED: CONVERTING | {"float32"},
    MIXED_HALF: CONVERTING | {"int8_bfloat16", "bfloat16", "bfloat16_float32", "float32_bfloat16"},
}


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda param: f"{param[0].__name__}-{param[1]}")
def traced(request: pytest.FixtureRequest) -> tuple[ChannelGraph, MixedNetwork]:
    make, precision = request.param
    graph = ChannelGraph.trace(make().eval(), (torch.zeros(1, 3, 16, 16),))
    return graph, mixed_network(graph, precision)


@pytest.mark.parametrize("depth", [False, True])
def test_labels_cost_what_the_kernels_of_the_plan_do(traced: tuple[ChannelGraph, MixedNetwork], depth: bool) -> None:
    graph, mixed = traced
    mixed, blocks = removable_in_both(mixed, graph, graph) if depth else (mixed, ())
    gone = [block.groups for block in blocks]
    assert bool(gone) == depth
    mixture, candidates = Mixture(mixed), group_candidates(graph, 4, 3)
    candidates |= {name: (0, *candidates[name]) for names in gone for name in names}
    labels = mixture.labels(candidates, [name for name, widths in candidates.items() if len(widths) > 1])
    choices = [
        GroupChoice(
            each.name,
            tuple(each.widths[w] for w, _ in each.each),
            np.zeros(len(each.each)),
            tuple(each.precisions[p] for _, p in each.each) if each.precisions else (),
        )
        for each in labels
    ]
    floating = kernel_costs(mixed.floating, candidates, lambda kernel, at: kernel.parameters(at))
    costs = {
        "latency": mixed_costs(mixed, candidates, labels, cost),
        "parameters": in_all_precisions(floating, labels),
        "memory": mixed_memory_cost(mixed, candidates, labels, TARGET),
    }
    problem = Problem(choices, costs, gone, mixture.alike(labels))
    seen, needed = set(), []
    for plan in plans(mixture, labels, gone, 25):
        assert problem.is_consistent(plan)
        widths = {name: each[-1] for name, each in candidates.items()}
        precisions = {}
        for each, label in zip(labels, plan, strict=True):
            w, p = each.each[label]
            widths |= {each.name: each.widths[w]} if each.name in widths else {}
            precisions |= {each.domain: each.precisions[p]} if each.domain and each.widths[w] else {}
        floats = mixed.floats(precisions)
        network = mixed.network(floats)
        if not depth:
            assert network.kernels == partition(graph, mixed.in_int8, floats=floats).kernels
        kernels = [kernel for kernel in network.kernels if not kernel.is_removed(widths)]
        assert problem.spent("latency", plan) == pytest.approx(sum(cost_of(kernel.at(widths)) for kernel in kernels))
        assert problem.spent("parameters", plan) == sum(kernel.parameters(widths) for kernel in kernels)
        needed.append((problem.spent("memory", plan), peak_bytes(network, widths, TARGET)))
        seen |= {kernel.key.precision for kernel in kernels}
    assert seen == WITH[mixed.precision]
    # Where two domains do not tell what is held, more is counted.
    assert all(counted >= real for counted, real in needed)
    assert sum(counted == real for counted, real in needed) >= 20


def test_every_kernel_that_a_plan_may_need_is_among_the_points(traced: tuple[ChannelGraph, MixedNetwork]) -> None:
    graph, mixed = traced
    candidates = group_candidates(graph, 4, 2)
    known = set(points_of(mixed.everything, candidates))
    for precision in (mixed.precisions[-1], mixed.in_int8):
        assert set(points_of(partition(graph, precision), candidates)) <= known
    rng = np.random.default_rng(2)
    for _ in range(10):
        floats = mixed.floats({name: str(rng.choice(mixed.precisions)) for name in mixed.domains})
        assert set(points_of(mixed.network(floats), candidates)) <= known


def test_what_is_read_side_by_side_has_one_precision() -> None:
    graph = ChannelGraph.trace(Dense().eval(), (torch.zeros(1, 3, 16, 16),))
    mixed = mixed_network(graph)
    (joined,) = (domain for domain in mixed.domains.values() if len(domain.groups) > 1)
    assert set(joined.groups) == {"stem.0", "one.0", "two.0"}
    assert set(joined.layers) == {"one.0", "two.0", "mix.0"}
    labels = Mixture(mixed).labels(group_candidates(graph, 4, 2), ["stem.0", "one.0", "two.0", "mix.0"])
    assert Mixture(mixed).alike(labels) == [("stem.0", "one.0", "two.0")]


def test_a_group_that_was_cut_to_one_width_leaves_the_others_to_plan() -> None:
    graph = ChannelGraph.trace(Dense().eval(), (torch.zeros(1, 3, 16, 16),))
    mixed, candidates = mixed_network(graph, MIXED), group_candidates(graph, 4, 3)
    free = [name for name, widths in candidates.items() if len(widths) > 1]
    for cut in combinations(free, 2):
        left = candidates | {name: candidates[name][:1] for name in cut}
        labels = Mixture(mixed).labels(left, free)
        assert all(len(part.groups) <= 2 for part in mixed_costs(mixed, left, labels, cost))
        mixed_memory_cost(mixed, left, labels, TARGET)


def test_each_value_that_is_stored_as_bytes_is_of_the_domain_that_reads_it(
    traced: tuple[ChannelGraph, MixedNetwork],
) -> None:
    _, mixed = traced
    network = mixed.network(())
    of_value = {value: domain.name for domain in mixed.domains.values() for value in domain.values}
    assert of_value.keys() == set(network.scaled.values())
    for kernel in network.kernels:
        if (layer := layer_of(kernel)) in mixed.read:
            assert of_value[network.scaled[kernel.inputs[0]]] == mixed.read[layer][0]


def test_the_input_is_read_in_a_precision_of_its_own(traced: tuple[ChannelGraph, MixedNetwork]) -> None:
    _, mixed = traced
    exact = mixed.precisions[-1]
    assert mixed.floats({"input of stem.0": exact}) == ("stem.0",)
    assert mixed.is_floating(mixed.floats(dict.fromkeys(mixed.domains, exact)))
    assert mixed.floats({}) == ()


def test_a_network_without_layers_for_int8_has_nothing_to_mix() -> None:
    graph = ChannelGraph.trace(nn.Sequential(nn.ReLU()), (torch.zeros(1, 3, 8, 8),))
    with pytest.raises(UserError, match="no layer that could be in int8"):
        mixed_network(graph)
