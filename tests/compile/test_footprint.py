"""The memory that is counted from a network's kernels is what the compiled network holds.

Constants are read off the lowered module and off the library that it becomes; what lives at the same time is found by
walking the calls of the module, and compared with what TVM's own memory planner sets aside.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from tvm import relax

from aap_hw.compile.front.byte_inputs import with_bytes_taken
from aap_hw.compile.front.network import Network
from aap_hw.compile.front.partition import partition
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.precision import INT8
from aap_hw.compile.keys.target import device_target
from aap_hw.compile.library.build import build_kernel, export_library
from aap_hw.compile.library.footprint import constant_bytes, moments, peak_bytes
from aap_hw.compile.library.lowering import lower_network, state_of
from aap_hw.compile.library.quantised import stand_in_scales
from aap_hw.graph import ChannelGraph
from tests.compile.networks import cut_to_odd_widths, image, network
from tests.deploy.tiny import int8_network
from tests.synthetic import this_device

FLOAT16_ARM = {"kind": "llvm", "mcpu": "cortex-a76", "mtriple": "aarch64-linux-gnu"}


def lowered(name: str, side: int, cut: bool, batch: int = 1) -> tuple[Network, Any]:
    model, example = network(name), image(side, batch)
    if cut:
        model = cut_to_odd_widths(model, example, seed=1)
    graph = ChannelGraph.trace(model, (example,))
    parts = partition(graph)
    state = {name: tensor.detach() for name, tensor in graph.program.state_dict.items()}
    return parts, lower_network(parts, parts.dense, state, this_device().target)


def size_of(value: Any) -> int:
    extents = [int(extent) for extent in value.ty.shape.values]
    return np.dtype(str(value.ty.dtype)).itemsize * math.prod(extents)


def calls(module: Any) -> list[tuple[Any, list[Any]]]:
    """What each call makes, and what it is made of: (variable, variables and constants), in order."""
    found = []
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            if isinstance(binding.value, tvm.ir.Call):
                arguments = [
                    part
                    for argument in binding.value.args
                    for part in (argument.fields if isinstance(argument, tvm.ir.Tuple) else [argument])
                ]
                made_of = [part for part in arguments if isinstance(part, relax.Var | tvm.ir.GenericConst)]
                found.append((binding, made_of))
    return found


def most_alive(module: Any) -> int:
    """Bytes of the variables that live at one time, at most; another shape of a value is the value itself."""
    alias: dict[Any, Any] = {}
    steps = []
    for binding, made_of in calls(module):
        read = [alias.get(part, part) for part in made_of if isinstance(part, relax.Var)]
        if binding.value.op == tvm.ir.Op.get("relax.reshape"):
            alias[binding.var] = read[0]
        else:
            steps.append((binding.var, read))
    last: dict[Any, int] = {}
    for i, (made, read) in enumerate(steps):
        last |= dict.fromkeys(read, i)
        last.setdefault(made, len(steps) if i == len(steps) - 1 else i)
    born = {made: i for i, (made, _) in enumerate(steps)}
    return max(sum(size_of(v) for v, end in last.items() if born.get(v, -1) <= i <= end) for i in range(len(steps)))


@pytest.mark.parametrize(
    ("name", "side", "cut", "batch"),
    [
        ("resnet20", 32, False, 1),
        ("small_densenet", 32, True, 1),
        # Networks with more layers, and two images.
        pytest.param("resnet20", 32, True, 2, marks=pytest.mark.slow),
        pytest.param("mobilenetv2", 64, True, 1, marks=pytest.mark.slow),
        pytest.param("efficientnet_b0", 64, False, 1, marks=pytest.mark.slow),
    ],
)
def test_constants_and_the_most_that_lives_at_once_are_those_of_the_lowered_network(
    name: str, side: int, cut: bool, batch: int
) -> None:
    parts, module = lowered(name, side, cut, batch)
    target = this_device().target
    held = sum(size_of(part) for _, made_of in calls(module) for part in made_of if not isinstance(part, relax.Var))
    counted = sum(constant_bytes(kernel.at(parts.dense), target) for kernel in parts.kernels)
    assert counted == held > 0
    alive = max(moment.bytes_at(parts.dense) for moment in moments(parts, target))
    assert alive == most_alive(module)
    assert peak_bytes(parts, parts.dense, target) == held + alive


@pytest.mark.parametrize(
    ("takes_bytes", "floats", "most"),
    [
        (False, (), 5 * 3 * 12 * 12),
        (True, (), 3 * 12 * 12 + 8 * 5 * 5),
        # The depthwise layer reads and makes float32.
        (True, ("2",), 2 * 4 * 8 * 5 * 5),
    ],
)
def test_values_and_weights_of_a_network_in_int8_are_counted_as_bytes(
    takes_bytes: bool, floats: tuple[str, ...], most: int
) -> None:
    model, example, target = int8_network(), torch.zeros(1, 3, 12, 12), this_device().target
    graph = ChannelGraph.trace(model, (example,))
    parts, state = partition(graph, INT8, floats=floats), state_of(graph.program)
    parts = replace(parts, quantisation=stand_in_scales(parts, state))
    parts = with_bytes_taken(parts) if takes_bytes else parts
    module = lower_network(parts, parts.dense, state, target)
    assert parts.inputs[0].type == ("uint8" if takes_bytes else "float32")
    alive = max(moment.bytes_at(parts.dense) for moment in moments(parts, target))
    assert alive == most_alive(module) == most
    held = sum(size_of(part) for _, made_of in calls(module) for part in made_of if not isinstance(part, relax.Var))
    counted = sum(constant_bytes(kernel.at(parts.dense), target) for kernel in parts.kernels)
    # The few numbers that hold for a whole kernel are left out.
    assert counted <= held <= counted + 64 * len(parts.kernels)


@pytest.mark.parametrize("options", [{"kind": "cuda", "arch": "sm_87"}, FLOAT16_ARM], ids=["gpu", "cpu"])
@pytest.mark.parametrize(
    "text",
    [
        "layer_norm 4x4 affine=1 eps=1e-05 float16 batch=1",
        "group_norm 4x4 affine=1 each=4 eps=1e-05 float16 batch=1",
        "affine 4x4 float16 batch=1",
        "conv2d 4x4 dilation=1x1 epilogue=bias kernel=1x1 padding=0x0 stride=1x1 float16 batch=1",
        "depthwise_conv2d 4x4 dilation=1x1 epilogue=bias kernel=3x3 padding=1x1 stride=1x1 float16 batch=1",
    ],
)
def test_constants_of_a_kernel_in_half_precision_are_counted_as_it_holds_them(
    text: str, options: dict[str, Any]
) -> None:
    address, target = Address(KernelKey.parse(text), (32, 32)), device_target(options, 1)
    constants = [a for a in build_kernel(address, target).arguments if a.role in ("weight", "bias")]
    held = sum(np.dtype(a.type).itemsize * math.prod(a.shape) for a in constants)
    assert constant_bytes(address, target) == held > 0


def test_library_holds_the_constants_and_tvms_plan_sets_aside_what_lives_at_once(tmp_path: Path) -> None:
    parts, module = lowered("resnet20", 32, cut=False)
    target = this_device().target
    counted = sum(constant_bytes(kernel.at(parts.dense), target) for kernel in parts.kernels)
    export_library(module, target, tmp_path / "network.so")
    # The rest of the library is its code.
    assert counted <= (tmp_path / "network.so").stat().st_size <= counted + 1_500_000
    passes = relax.transform
    planned = tvm.transform.Sequential(
        [
            passes.LegalizeOps(),
            passes.RewriteDataflowReshape(),
            passes.ToNonDataflow(),
            passes.RemovePurityChecking(),
            passes.CallTIRRewrite(),
            passes.StaticPlanBlockMemory(),
        ]
    )(module)
    storages = [
        int(binding.value.args[0].values[0])
        for block in planned["main"].body.blocks
        for binding in block.bindings
        if isinstance(binding.value, tvm.ir.Call) and binding.value.op == tvm.ir.Op.get("relax.memory.alloc_storage")
    ]
    image_bytes = 4 * math.prod(parts.inputs[0].shape)
    alive = max(moment.bytes_at(parts.dense) for moment in moments(parts, target))
    # TVM reuses whole buffers, so that it may set aside a little more than lives; the image is the caller's.
    assert alive - image_bytes <= sum(storages) <= 1.5 * alive


def test_a_removed_kernel_makes_nothing_and_holds_no_constants() -> None:
    parts, _ = lowered("resnet20", 32, cut=False)
    widths = {**parts.dense, "layer1.1.conv1": 0}
    target = this_device().target
    gone = [kernel for kernel in parts.kernels if kernel.is_removed(widths)]
    assert len(gone) == 2
    held = {moment.kernel: moment.bytes_at(widths) for moment in moments(parts, target)}
    shortcut = 4 * 16 * 32 * 32
    assert [held[kernel.name] for kernel in gone] == [shortcut] * 2
    before, after = peak_bytes(parts, parts.dense, target), peak_bytes(parts, widths, target)
    assert before - after == sum(constant_bytes(kernel.at(parts.dense), target) for kernel in gone)
