"""Recurrent layers compile to what PyTorch computes, in code that does not grow with the number of steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import tvm
from torch import Tensor, nn

from aap_hw.compile.families import multiply_accumulates
from aap_hw.compile.front.partition import partition
from aap_hw.compile.gpu.cubin import compile_cubin, cuda_source
from aap_hw.compile.gpu.series import in_series
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.target import GpuTarget, device_target
from aap_hw.compile.library.build import build_kernel
from aap_hw.compile.library.lowering import compile_network
from aap_hw.graph import ChannelGraph
from tests.compile.recurrent import states
from tests.compile.running import called, target
from tests.compile.running import device as this_machine

GPU = device_target({"kind": "cuda", "arch": "sm_80"}, 1)
STEPS, SAMPLES = 7, 3
LAYERS = [
    ("lstm", nn.LSTM(1, 13)),
    ("lstm", nn.LSTM(1, 40, proj_size=11)),
    ("gru", nn.GRU(1, 40)),
    ("rnn_tanh", nn.RNN(1, 5)),
    ("rnn_relu", nn.RNN(1, 21, nonlinearity="relu")),
]


@pytest.mark.parametrize("device", ["cpu", pytest.param("gpu", marks=pytest.mark.slow)])
def test_layers_equal_pytorch_in_both_directions_and_orders(device: str) -> None:
    ways = ((0, 1, ""), (1, 0, ""), (1, 1, "given"), (0, 0, "given"))
    cases = [(op, layer, *way) for op, layer in LAYERS for way in ways]
    addresses = []
    for op, layer, way, order, first in cases:
        attributes = {"direction": "backwards" if way else "", "order": "steps_first" if order else "", "first": first}
        if layer.proj_size:
            attributes["states"] = "projected"
        elif first and op == "lstm":
            attributes["cells"] = "last"
        key = KernelKey.make(op, (STEPS, 1), SAMPLES, **attributes)
        addresses.append(Address(key, tuple(layer.weight_hh_l0.shape)))
    functions = [build_kernel(address, target() if device == "cpu" else GPU) for address in addresses]
    module = {f"k{i}": in_series(f.code).with_attr("global_symbol", f"k{i}") for i, f in enumerate(functions)}
    library = tvm.compile(tvm.IRModule(module), target=target().tvm).jit()
    random = torch.Generator().manual_seed(0)
    for i, ((op, layer, way, order, first), function) in enumerate(zip(cases, functions, strict=True)):
        products = 2 * torch.randn(SAMPLES, STEPS, addresses[i].width_in, generator=random)
        given = products.transpose(0, 1) if order else products
        count = (2 if op == "lstm" else 1) if first else 0
        sizes = (layer.proj_size or layer.hidden_size, layer.hidden_size)[:count]
        first_ones = [torch.randn(SAMPLES, channels, generator=random) for channels in sizes]
        assert function.pack is not None
        weight = torch.from_numpy(function.pack(layer.weight_hh_l0.detach().numpy()))
        read = given.reshape(function.arguments[0].shape)
        projection = [layer.weight_hr_l0] if layer.proj_size else []
        taken = [read, *first_ones, weight, *(each.detach() for each in (layer.bias_hh_l0, *projection))]
        made = torch.from_numpy(called(library[f"k{i}"], function, taken)).flatten(0, -2)
        actual = made[: STEPS * SAMPLES].reshape(*given.shape[:2], -1)
        expected, cells = states(layer, products, first_ones, backwards=bool(way))
        assert (actual - (expected.transpose(0, 1) if order else expected)).abs().max() < 3e-6, (op, way, order)
        if addresses[i].key.attribute("cells"):
            assert cells is not None
            assert (made[STEPS * SAMPLES :] - cells).abs().max() < 3e-6
        weights = sum(each.numel() for each in (layer.weight_hh_l0, *projection))
        assert multiply_accumulates(addresses[i]) == SAMPLES * STEPS * weights


class Sequences(nn.Module):
    """Layers in both directions, of which all states are read, and one of which only the last state is.

    One begins with a learned state, and a cell with a constant vector, as decoders do with their first word.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 9, num_layers=2, bidirectional=True, batch_first=True)
        self.gru, self.rnn = nn.GRU(18, 11, num_layers=2), nn.RNN(11, 8, bias=False, batch_first=True)
        self.head = nn.Linear(8 + 11, 5)
        self.first, self.states = nn.Linear(6, 52), nn.LSTM(6, 13, num_layers=2, batch_first=True)
        self.step, self.unit = nn.LSTMCell(6, 9), nn.GRUCell(6, 9)
        self.one, self.both = nn.LSTM(13, 4), nn.GRU(4, 4, bidirectional=True)
        self.short = nn.LSTM(6, 9, 2, batch_first=True, bidirectional=True, proj_size=4)
        self.begin, self.learned = nn.RNNCell(6, 9), nn.Parameter(torch.randn(1, 2, 8))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        steps, last = self.gru(self.lstm(x)[0].transpose(0, 1))
        _, only = self.rnn(steps.transpose(0, 1), self.learned)
        made = self.head(torch.cat([only.squeeze(0), last[-1]], 1))
        states, cells = self.first(x[:, 0]).view(2, 2, 2, 13).transpose(1, 2).unbind(0)
        steps, (states, cells) = self.states(x, (states.contiguous(), cells.contiguous()))
        ends, (state, cell) = self.one(steps.transpose(0, 1))
        both, joined = self.both(ends, ends[:2] * 0.5)
        unit = self.unit(x[:, 1])
        next_state, next_cell = self.step(x[:, 2], (unit, unit * 0.5))
        of_start = self.begin(torch.ones(2, 6), next_state)
        short, (projected, _) = self.short(x, (self.learned[:, :, :4].expand(4, 2, 4), unit.expand(4, 2, 9)))
        return made, states, cells, ends, state + cell, both, joined, next_state, next_cell, of_start, short, projected


