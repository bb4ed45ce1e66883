"""Widths that code reads of a configuration follow in the module whose code it is, and nowhere else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from aap_hw.graph.trial.configs import enclosed, value_of
from tests.graph.ground_truth import (
    assert_cut_equals_silenced,
    assert_widths_follow,
    cut_graph,
    output,
    traced,
)

SHAPE = (2, 3)


@dataclass(frozen=True)
class Configuration:
    width: int = 6
    widths: tuple[int, ...] = (3, 6)


class Maps(nn.Module):
    """Features become the channels of a small image, as many as a configuration says."""

    def __init__(self, config: object) -> None:
        super().__init__()
        self.config = config
        self.linear, self.last = nn.Linear(3, 6 * 4), nn.Conv2d(6, 5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.linear(x).view(-1, self.config.width, 2, 2).relu())


class MapsByPlace(Maps):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.linear(x).view(-1, self.config.widths[-1], 2, 2).relu())


class Gate(Maps):
    """Computes with the configuration, too, and with no channels that can be cut."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1).sigmoid()[:, None, None, None] * self.config.width


class Several(nn.Module):
    def __init__(self, config: object) -> None:
        super().__init__()
        self.a, self.b, self.c, self.gate = Maps(config), Maps(config), MapsByPlace(config), Gate(config)

    def forward(self, x: Tensor) -> Tensor:
        return (self.a(x) + self.b(x) + self.c(x)) * self.gate(x)


def test_a_shared_configuration_changes_only_for_the_module_that_reads_what_is_cut() -> None:
    torch.manual_seed(0)
    config = Configuration()
    model, graph, inputs = traced(Several(config), SHAPE)
    assert [group.name for group in graph.groups if group.frozen is None] == ["a.linear", "b.linear", "c.linear"]
    keep = {"a.linear": [0, 2, 5], "b.linear": [0, 1, 3, 4], "c.linear": [1, 4]}
    smaller = assert_cut_equals_silenced(model, graph, inputs, keep)
    found = [smaller.get_submodule(name).config for name in ("a", "b", "c", "gate")]
    assert [each.width for each in found] == [3, 4, 6, 6]
    assert [each.widths for each in found] == [(3, 6), (3, 6), (3, 2), (3, 6)]
    assert (config, model.a.config) == (Configuration(), config)
    again = cut_graph(graph, smaller, keep, inputs)
    smallest = again.cut(copy.deepcopy(smaller), {"a.linear": [1]})
    assert (smallest.a.config.width, smaller.a.config.width) == (1, 3)


class AttrDict(dict[str, object]):
    """As people write it: ``config.width`` is ``config["width"]``."""

    def __getattr__(self, name: str) -> object:
        if name not in self:
            raise AttributeError(name)
        return self[name]


class BothWays(AttrDict):
    """As written in older code: its attributes are its items."""

    def __init__(self, **items: object) -> None:
        super().__init__(items)
        self.__dict__ = self


class Wrapped:
    """As omegaconf has it: attributes are looked up in what it wraps."""

    def __init__(self, **items: object) -> None:
        self._items = items

    def __getattr__(self, name: str) -> object:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._items[name]


class MapsByKey(Maps):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.linear(x).view(-1, self.config["width"], 2, 2).relu())


class MapsByInner(Maps):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.linear(x).view(-1, self.config.model.widths[-1], 2, 2).relu())


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (Maps, AttrDict(width=6)),
        (Maps, Wrapped(width=6)),
        (MapsByKey, {"width": 6, "heads": 2}),
        (MapsByKey, AttrDict(width=6)),
        (MapsByKey, BothWays(width=6)),
        (MapsByInner, SimpleNamespace(model=AttrDict(widths=[3, 6]))),
    ],
)
def test_numbers_of_dictionaries_and_of_configurations_in_others_follow(kind: type[Maps], config: object) -> None:
    torch.manual_seed(0)
    model, graph, inputs = traced(kind(config), SHAPE)
    assert [group.name for group in graph.groups if group.frozen is None] == ["linear"]
    keep = {"linear": [0, 2, 5]}
    smaller = assert_cut_equals_silenced(model, graph, inputs, keep)
    assert_widths_follow(graph, smaller, keep, inputs)
    if isinstance(config, AttrDict):
        assert (smaller.config.width, smaller.config["width"]) == (3, 3)
    assert model.config is config
    assert output(model, inputs).shape == (2, 5, 1, 1)  # which it is with the configuration as it was alone


class OfAClass:
    width = 6


class Computed:
    @property
    def width(self) -> int:
        return 6


class Size(Enum):
    SMALL = 6

    def __init__(self, width: int) -> None:
        self.width = width


@pytest.mark.parametrize("config", [OfAClass, Computed(), Size.SMALL, SimpleNamespace(width=torch.tensor(6))])
def test_a_configuration_that_no_copy_can_change_freezes_what_it_counts(config: object) -> None:
    torch.manual_seed(0)
    _, graph, _ = traced(Maps(config), SHAPE)
    assert "is reshaped to lengths that do not follow" in str(graph.group("linear").frozen)


def test_a_variable_that_a_function_knows_and_nobody_has_set_is_no_number() -> None:
    def made() -> Callable[[Tensor], Tensor]:
        if SHAPE == ():
            unset = 1
        width = 6
        return lambda x: x.view(-1, width, 2, 2) if x.ndim else x.view(unset)

    module = nn.Module()
    module.function = made()
    assert enclosed(module) == ["function.unset", "function.width"]
    assert [value_of(module, name) for name in enclosed(module)] == [None, 6]
