"""A check of a device by folder: does it compute what PyTorch does, and how quickly.

Kernels of every family, at small sizes, must make what the same code makes on this machine with its threads one after
the other; whole networks must make PyTorch's outputs. Both are timed, and networks beside PyTorch if that is there. The
results are a latency table, of networks as they are and of one that is pruned.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tvm
from torch import nn
from torch.fx.experimental.optimization import fuse

from aap_hw.compile.code.function import CONSTANTS
from aap_hw.compile.families.half import has_half_form
from aap_hw.compile.front.network import Network
from aap_hw.compile.front.partition import partition
from aap_hw.compile.gpu.series import in_series
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.precision import FLOAT32, FP32, HALF, NetworkPrecision
from aap_hw.compile.keys.target import CpuTarget, DeviceTarget, GpuTarget, half_of, host_options, require_precision
from aap_hw.compile.library.build import build_kernel
from aap_hw.compile.library.linking import command_of
from aap_hw.compile.library.lowering import state_of
from aap_hw.deploy.reference import TOLERANCE
from aap_hw.device.connection import target_of
from aap_hw.device.machine import made_up
from aap_hw.device.profile import DeviceProfile
from aap_hw.files import scratch_folder
from aap_hw.graph import ChannelGraph
from aap_hw.graph.program.inputs import Tensors
from aap_hw.inputs import Inputs
from aap_hw.lut.compiling import CompiledBatch, Compiler, compiler
from aap_hw.lut.measuring import compile_reference
from aap_hw.lut.profiling import POINTS_A_BATCH
from aap_hw.lut.progress import Clock, ProgressCallback
from aap_hw.lut.table import NetworkName
from aap_hw.models import zoo
from aap_hw.pack.folder import Contents, Packed, require_new, write_pack
from aap_hw.pack.lightening import lighten
from aap_hw.pack.profiles import about_device
from aap_hw.pack.programs import program_of

# Outputs may differ by this share of the largest, or of 1 if that is more: of one kernel in half precision by a few of
# its roundings, of a network by many of them.
HALF_TOLERANCE, HALF_NETWORK_TOLERANCE = 4e-3, 2e-2
# How networks are timed in PyTorch.
WAYS = ("eager", "torch.compile", "cudnn")
# Of the network that is pruned, this share of each group's channels stays, in whole steps.
KEPT, STEP = 0.6, 8

# A kernel of each family without its precision and batch, and operators of which one schedule makes several kernels.
FAMILY_POINTS = {
    "conv2d 6x8 epilogue=bias kernel=3x3 padding=1x1": (8, 8),
    "depthwise_conv2d 6x8 epilogue=bias+relu6 kernel=3x3 padding=1x1": (24, 24),
    "linear - epilogue=bias": (64, 48),
    "relu 4x4": (8, 8),
    "affine 4x4 epilogue=relu": (8, 8),
    "scale_channels 4x4": (8, 8),
    "max_pool2d 6x8 kernel=2x2 padding=0x0 stride=2x2": (8, 8),
    "avg_pool2d 6x8 kernel=3x3 padding=1x1 stride=2x2": (8, 8),
    "global_avg_pool2d 6x8": (8, 8),
    "concat 4x4 parts=2": (16, 16),
    "channel_shuffle 4x4 groups=2": (8, 8),
    "interleave 4x4 parts=2": (8, 8),
    "pad_channels 4x4 side=middle": (8, 16),
    "subsample 4x4 stride=2x2": (8, 8),
    "flatten 4x4": (8, 128),
    "to_nhwc 4x4": (8, 8),
    "to_nchw 4x4": (8, 8),
    "softmax -": (17, 17),
    # A walk that goes round, and a constant.
    "strided_copy - parts=x[16*i;4:2*i%i%4*i,2:8*i,i:1]c[2*i;2:i,i:1] rows=2": (8, 8),
    "add 4x4": (8, 8),
    "elementwise 4x4 constants=c expr=gelu(mul(c0,x0)) reads=yxc": (8, 8),
    "resize 4x4 how=linear to=7x8": (8, 8),  # with tables among its arguments
    "gather - index=x[5] table=w[1,9,o]": (8, 8),
    "grid_sample 4x4 how=bilinear padding=zeros to=3x3": (8, 8),
    "pad 4x4 mode=reflect padding=1x2": (8, 8),
    "reduce - of=amax shape=3,20,1": (1, 1),
    "reduce - correction=1 of=std shape=3,20,5": (1, 1),
    "axis_softmax - shape=3,20,5": (1, 1),
    "layer_norm 9x1 affine=1 eps=1e-05": (13, 13),
    "rms_norm 9x1 affine=1 eps=1e-05": (13, 13),
    "group_norm 9x1 affine=1 each=4 eps=1e-05": (8, 8),
    "matmul - shape=2,9,8,7": (1, 1),
    "attention - mask=plain masked_by=constant shape=2,9,7,8,8": (1, 1),
    "lstm 5x1": (52, 13),
    "gru 5x1": (39, 13),
    "rnn_tanh 5x1": (13, 13),
    "conv3d 4x5x6 epilogue=bias kernel=3x3x3 padding=1x1x1": (8, 8),
    "conv_transpose2d 5x6 epilogue=bias kernel=4x4 padding=1x1 stride=2x2": (8, 8),
    "depthwise_conv_transpose2d 5x6 epilogue=bias kernel=4x4 padding=1x1 stride=2x2": (8, 8),
    "conv_transpose3d 3x3x3 epilogue=bias kernel=2x2x2 stride=2x2x2": (8, 8),
    "depthwise_conv3d 4x4x4 epilogue=bias kernel=3x3x3": (8, 8),
    "argsort - count=20 order=descending shape=2,300,3": (1, 1),
    "cumsum - shape=2,300,3": (1, 1),
    "take_along - shape=2,30,o taken=5": (8, 8),
    "reduce - of=argmax shape=2,30,o": (8, 8),
    "elementwise 4x4 expr=floor_divide(round(x0),power(x0,3)) reads=yxc": (8, 8),
}


@dataclass(frozen=True)
class _Checked:
    """A network in one precision."""

    name: NetworkName
    plan: str
    widths: Mapping[str, int]
    module: nn.Module
    network: Network
    state: Mapping[str, torch.Tensor]

    @property
    def title(self) -> str:
        return self.name.text + ("" if self.plan == "dense" else f", {self.plan}")

    @property
    def kernels(self) -> list[Address]:
        return [kernel.at(self.network.dense) for kernel in self.network.kernels]


def pack_check(
    folder: Path,
    profile: DeviceProfile,
    models: Sequence[str] = ("mobilenetv2", "resnet18"),
    *,
    precisions: Sequence[NetworkPrecision] = (FP32, HALF),
    families: Mapping[str, tuple[int, ...]] = FAMILY_POINTS,
    workers: int | None = None,
    on_progress: ProgressCallback = lambda _: None,
) -> Packed:
    """Compile kernels and networks of the zoo for a device into a new folder; the last of the networks is pruned, too.

    Raises
    ------
    UserError : the folder is there already or cannot be written, or nothing here compiles for the device.
    """
    require_new(folder)
    target = target_of(profile)
    command_of(target.host)
    for precision in precisions:
        require_precision(precision, target, profile.name)
    checked = [each for name in models for each in _networks(name, name == models[-1], precisions, target)]
    points = _family_points(families, precisions, target)
    own = len(points)
    points += [p for p in dict.fromkeys(p for each in checked for p in each.kernels) if p not in points]
    with (
        scratch_folder("pack") as scratch,
        compiler(target, profile.measure.copies, scratch, workers or os.cpu_count() or 1) as pool,
    ):
        networks = [pool.submit_network(each.network, each.network.dense, each.state) for each in checked]
        reference = compile_reference(pool)
        libraries = _compiled(points, pool, on_progress)
        clock = Clock("networks", 0, on_progress)
        clock.start(len(checked))
        files: dict[str, Path] = {}
        for each, future in zip(checked, networks, strict=True):
            files[each.title] = future.result()
            clock.count(len(checked))
        expected, values = _expected(points[:own], libraries, target)
        entries = [_entry(each, values) for each in checked]
        about = {
            **about_device(profile, target),
            "model": "",
            "input": "",
            "precision": FP32,
            "heads": False,
            "floats": [],
        }
        on_gpu = isinstance(target, GpuTarget)
        beside = list(_beside(checked)) if on_gpu else []
        contents = Contents("check", about, reference, libraries, entries, files, expected, values, beside)
        return write_pack(folder, contents, profile, target)


def _networks(
    name: str, pruned: bool, precisions: Sequence[NetworkPrecision], target: DeviceTarget
) -> Iterator[_Checked]:
    model = zoo.build(name)
    inputs, module = Inputs.of(model.input_shape), model.module
    lighten(module)
    graph = ChannelGraph.trace(module, inputs.zeros())
    plans: dict[str, Mapping[str, int]] = {"dense": {}}
    if pruned:
        plans["pruned"] = {
            group.name: min(group.width, STEP * math.ceil(KEPT * group.width / STEP))
            for group in graph.groups
            if not group.frozen
        }
    full = {group.name: group.width for group in graph.groups}
    for plan, widths in plans.items():
        smaller = graph.cut(module, {group: list(range(width)) for group, width in widths.items()})
        traced = ChannelGraph.trace(smaller, inputs.zeros())
        for precision in precisions:
            network = partition(traced, precision, half=half_of(precision, target))
            named = NetworkName(name, inputs, precision)
            yield _Checked(named, plan, {**full, **widths}, smaller, network, state_of(traced.program))


def _family_points(
    families: Mapping[str, tuple[int, ...]], precisions: Sequence[NetworkPrecision], target: DeviceTarget
) -> list[Address]:
    found = []
    for text, widths in families.items():
        key = KernelKey.parse(f"{text} {FLOAT32} batch=1")
        found += [Address(key, widths)] if FP32 in precisions else []
        if HALF in precisions and has_half_form(key):
            found.append(Address(key.at_precision(half_of(HALF, target)), widths))
    return found


def _compiled(points: Sequence[Address], pool: Compiler, on_progress: ProgressCallback) -> list[CompiledBatch]:
    clock = Clock("points", 0, on_progress)
    clock.start(len(points))
    batches = [points[i : i + POINTS_A_BATCH] for i in range(0, len(points), POINTS_A_BATCH)]
    futures: list[Future[CompiledBatch]] = [pool.submit(batch) for batch in batches]
    libraries = []
    for batch, future in zip(batches, futures, strict=True):
        libraries.append(future.result())
        clock.count(len(points), len(batch))
    return libraries


def _expected(
    points: Sequence[Address], libraries: Sequence[CompiledBatch], target: DeviceTarget
) -> tuple[dict[tuple[int, int], dict[str, Any]], dict[str, np.ndarray]]:
    """What the points make of their arguments, computed here with one thread, and how far off a device may be."""
    functions = [build_kernel(point, target) for point in points]
    codes = {
        f"kernel_{i}": in_series(f.code).with_attr("global_symbol", f"kernel_{i}") for i, f in enumerate(functions)
    }
    here = CpuTarget.of(host_options(), threads=1)
    library = tvm.compile(tvm.IRModule(codes), target=here.tvm).jit()
    expected: dict[tuple[int, int], dict[str, Any]] = {}
    values: dict[str, np.ndarray] = {}
    for i, function in enumerate(functions):
        number, index = divmod(i, POINTS_A_BATCH)
        batch = libraries[number]
        given = made_up(batch.shapes[index], batch.types[index])
        # The output of a point is that of its last call, which has the last of the constants.
        constants = [a for a in function.arguments if a.role in CONSTANTS]
        last = iter(given[len(given) - len(constants) :])
        shared, literals = iter(given), iter(function.literals)
        arguments = [
            next(last) if a.role in CONSTANTS else next(literals) if a.role == "literal" else next(shared)
            for a in function.arguments
        ]
        output = tvm.runtime.tensor(np.zeros(function.output_shape, function.output_type))
        library[f"kernel_{i}"](*[tvm.runtime.tensor(np.ascontiguousarray(each)) for each in arguments], output)
        name = f"point_{i}"
        values[name] = output.numpy().astype(np.float32)
        share = TOLERANCE if function.output_type == FLOAT32 else HALF_TOLERANCE
        tolerance = share * max(1.0, float(np.abs(values[name]).max(initial=0.0)))
        expected[number, index] = {"array": name, "tolerance": tolerance}
    return expected, values


def _entry(checked: _Checked, values: dict[str, np.ndarray]) -> dict[str, Any]:
    """What a pack says of a network; its input and PyTorch's output are added to the values."""
    inputs = checked.name.inputs
    image = inputs.random(1, seed=0)
    with torch.no_grad():
        output = checked.module(*image).numpy()
    names = [f"input_{'x'.join(map(str, each.shape))}" for each in image]
    values |= {name: each.numpy() for name, each in zip(names, image, strict=True)}
    values[checked.title] = output
    share = TOLERANCE if checked.name.precision == FP32 else HALF_NETWORK_TOLERANCE
    return {
        "name": checked.title,
        "model": checked.name.model,
        "input": inputs.text,
        "precision": checked.name.precision,
        "plan": checked.plan,
        "widths": dict(checked.widths),
        "kernels": [[str(address.key), list(address.widths)] for address in checked.kernels],
        "shapes": [list(each.shape) for each in image],
        "inputs": names,
        "expected": {"array": checked.title, "tolerance": share * max(1.0, float(np.abs(output).max()))},
    }


