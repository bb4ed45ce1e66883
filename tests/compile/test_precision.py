"""Proves which kernels are in int8, that types agree from kernel to kernel, and that float32 is as it was."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aap_hw.compile.front.byte_inputs import with_bytes_taken
from aap_hw.compile.front.network import Network
from aap_hw.compile.front.partition import partition
from aap_hw.compile.front.quantisation import Quantisation
from aap_hw.compile.keys.precision import INT8, PRECISIONS, Scale
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph

SCALE = Scale(0.1, 3)


class Bottleneck(nn.Module):
    """Kernels with weights alone, but for a softmax in front of the last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 1)
        self.depthwise, self.narrow = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(512, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.narrow(F.relu6(self.depthwise(F.hardswish(self.wide(x))))) + x)
        return self.head(F.softmax(x.flatten(1), 1))


class Mixed(nn.Module):
    """Light kernels, moved values and a value with readers of both types."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(16, 8, 1)
        self.squeeze, self.norm = nn.Conv2d(8, 8, 1), nn.GroupNorm(2, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.relu(self.first(x))
        pooled = F.max_pool2d(y, 2)
        z = self.second(torch.cat([pooled, F.avg_pool2d(y, 2)], 1))
        z = z * torch.sigmoid(self.squeeze(F.adaptive_avg_pool2d(z, 1)))
        z = self.norm(z + pooled[:, :, ::1].flip(1))
        return self.head(z.mean((2, 3))), z


IMAGE = torch.zeros(2, 3, 8, 8)


def in_both(model: nn.Module) -> tuple[Network, Network]:
    graph = ChannelGraph.trace(model.eval(), (IMAGE,))
    return partition(graph), partition(graph, INT8)


def test_kernels_with_weights_are_in_int8_and_the_others_read_float32() -> None:
    _, network = in_both(Bottleneck())
    made = {kernel.name: (kernel.key.op, kernel.key.precision, kernel.inputs) for kernel in network.kernels}
    image, softmax = network.inputs[0].name, next(name for name in made if made[name][0] == "softmax")
    assert made == {
        "x_quantised": ("quantize", "float32_int8", (image,)),
        "relu": ("conv2d", "int8", ("x_quantised",)),
        "hardswish": ("conv2d", "int8", ("relu",)),
        "relu6": ("depthwise_conv2d", "int8", ("hardswish",)),
        # Nothing reads its result as bytes.
        "relu_1": ("conv2d", "int8_float32", ("relu6", "relu")),
        "flatten": ("flatten", "float32", ("relu_1",)),
        softmax: ("softmax", "float32", ("flatten",)),
        f"{softmax}_quantised": ("quantize", "float32_int8", (softmax,)),
        "linear": ("linear", "int8_float32", (f"{softmax}_quantised",)),
    }
    assert [kernel.key.attribute("layout") for kernel in network.kernels[:2]] == ["nchw", ""]
    assert {held: name for held, name in network.scaled.items() if held != name} == {
        "x_quantised": image,
        f"{softmax}_quantised": softmax,
    }
    assert not any(kernel.key.pitched for kernel in network.kernels)


@pytest.mark.parametrize("model", [Bottleneck(), Mixed()], ids=lambda model: type(model).__name__)
def test_types_agree_and_only_changes_of_type_are_new(model: nn.Module) -> None:
    floating, network = in_both(model)
    types = {port.name: "float32" for port in network.inputs}
    for kernel in network.kernels:
        assert {types[name] for name in kernel.inputs} == {PRECISIONS[kernel.key.precision].read}, kernel.key
        assert kernel.name not in types
        types[kernel.name] = PRECISIONS[kernel.key.precision].made
    assert {types[port.name] for port in network.outputs} == {"float32"}
    assert set(network.scaled) == {name for name, type_ in types.items() if type_ == "uint8"}
    kept = [k for k in network.kernels if k.key.op not in ("quantize", "dequantize", "to_nhwc")]
    before = [k for k in floating.kernels if k.key.op != "to_nhwc"]
    assert [(k.name, k.widths, k.weight) for k in kept] == [(k.name, k.widths, k.weight) for k in before]
    same = ("layout", "pitched")
    assert [k.key.at_precision("float32").having(**dict.fromkeys(same, "")) for k in kept] == [
        k.key.having(**dict.fromkeys(same, "")) for k in before
    ]


def test_a_value_is_quantised_once_for_all_its_readers() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return F.softmax(self.left(x), 1) + F.softmax(self.right(x), 1)

    _, network = in_both(Twice())
    assert [k.key.op for k in network.kernels].count("quantize") == 1


def test_a_kernel_ends_where_a_value_is_stored() -> None:
    graph = ChannelGraph.trace(Bottleneck().eval(), (IMAGE,))
    weights = {"stem.weight": torch.ones(8).numpy()}
    for stored, expected in (("relu", ["conv2d"]), ("conv2d", ["conv2d", "relu"])):
        found = partition(graph, INT8, Quantisation({"x": SCALE, stored: SCALE}, weights))
        kernels = itertools.takewhile(lambda k: k.name != "hardswish", found.kernels)
        assert [k.key.op for k in kernels if "quant" not in k.key.op] == expected
        precisions = {k.weight: k.key.precision for k in found.kernels if k.weight}
        assert precisions.pop("stem.weight") == "int8"
        assert set(precisions.values()) == {"float32"}  # as no scales are known of the others


def test_what_no_kernel_makes_cannot_be_stored() -> None:
    graph = ChannelGraph.trace(Bottleneck().eval(), (IMAGE,))
    with pytest.raises(UserError, match="the value nothing is quantised, but no kernel of the network makes it"):
        partition(graph, INT8, Quantisation({"nothing": SCALE}, {}))


def test_a_value_under_two_names_cannot_be_stored_in_two_ways() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Dropout(), nn.Conv2d(4, 5, 1)).eval()
    graph = ChannelGraph.trace(model, (IMAGE,))
    with pytest.raises(UserError, match="the value dropout is quantised in two ways, and a kernel makes only one"):
        partition(graph, INT8, Quantisation({"relu": SCALE, "dropout": Scale(0.2, 3)}, {}))


def test_an_input_that_is_not_quantised_first_cannot_be_taken_as_bytes() -> None:
    _, network = in_both(nn.Sequential(nn.Softmax(1), nn.Conv2d(3, 4, 1)))
    with pytest.raises(UserError, match="cannot take input as bytes, as it does not begin by quantising all of it"):
        with_bytes_taken(network)
