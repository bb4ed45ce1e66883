"""Recurrent layers compile to what PyTorch computes, in code that does not grow with the number of steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import tvm
from torch import Tensor, nn

from aap_hw.compile.families import multiply_accumulates
from aap_hw.compile.front.partition import partition
from aap_hw.compile.gpu.cubin import compile_cubin, cuda_source
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.target import GpuTarget, device_target
from aap_hw.compile.library.build import build_kernel
from aap_hw.graph import ChannelGraph
from tests.compile.running import assert_compiled_equals_pytorch, called, target
from tests.compile.threads import in_series

GPU = device_target({"kind": "cuda", "arch": "sm_80"}, 1)
STEPS, SAMPLES = 7, 3
LAYERS = {
    "lstm": nn.LSTM(1, 13),
    "gru": nn.GRU(1, 40),
    "rnn_tanh": nn.RNN(1, 5),
    "rnn_relu": nn.RNN(1, 21, nonlinearity="relu"),
}


def states(layer: nn.RNNBase, products: Tensor, *, backwards: bool) -> Tensor:
    """(N, steps, hidden) in float64, where the products of the input are given instead of being computed."""
    wide = type(layer)(products.shape[-1], layer.hidden_size, batch_first=True, **relu_of(layer)).double()
    wide.load_state_dict({**layer.state_dict(), "weight_ih_l0": torch.eye(products.shape[-1])})
    nn.init.zeros_(wide.bias_ih_l0)  # type: ignore[arg-type]
    turned = products.double().flip(1) if backwards else products.double()
    made: Tensor = wide(turned)[0].detach()
    return made.flip(1) if backwards else made


def relu_of(layer: nn.RNNBase) -> dict[str, str]:
    return {"nonlinearity": layer.nonlinearity} if isinstance(layer, nn.RNN) else {}


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_layers_equal_pytorch_in_both_directions_and_orders(device: str) -> None:
    cases = [(op, layer, way, order) for op, layer in LAYERS.items() for way, order in ((0, 1), (1, 0))]
    addresses = []
    for op, layer, way, order in cases:
        attributes = {"direction": "backwards" if way else "", "order": "steps_first" if order else ""}
        key = KernelKey.make(op, (STEPS, 1), SAMPLES, **attributes)
        addresses.append(Address(key, (layer.weight_hh_l0.shape[0], layer.hidden_size)))
    functions = [build_kernel(address, target() if device == "cpu" else GPU) for address in addresses]
    module = {f"k{i}": in_series(f.code).with_attr("global_symbol", f"k{i}") for i, f in enumerate(functions)}
    library = tvm.compile(tvm.IRModule(module), target=target().tvm).jit()
    random = torch.Generator().manual_seed(0)
    for i, ((op, layer, way, order), function) in enumerate(zip(cases, functions, strict=True)):
        products = 2 * torch.randn(SAMPLES, STEPS, addresses[i].width_in, generator=random)
        given = products.transpose(0, 1) if order else products
        assert function.pack is not None
        weight = torch.from_numpy(function.pack(layer.weight_hh_l0.detach().numpy()))
        read = given.reshape(function.arguments[0].shape)
        made = torch.from_numpy(called(library[f"k{i}"], function, [read, weight, layer.bias_hh_l0.detach()]))
        actual = made.reshape(*given.shape[:2], -1)
        expected = states(layer, products, backwards=bool(way))
        assert (actual - (expected.transpose(0, 1) if order else expected)).abs().max() < 3e-6, (op, way, order)
        assert multiply_accumulates(addresses[i]) == SAMPLES * STEPS * layer.weight_hh_l0.numel()


class Sequences(nn.Module):
    """Layers in both directions, of which all states are read, and one of which only the last state is."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 9, num_layers=2, bidirectional=True, batch_first=True)
        self.gru, self.rnn = nn.GRU(18, 11, num_layers=2), nn.RNN(11, 8, bias=False, batch_first=True)
        self.head = nn.Linear(8 + 11, 5)

    def forward(self, x: Tensor) -> Tensor:
        steps, last = self.gru(self.lstm(x)[0].transpose(0, 1))
        _, only = self.rnn(steps.transpose(0, 1))
        return self.head(torch.cat([only.squeeze(0), last[-1]], 1))  # type: ignore[no-any-return]


def test_networks_of_recurrent_layers_have_no_slow_kernel(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model, sound = Sequences().eval(), torch.randn(2, 30, 6)
    network = partition(ChannelGraph.trace(model, (sound,)))
    assert network.slow_path == ""
    assert sum(kernel.parameters(network.dense) for kernel in network.kernels) == sum(
        parameter.numel() for parameter in model.parameters()
    )
    assert_compiled_equals_pytorch(model, sound, tmp_path)


def test_a_gpu_has_code_for_them_and_no_code_grows_with_the_steps() -> None:
    sizes = []
    for steps in (5, 500):
        address = Address(KernelKey.make("lstm", (steps, 1), 1), (4 * 33, 33))
        assert isinstance(GPU, GpuTarget)
        for device in (target(), GPU):
            sizes.append(len(build_kernel(address, device).code.script()))
    assert max(sizes[2:]) < max(sizes[:2]) + 50
    module = tvm.IRModule({"main": build_kernel(address, GPU).code.with_attr("global_symbol", "main")})
    with GPU.tvm:
        executable = tvm.compile(module.with_attr("target", GPU.tvm), target=GPU.tvm)
    assert compile_cubin(cuda_source(executable), GPU.arch)
