"""Hidden units of recurrent layers are cut with their gates, and what is left computes what it did without them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from aap_hw.graph import ChannelGraph
from aap_hw.graph.check.self_check import checked_cut
from tests.compile.running import assert_compiled_equals_pytorch
from tests.graph.ground_truth import assert_widths_follow, output

STEPS = (2, 5, 6)


class Net(nn.Module):
    """A layer before, a recurrent one, and one that reads all states, or the last ones."""

    def __init__(self, layer: nn.RNNBase, reads: str = "all") -> None:
        super().__init__()
        self.before, self.layer, self.reads = nn.Linear(6, 7), layer, reads
        made = (layer.proj_size or layer.hidden_size) * (2 if layer.bidirectional else 1)
        self.after, self.head = nn.Linear(made, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.before(x))
        states, last = self.layer(x if self.layer.batch_first else x.transpose(0, 1))
        if self.reads == "last":
            last = last[0] if isinstance(last, tuple) else last
            states = torch.cat([last[-2], last[-1]], -1) if self.layer.bidirectional else last[-1]
        elif self.reads == "cells":
            states = last[1][-1]
        elif not self.layer.batch_first:
            states = states.transpose(0, 1)
        return self.head(torch.relu(self.after(states)))


class Cells(nn.Module):
    """A loop that feeds the state back by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.lstm, self.gru = nn.Linear(6, 7), nn.LSTMCell(7, 9), nn.GRUCell(9, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.before(x))
        states, slow = None, None
        for step in range(3):
            states = self.lstm(x[:, step], states)
            slow = self.gru(states[0], slow)
        return self.head(slow)


LAYERS: dict[str, nn.Module] = {
    "lstm": Net(nn.LSTM(7, 9, batch_first=True)),
    "two directions, two layers": Net(nn.LSTM(7, 9, 2, batch_first=True, bidirectional=True)),
    "last states of two layers, steps first": Net(nn.GRU(7, 9, 2, bidirectional=True), "last"),
    "last cell": Net(nn.LSTM(7, 9, batch_first=True), "cells"),
    "without biases": Net(nn.RNN(7, 9, 2, bias=False, batch_first=True), "last"),
    "relu": Net(nn.RNN(7, 9, nonlinearity="relu")),
    "projections": Net(nn.LSTM(7, 9, 2, proj_size=4, batch_first=True, bidirectional=True)),
}

COMPILED = ("two directions, two layers", "last states of two layers, steps first", "last cell")


def masked(model: nn.Module, layer: nn.RNNBase, units: list[int], projected: list[int]) -> None:
    """Change a layer so that what is not kept is not read by its next step, the next layer, or a layer after it."""
    gone = [unit for unit in range(layer.hidden_size) if unit not in units]
    states = [unit for unit in range(layer.proj_size) if unit not in projected] if layer.proj_size else gone
    size = layer.proj_size or layer.hidden_size
    with torch.no_grad():
        for name, weight in layer.named_parameters():
            if "weight_hr" in name:
                weight[:, gone] = 0
            elif "weight_hh" in name:
                weight[:, states] = 0
            elif "weight_ih" in name and "_l0" not in name:
                for start in range(0, weight.shape[1], size):
                    weight[:, [start + unit for unit in states]] = 0
        for start in range(0, model.after.in_features, size):
            model.after.weight[:, [start + unit for unit in states]] = 0


# Of two layers, which take long to compile; one with projections is cut without that.
SLOW = ("last states of two layers, steps first", "two directions, two layers")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in LAYERS]
)
def test_cut_equals_masked(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = copy.deepcopy(LAYERS[name]).double().eval(), torch.randn(STEPS, dtype=torch.float64)
    graph = ChannelGraph.trace(model, (inputs,))
    layer = model.layer
    units = {"layer": 9} | ({"layer#2": 4} if layer.proj_size else {})
    assert {group.name: group.width for group in graph.groups if group.frozen is None} == {
        "before": 7, **units, "after": 8,
    }  # fmt: skip
    keep = {"before": [1, 2, 5, 6], "layer": [0, 3, 4, 7, 8], "after": [2, 3, 6]} | (
        {"layer#2": [1, 3]} if layer.proj_size else {}
    )
    smaller = checked_cut(graph, model, keep, inputs)
    whole = copy.deepcopy(model)
    masked(whole, whole.layer, keep["layer"], keep.get("layer#2", []))
    with torch.no_grad():
        whole.layer.weight_ih_l0[:, [0, 3, 4]] = 0
        if layer.bidirectional:
            whole.layer.weight_ih_l0_reverse[:, [0, 3, 4]] = 0
        whole.head.weight[:, [0, 1, 4, 5, 7]] = 0
    expected = output(whole, inputs)
    assert (expected - output(model, inputs)).abs().max() > 1e-4
    assert (output(smaller, inputs) - expected).abs().max() <= 1e-12
    assert (smaller.layer.input_size, smaller.layer.hidden_size) == (4, 5)
    assert "(4, 5" in repr(smaller.layer)
    smaller.layer.flatten_parameters()
    smaller.train()(inputs).sum().backward()
    assert_widths_follow(graph, smaller.eval(), keep, inputs)
    if name in COMPILED:
        assert_compiled_equals_pytorch(smaller.float(), inputs.float(), tmp_path)


def test_cells_that_feed_their_state_back_are_cut() -> None:
    torch.manual_seed(0)
    model, inputs = Cells().double().eval(), torch.randn(STEPS, dtype=torch.float64)
    graph = ChannelGraph.trace(model, (inputs,))
    assert {group.name: group.width for group in graph.groups if group.frozen is None} == {
        "before": 7, "lstm": 9, "gru": 5,
    }  # fmt: skip
    keep = {"before": [1, 2], "lstm": [0, 3, 4, 7], "gru": [1, 2, 4]}
    smaller = checked_cut(graph, model, keep, inputs)
    whole = copy.deepcopy(model)
    with torch.no_grad():
        whole.lstm.weight_ih[:, [0, 3, 4, 5, 6]] = 0
        whole.lstm.weight_hh[:, [1, 2, 5, 6, 8]] = 0
        whole.gru.weight_ih[:, [1, 2, 5, 6, 8]] = 0
        whole.gru.weight_hh[:, [0, 3]] = 0
        whole.head.weight[:, [0, 3]] = 0
    assert (output(smaller, inputs) - output(whole, inputs)).abs().max() <= 1e-12
    assert (smaller.lstm.hidden_size, smaller.gru.input_size, smaller.gru.hidden_size) == (4, 4, 3)
