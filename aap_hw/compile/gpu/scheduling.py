"""From a tensor expression to a kernel that dlight has scheduled.

dlight's rules are tried in the order in which TVM itself tries them; the last one fits everything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import ir, s_tir, te, tirx
from tvm.s_tir import dlight

from aap_hw.compile.code.expressions import number
from aap_hw.compile.code.function import OPAQUE, Argument, KernelFunction
from aap_hw.compile.families.windows import Axis
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.precision import FLOAT32, HALVES
from aap_hw.compile.keys.target import GpuTarget
from aap_hw.registry import Registry

RULES = (
    dlight.gpu.Matmul,
    dlight.gpu.GEMV,
    dlight.gpu.Reduction,
    dlight.gpu.GeneralReduction,
    dlight.gpu.Fallback,
)
# For code that dlight's rules for reductions misread and fail on.
FALLBACK = RULES[-1:]


KERNELS: Registry[Callable[[Address, GpuTarget], KernelFunction]] = Registry()
"""What builds the kernels of an operator; importing the package fills it."""


def gpu_kernel(
    key: KernelKey,
    arguments: Sequence[Argument],
    output_shape: tuple[int, ...],
    compute: Callable[..., Any],
    target: GpuTarget,
    pack: Callable[[np.ndarray], np.ndarray] | None = None,
    rules: Sequence[type] = RULES,
) -> KernelFunction:
    """A kernel from its arguments, its output's shape, and ``compute``, which makes the output from the inputs.

    ``compute`` sees float32 in place of half precision, and what it makes is rounded to that.
    """
    shapes = [(*a.shape[:-1], te.var(f"width_{i}")) if a.any_width else a.shape for i, a in enumerate(arguments)]
    inputs = [
        te.placeholder(shape, argument.type, f"input_{i}")
        for i, (shape, argument) in enumerate(zip(shapes, arguments, strict=True))
    ]
    seen = [
        _as(FLOAT32, tensor) if argument.type in HALVES else tensor
        for tensor, argument in zip(inputs, arguments, strict=True)
    ]
    code = te.create_prim_func([*inputs, _as(key.types.made, compute(*seen))])
    return KernelFunction(scheduled(code, target, rules), tuple(arguments), output_shape, key.types.made, pack)


def _as(type_: str, tensor: te.Tensor) -> te.Tensor:
    """A tensor in another type, if one of the two is a half precision."""
    if str(tensor.dtype) == type_ or {str(tensor.dtype), type_}.isdisjoint(HALVES):
        return tensor
    return te.compute(tensor.shape, lambda *at: tirx.Cast(type_, tensor(*at)), name=f"{tensor.op.name}_{type_}")


def padded(image: te.Tensor, axes: Sequence[Axis], channels: int, *, is_planar: bool = False) -> te.Tensor:
    """An image or a volume (N, ..., C) with zeros around it; what is given is (N, C, ...) if it is planar."""
    has_zeros = any(sum(axis.around) for axis in axes)
    if not (has_zeros or is_planar):
        return image

    def element(n: Any, *at: Any) -> Any:
        *places, c = at
        inner = [place - axis.padding for place, axis in zip(places, axes, strict=True)]
        value = image(n, c, *inner) if is_planar else image(n, *inner, c)
        if not has_zeros:
            return value
        inside = [tirx.all(i >= 0, i < axis.size) for i, axis in zip(inner, axes, strict=True)]
        return tirx.if_then_else(tirx.all(*inside), value, number(0.0))

    extents = (axis.size + sum(axis.around) for axis in axes)
    return te.compute((image.shape[0], *extents, channels), element, name="padded")


def scheduled(code: tirx.PrimFunc, target: GpuTarget, rules: Sequence[type] = RULES) -> tirx.PrimFunc:
    """The code with its loops bound to blocks and threads; Relax will not fuse it with others."""
    module = tvm.IRModule({"kernel": _without_single_terms(code).with_attr("target", target.tvm)})
    with target.tvm:
        try:
            module = dlight.ApplyDefaultSchedule(*[rule() for rule in rules])(module)
        except AssertionError:  # the rule for matrices and vectors takes one pixel of one channel for a vector
            module = dlight.ApplyDefaultSchedule(*[rule() for rule in FALLBACK])(module)
    # Relax gives the function its name and the target of the network that it is called in.
    bare = module["kernel"].without_attr("target").without_attr("global_symbol")
    return bare.with_attr({"op_pattern": OPAQUE, "tirx.is_scheduled": True})


def _without_single_terms(code: tirx.PrimFunc) -> tirx.PrimFunc:
    """The code with values in place of sums of one term.

    TVM drops axes of one step, but not what such a sum begins with. What it then inlines into the sum, such as a bias,
    is part of that and of the term, and is added twice.
    """

    def block(given: s_tir.SBlock) -> s_tir.SBlock:
        reduced = [var for var in given.iter_vars if var.iter_type == tirx.IterVar.CommReduce]
        if given.init is None or not reduced or any(int(var.dom.extent) != 1 for var in reduced):
            return given

        def begun(load: ir.TensorLoad) -> Any:
            return given.init.value if load.source.same_as(given.init.buffer) else load

        axes = [
            tirx.IterVar(var.dom, var.var, tirx.IterVar.DataPar, var.thread_tag, var.span) for var in given.iter_vars
        ]
        body = tvm_ffi.structural_map(given.body, (ir.TensorLoad, begun))
        return s_tir.SBlock(axes, given.reads, given.writes, given.name_hint, body)

    return code.with_body(tvm_ffi.structural_map(code.body, (s_tir.SBlock, block)))
