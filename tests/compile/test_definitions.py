"""The kernels of a CPU and those of a GPU compute one and the same: what `code` defines, whatever their loops.

A GPU's are made from the definitions; a CPU's are compared with these here, on examples of every operator.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import te, tirx

from aap_hw.compile.code import DEFINITIONS
from aap_hw.compile.code.function import KernelFunction
from aap_hw.compile.families import family_of, multiply_accumulates, output_pixels
from aap_hw.compile.families.elementwise import ACTIVATIONS
from aap_hw.compile.gpu.series import in_series
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.target import device_target
from aap_hw.compile.library.build import build_kernel
from aap_hw.compile.library.footprint import constant_bytes
from aap_hw.errors import UserError
from tests.compile.running import target

BATCH, SIZE = 2, (5, 6)
GPU = device_target({"kind": "cuda", "arch": "sm_80"}, 1)
WINDOWS: dict[str, Any] = {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 0)}
AFTER: list[dict[str, Any]] = [{}, {"epilogue": ("hardswish", "relu")}]
GRIDS: list[tuple[str, str, dict[str, Any]]] = [
    ("bilinear", "zeros", {}),
    ("nearest", "border", {"corners": "1"}),
    ("bicubic", "border", {}),
]
# Attributes of keys, and widths; the same of all examples of an operator.
EXAMPLES: dict[str, tuple[tuple[int, int], list[dict[str, Any]]]] = {
    **{name: ((13, 13), [{}, {"epilogue": ("sigmoid",)}]) for name in ACTIVATIONS},
    "add": ((13, 13), AFTER),
    "mul": ((13, 13), AFTER),
    "cast": ((13, 13), [{}]),
    "scale_channels": ((13, 13), AFTER),
    "affine": ((13, 13), AFTER),
    "elementwise": (
        (13, 13),
        [
            {"expr": "mul(gelu(x0),add(c0,x1))", "reads": ("nyxc", "nyx"), "constants": ("c",)},
            {"expr": "where(gt(x0,c0),pow(c1,x0),elu(x1,1,1,1))", "reads": ("nyxc", "nc"), "constants": ("1", "yxc")},
            {"expr": "sub(add(mul(x0,c0),c1),c2)", "reads": ("nyxc",), "constants": ("yc", "x", "n")},
            {"expr": "sub(mul(x0,c0),x1)", "reads": ("nyxc", "nc"), "constants": ("yx",), "order": "ncyx"},
        ],
    ),
    "max_pool2d": ((13, 13), [WINDOWS, WINDOWS | {"ceil": "1"}]),
    "sum_pool2d": ((13, 13), [WINDOWS | {"divisor": 3}]),
    "avg_pool2d": ((13, 13), [WINDOWS, WINDOWS | {"ceil": "1"}, WINDOWS | {"padding_counts": "no"}]),
    "concat": (
        (13, 13),
        [{"parts": 3}, {"parts": 2, "epilogue": ("affine", "silu")}, {"parts": 2, "epilogue": ("relu",)}],
    ),
    "interleave": ((12, 12), [{"parts": 3}]),
    "channel_shuffle": ((12, 12), [{"groups": 4}]),
    "channel_slice": ((13, 4), [{"side": side} for side in ("first", "last", "1")]),
    "pad_channels": ((7, 13), [{"before": 2, "after": 4}, *[{"side": side} for side in ("first", "last", "middle")]]),
    "pad": (
        (13, 13),
        [
            {"padding": (1, 2), "padding_end": (3, 0), "value": 0.5},
            {"padding": (0, 2)},
            *[{"padding": (2, 0), "padding_end": (1, 4), "mode": m} for m in ("reflect", "replicate", "circular")],
        ],
    ),
    "subsample": ((13, 13), [{"stride": (2, 3)}]),
    "flatten": ((3, 90), [{}]),
    "to_nhwc": ((13, 13), [{}]),
    "to_nchw": ((13, 13), [{}]),
    "resize": (
        (13, 13),
        [
            {"how": "nearest", "to": (10, 12)},
            {"how": "linear", "to": (11, 9), "factors": "2.3,1.5"},
            {"how": "cubic_corners", "to": (3, 2)},
            {"how": "smooth_linear", "to": (2, 6)},
            {"how": "mean", "to": (2, 4)},
            {"how": "largest", "to": (1, 4)},
        ],
    ),
    "take_along": ((13, 13), [{"shape": "2,5,o", "taken": 7}, {"shape": "2,5,o", "taken": 3, "each": "row"}]),
    "gather": ((26, 13), [{"table": "w[2,7,i]", "index": "x[5]"}, {"table": "x[30,o,1]", "index": "c[4]"}]),
    "grid_sample": (
        (13, 13),
        [{"how": how, "padding": padding, "to": (3, 4)} | corners for how, padding, corners in GRIDS],
    ),
    "strided_copy": (
        (26, 13),
        [
            {"parts": "x[30*i;3:i,10:3*i,o:1;o]"},  # vectors, and an offset
            {"parts": "x[400*i;2:200*i,i:1,200:i]"},  # blocks, the last of which overlap
            {"parts": "x[5*i;i:1,5:i]"},  # and small ones
            {"parts": "x[12*i;3:i,4:-3*i,i:1;9*i]"},  # backwards
            {"parts": "x[60;5:12,4:-3,3:1;9]"},
            # Loops that go round, within images and along contiguous values.
            {"parts": "x[48*i;2:24*i%8*i%48*i,4:2*i%i%8*i,3:8*i%8*i%48*i,2:i%i%8*i,i:1]"},
            {"parts": "x[192;4:8%40%64,2:0,3:64,2:4%40%64,4:1%40%64]"},
            {"parts": "x[20*i;2:10*i,i:1,10:i]x[2*i;2:i,i:1]c[5*i;2:0,5*i:1]w[2;2:1]", "rows": "2"},
            {"parts": "x[20;20:1]x[30;10:1,3:10]", "rows": "10"},
            {"parts": "x[7;;3]"},
        ],
    ),
}
ADDRESSES = [
    Address(KernelKey.make(op, SIZE, BATCH, **attributes), widths)
    for op, (widths, examples) in EXAMPLES.items()
    for attributes in examples
]


def as_defined(address: Address) -> tirx.PrimFunc:
    """A plain loop over the values that a definition gives."""
    definition = DEFINITIONS[address.key.op](address)
    inputs = [te.placeholder(a.shape, a.type, f"in_{i}") for i, a in enumerate(definition.arguments)]
    output = te.compute(definition.shape, lambda *index: definition.value(inputs, *index))
    return te.create_prim_func([*inputs, output])


@pytest.mark.slow
def test_cpu_kernels_compute_what_is_defined_for_both_back_ends() -> None:
    assert EXAMPLES.keys() == DEFINITIONS.keys()
    functions = [build_kernel(address, target()) for address in ADDRESSES]
    codes = {}
    for i, (address, function) in enumerate(zip(ADDRESSES, functions, strict=True)):
        codes |= {f"defined_{i}": as_defined(address), f"made_{i}": in_series(function.code)}
    module = tvm.IRModule({name: code.with_attr("global_symbol", name) for name, code in codes.items()})
    library = tvm.compile(module, target=target().tvm).jit()
    random = np.random.default_rng(3)
    for i, (address, function) in enumerate(zip(ADDRESSES, functions, strict=True)):
        drawn = [random.normal(size=a.shape).astype("float32") for a in function.arguments if a.role != "literal"]
        inputs = [tvm.runtime.tensor(array) for array in [*drawn, *function.literals]]
        defined, made = (called(library[f"{which}_{i}"], function, inputs) for which in ("defined", "made"))
        np.testing.assert_allclose(made, defined, rtol=1e-6, atol=1e-6, err_msg=str(address))
        assert made.shape == family_of(address.key).output(address), address


def called(kernel: Any, function: KernelFunction, inputs: list[Any]) -> np.ndarray:
    output = tvm.runtime.tensor(np.full(function.output_shape, np.nan, "float32"))
    kernel(*inputs, output)
    result: np.ndarray = output.numpy()
    return result


@pytest.mark.parametrize(
    "key",
    [
        "conv_transpose3d 8x8 kernel=2x2 stride=2x2 float32 batch=1",
        "conv2d 8 kernel=3x3 float32 batch=1",
        "conv2d 4x4x4 kernel=3x3 float32 batch=1",
        "conv2d 8x8 kernel=3 float32 batch=1",
    ],
)
def test_keys_that_nothing_builds_are_refused_by_whoever_is_asked_about_them(key: str) -> None:
    address = Address(KernelKey.parse(key), (8, 8))
    questions = [multiply_accumulates, lambda a: output_pixels(a.key), lambda a: constant_bytes(a, target())]
    for ask in [*questions, lambda a: build_kernel(a, target()), lambda a: build_kernel(a, GPU)]:
        with pytest.raises(UserError, match="is not known to this version"):
            ask(address)
