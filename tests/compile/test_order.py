"""Proves that values are sorted, picked by number and added up as in PyTorch, and whole numbers reckoned with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from torch import Tensor, nn
from torch.nn import functional as F

from aap_hw.compile.front.partition import partition
from aap_hw.compile.gpu.series import in_series
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.target import device_target
from aap_hw.compile.library.build import build_kernel
from aap_hw.compile.library.lowering import compile_network
from aap_hw.graph import ChannelGraph
from tests.compile.running import called, device, target

GPU = device_target({"kind": "cuda", "arch": "sm_80"}, 1)
# (outer, reduced, inner), and how many are asked for.
SORTED = [((2, 1, 1), 1), ((3, 37, 1), 37), ((2, 33, 5), 7), ((1, 300, 2), 1), ((1, 129, 1), 100)]
SUMMED = [(3, 1, 1), (2, 129, 1), (2, 300, 5), (1, 20, 37), (1, 60000, 1)]


def compiled(keys: list[KernelKey], on: Any) -> list[Any]:
    functions = [build_kernel(Address(key, (1, 1)), on) for key in keys]
    codes = {f"k{i}": in_series(f.code).with_attr("global_symbol", f"k{i}") for i, f in enumerate(functions)}
    library = tvm.compile(tvm.IRModule(codes), target=target().tvm).jit()
    return [(library[f"k{i}"], function) for i, function in enumerate(functions)]


@pytest.mark.parametrize("on", [target(), GPU], ids=["cpu", "gpu"])
def test_values_are_sorted_in_pytorchs_order_equal_ones_and_those_that_are_no_numbers_too(on: Any) -> None:
    cases = [(*case, order) for case in SORTED for order in ("", "descending")]
    keys = [
        KernelKey.make("argsort", (), 1, shape=",".join(map(str, shape)), count=count, order=order)
        for shape, count, order in cases
    ]
    random = torch.Generator().manual_seed(3)
    for (shape, count, order), (kernel, function) in zip(cases, compiled(keys, on), strict=True):
        x = (3 * torch.randn(shape, generator=random)).round()
        x[torch.rand(shape, generator=random) < 0.1] = torch.nan
        expected = torch.sort(x, dim=1, descending=bool(order), stable=True)[1][:, :count]
        np.testing.assert_array_equal(called(kernel, function, [x]), expected.numpy(), err_msg=f"{shape} {order}")


@pytest.mark.parametrize("on", [target(), GPU], ids=["cpu", "gpu"])
def test_running_sums_stay_right_however_long(on: Any) -> None:
    shapes = SUMMED if on != GPU else SUMMED[:-1]
    keys = [KernelKey.make("cumsum", (), 1, shape=",".join(map(str, shape))) for shape in shapes]
    random = torch.Generator().manual_seed(4)
    for shape, (kernel, function) in zip(shapes, compiled(keys, on), strict=True):
        x = torch.randn(shape, generator=random) + 1
        exact = x.double().cumsum(1).numpy()
        np.testing.assert_allclose(called(kernel, function, [x]), exact, rtol=1e-6, atol=1e-5, err_msg=str(shape))


class Tail(nn.Module):
    """What comes behind a detector's heads: the best boxes and their classes, by score."""

    def __init__(self) -> None:
        super().__init__()
        self.boxes, self.scores = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 3, padding=1)
        self.register_buffer("images", torch.arange(2)[:, None])
        self.register_buffer("anchors", torch.rand(2, 42, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        boxes, scores = (layer(x).flatten(2).transpose(1, 2) for layer in (self.boxes, self.scores))
        best, kinds = scores.max(-1)
        found, places = best.topk(9, 1)
        taken = (
            boxes.gather(1, places.unsqueeze(-1).expand(-1, -1, 4)),
            kinds.gather(1, places),
            self.anchors.gather(1, places[:, :, None].expand(-1, -1, 4)),
        )
        ordered, order = scores.sort(dim=2, descending=True, stable=True)
        _, flat = scores.flatten(1).topk(7)
        rows, classes = flat // 5, flat % 5
        several = scores[self.images, rows, classes], boxes[self.images, rows], boxes[:, :, 1][self.images, rows - 42]
        whole = rows * 2 - classes, (rows == 3) | (classes < 2), (rows.float() / 7).floor().long(), kinds.to(torch.bool)
        floors = torch.div(rows, 3, rounding_mode="floor"), torch.remainder(boxes, 0.3), rows / 3, -rows // 4, rows % -4
        powers = boxes ** scores[:, :, :4].round(), torch.pow(boxes, kinds.unsqueeze(2)), torch.fmod(boxes, -0.7)
        sums = scores.cumsum(1), x.cumsum(-1), (scores > 0).cumsum(1), torch.argsort(boxes, 1)
        more = torch.tan(boxes), torch.sinh(boxes), torch.cosh(boxes), torch.frac(boxes), torch.exp2(boxes), x.rad2deg()
        logarithms = torch.log2(boxes.abs()), torch.log10(boxes.abs()), torch.deg2rad(x), torch.lerp(x, x.flip(3), 0.3)
        shrunk = F.hardshrink(x), F.softshrink(x, 0.3), F.threshold(x, 0.1, -2.0), F.tanhshrink(x), F.softsign(x)
        sums = *sums, *(torch.stack([each.flatten() for each in some]) for some in (more[:5], logarithms[2:], shrunk))
        sums = *sums, *more[5:], *logarithms[:2]
        return found, places, *taken, ordered, order, *several, *whole, *floors, *powers, *sums


def test_a_detectors_tail_has_no_slow_kernel(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model, image = Tail().eval(), torch.randn(2, 3, 6, 7)
    network = partition(ChannelGraph.trace(model, (image,)))
    assert network.slow_path == ""
    compile_network(model, image, target(), tmp_path / "tail.so")
    loaded = device().load(tmp_path / "tail.so")
    loaded.set_inputs("main", [image.numpy()])
    with torch.no_grad():
        for i, (actual, expected) in enumerate(zip(loaded.run("main"), model(image), strict=True)):
            np.testing.assert_allclose(actual, expected.float().numpy(), rtol=2e-5, atol=2e-5, err_msg=str(i))