@pytest.mark.slow
def test_networks_of_recurrent_layers_have_no_slow_kernel(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model, sound = Sequences().eval(), torch.randn(2, 20, 6)
    network = partition(ChannelGraph.trace(model, (sound,)))
    assert network.slow_path == ""
    assert sum(kernel.parameters(network.dense) for kernel in network.kernels) == sum(
        parameter.numel() for parameter in model.parameters()
    )
    compile_network(model, sound, target(), tmp_path / "net.so")
    loaded = this_machine().load(tmp_path / "net.so")
    loaded.set_inputs("main", [sound.numpy()])
    with torch.no_grad():
        for i, (actual, expected) in enumerate(zip(loaded.run("main"), model(sound), strict=True)):
            np.testing.assert_allclose(actual, expected.numpy(), atol=3e-6, err_msg=str(i))


class FromZeros(nn.Module):
    """A layer and cells whose first states are zeros, or zeros of which one number is written anew."""

    def __init__(self, make: Callable[[Tensor], Tensor], *, writes: bool) -> None:
        super().__init__()
        self.gru, self.unit, self.make, self.writes = nn.GRU(8, 8), nn.GRUCell(8, 8), make, writes
        self.cell = nn.LSTMCell(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        first, state = self.make(x[:1]), self.make(x[0])
        if self.writes:
            first[:, :, 0] = 1
            state[:, 0] = 1
        return self.gru(x, first)[0], self.unit(x[0], state), *self.cell(x[0], (state, state))


@pytest.mark.parametrize("make", [torch.zeros_like, lambda x: x.new_zeros(x.shape), lambda x: torch.zeros(x.shape)])
def test_first_states_that_are_written_into_zeros_are_not_taken_for_zeros(make: Callable[[Tensor], Tensor]) -> None:
    for writes, first in ((False, ""), (True, "given")):
        graph = ChannelGraph.trace(FromZeros(make, writes=writes).eval(), (torch.zeros(4, 1, 8),))
        kernels = {kernel.name: kernel.key for kernel in partition(graph).kernels}
        assert len(kernels) == len(partition(graph).kernels)
        layers = [key for key in kernels.values() if key.op in ("gru", "lstm")]
        assert [key.attribute("first") for key in layers] == [first] * 3


def test_a_gpu_has_code_for_them_and_no_code_grows_with_the_steps() -> None:
    sizes = []
    for steps in (5, 500):
        address = Address(KernelKey.make("lstm", (steps, 1), 1, first="given", cells="last"), (4 * 33, 33))
        assert isinstance(GPU, GpuTarget)
        for device in (target(), GPU):
            sizes.append(len(build_kernel(address, device).code.script()))
    assert all(long < short + 50 for short, long in zip(sizes[:2], sizes[2:], strict=True)), sizes
    module = tvm.IRModule({"main": build_kernel(address, GPU).code.with_attr("global_symbol", "main")})
    with GPU.tvm:
        executable = tvm.compile(module.with_attr("target", GPU.tvm), target=GPU.tvm)
    assert compile_cubin(cuda_source(executable), GPU.arch)