def _beside(checked: Sequence[_Checked]) -> Iterator[dict[str, Any]]:
    """The networks, and their convolutions and linear layers one by one, as PyTorch calls them."""
    for each in checked:
        # PyTorch, too, is given its batch normalisations folded.
        yield from _as_programs(each.title, fuse(each.module), each.name.inputs.zeros(), each.name.precision, WAYS)
    for address, precision in {address: each.name.precision for each in checked for address in each.kernels}.items():
        if (layer := layer_of(address)) is not None:
            name = f"{address.key} at {' -> '.join(map(str, address.widths))}"
            image = torch.zeros(address.key.batch, address.width_in, *address.key.size)
            yield from _as_programs(name, layer, (image,), precision, ("eager", "cudnn"))


def _as_programs(
    name: str, module: nn.Module, inputs: Tensors, precision: NetworkPrecision, ways: Sequence[str]
) -> Iterator[dict[str, Any]]:
    program = program_of(module, inputs, "float32" if precision == FP32 else "float16")
    if program is not None:
        yield {"name": name, "shapes": [list(each.shape) for each in inputs], "ways": list(ways), "program": program}


def layer_of(address: Address) -> nn.Module | None:
    """The layer of PyTorch that a kernel is without its epilogue; None if it is no convolution or linear layer."""
    key, read, made = address.key, address.width_in, address.width_out
    if key.op == "linear":
        return nn.Linear(read, made).eval()
    if key.op not in ("conv2d", "depthwise_conv2d"):
        return None
    groups = read if key.op == "depthwise_conv2d" else 1
    geometry = key.along("stride", 1), key.along("padding"), key.along("dilation", 1)
    return nn.Conv2d(read, made, key.along("kernel"), *geometry, groups).eval()
