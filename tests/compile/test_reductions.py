"""Proves that reductions and softmax along any axis equal PyTorch's, however many values there are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from torch import Tensor, nn

from aap_hw.compile.families.reductions import KINDS
from aap_hw.compile.front.partition import partition
from aap_hw.compile.gpu.series import in_series
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.target import DeviceTarget, device_target
from aap_hw.compile.library.build import build_kernel
from aap_hw.compile.library.lowering import compile_network
from aap_hw.graph import ChannelGraph
from tests.compile.running import called, compiled, device, target

GPU = device_target({"kind": "cuda", "arch": "sm_80"}, 1)
# (outer, reduced, inner): along the last axis, and behind one.
SHAPES = [(3, 1, 1), (2, 7, 1), (3, 100, 1), (2, 33, 5), (1, 20, 64), (2, 3, 130)]
LONG = [(1, 40000, 1), (1, 20000, 3)]


def reduced(kind: str, x: Tensor) -> Tensor:
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "sum": lambda x: x.sum(1),
        "mean": lambda x: x.mean(1).relu(),
        "amax": lambda x: x.amax(1),
        "amin": lambda x: x.amin(1),
        "norm": lambda x: x.norm(dim=1),
        "var": lambda x: x.var(1, correction=0),
        "std": lambda x: x.std(1),
        "argmax": lambda x: x.argmax(1),
        "argmin": lambda x: x.argmin(1),
        "softmax": lambda x: x.softmax(1),
        "log_softmax": lambda x: x.log_softmax(1),
    }
    return functions[kind](x)


ATTRIBUTES: dict[str, dict[str, Any]] = {
    **{kind: {"of": kind} for kind in KINDS},
    "mean": {"of": "mean", "epilogue": ("relu",)},
    "std": {"of": "std", "correction": 1},
    "softmax": {},
    "log_softmax": {"log": "1"},
}
CASES = [(kind, shape) for kind in ATTRIBUTES for shape in [*SHAPES, *(LONG if kind in ("mean", "var") else [])]]


@pytest.mark.filterwarnings("ignore:std")
@pytest.mark.parametrize("kind_of_device", ["cpu", pytest.param("gpu", marks=pytest.mark.slow)])
def test_reductions_equal_pytorch(kind_of_device: str) -> None:
    cases = CASES if kind_of_device == "cpu" else [case for case in CASES if case[1] in (SHAPES[1], SHAPES[3])]
    functions = []
    for kind, shape in cases:
        op = "axis_softmax" if "softmax" in kind else "reduce"
        key = KernelKey.make(op, (), 1, shape=",".join(map(str, shape)), **ATTRIBUTES[kind])
        functions.append(build_kernel(Address(key, (1, 1)), target() if kind_of_device == "cpu" else GPU))
    module = {f"k{i}": in_series(f.code).with_attr("global_symbol", f"k{i}") for i, f in enumerate(functions)}
    library = tvm.compile(tvm.IRModule(module), target=target().tvm).jit()
    random = torch.Generator().manual_seed(4)
    for i, ((kind, shape), function) in enumerate(zip(cases, functions, strict=True)):
        x = 3 * torch.randn(shape, generator=random) + 100 * (kind != "norm")
        x = x.round() if kind[:3] == "arg" else x  # of equal values the first is meant
        actual = torch.from_numpy(called(library[f"k{i}"], function, [x]))
        expected = reduced(kind, x.double())
        assert actual.shape == expected.shape
        limit = 1e-5 * (1 + float(expected.nan_to_num().abs().max()))
        # The deviation of a single value is NaN.
        assert torch.allclose(actual.double(), expected.double(), 0, limit, equal_nan=True), (kind, shape)


@pytest.mark.parametrize("on", [target(), GPU], ids=["cpu", "gpu"])
def test_extremes_of_infinite_rows_equal_pytorch(on: DeviceTarget) -> None:
    inf, nan = float("inf"), float("nan")
    rows = torch.tensor([[-inf] * 8, [inf] * 8, [-inf, 1.0, inf, 0, inf, 2.0, -inf, 3.0], [nan] * 8])[:, :, None]
    kinds = ("amax", "amin", "argmax", "argmin")
    keys = [KernelKey.make("reduce", (), 1, shape="4,8,1", of=kind) for kind in kinds]
    functions = [build_kernel(Address(key, (1, 1)), on) for key in keys]
    for kind, function, kernel in zip(kinds, functions, compiled(functions), strict=True):
        made = torch.from_numpy(called(kernel, function, [rows]))
        assert torch.equal(made[:3], reduced(kind, rows[:3]).float()), kind
        if kind in ("argmax", "argmin"):
            assert 0 <= made[3] < 8  # a place of the row, whichever


class Reduced(nn.Module):
    """Reductions of images, of rows and of what is only moved, with and without the axes that they leave empty."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last, self.one = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x)
        rows = x.flatten(2).transpose(1, 2)
        gate = torch.sigmoid(self.last(x.amax((2, 3), keepdim=True)))
        context = x.flatten(2) @ self.one(x).flatten(2).softmax(2).mT
        bins = x.view(2, 2, 4, 30).transpose(2, 1).softmax(1)
        moments = x.mean((1, 2, 3), keepdim=True), x.var((2, 3)), x.std(1, unbiased=False), rows.norm(dim=-1)
        largest, place = x.max(2)
        moments = *moments, *torch.aminmax(x, dim=1), *torch.var_mean(x, (2, 3)), *torch.std_mean(rows, 1, correction=0)
        places = x.argmax(1), rows.argmin(), place, x.min(3, keepdim=True)[1], (x > 0).any(1), (x > 0).sum((2, 3))
        moments = (
            *moments,
            *(each.float() for each in places),
            largest,
            x.max(),
            (rows > -3).all().float(),
            torch.max(x, -x),
        )
        others = x.sum(3), rows.amin(1), x.mean(1, keepdim=True), rows.log_softmax(1), F.softmax(x, 1), x.sum((1, 2))
        return gate, context, bins, *moments, *others


def test_a_network_of_reductions_has_no_slow_kernel(tmp_path: Path) -> None:
    torch.manual_seed(2)
    model, image = Reduced().eval(), torch.randn(2, 3, 6, 5)
    network = partition(ChannelGraph.trace(model, (image,)))
    assert network.slow_path == ""
    compile_network(model, image, target(), tmp_path / "net.so")
    loaded = device().load(tmp_path / "net.so")
    loaded.set_inputs("main", [image.numpy()])
    with torch.no_grad():
        for i, (actual, expected) in enumerate(zip(loaded.run("main"), model(image), strict=True)):
            assert actual.shape == expected.shape, i
            assert np.abs(actual - expected.numpy()).max() <= 1e-5 * (1 + expected.abs().max()), i
