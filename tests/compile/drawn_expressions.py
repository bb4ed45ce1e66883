"""Random expressions of element-wise operators; see `drawn`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from aap_hw.compile.keys.key import KernelKey
from tests.compile.drawn import BATCH, ODD, Case, numbers
from tests.compile.random_kernels import HALF_ULP

# What a function of one value is allowed to be wrong by; see `test_functions`.
OF_SIZE, AT_ALL, STEEPEST = 2e-6, 2e-6, 1.6
UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "relu({})": F.relu,
    "relu6({})": F.relu6,
    "sigmoid({})": torch.sigmoid,
    "silu({})": F.silu,
    "hardsigmoid({})": F.hardsigmoid,
    "hardswish({})": F.hardswish,
    "tanh({})": torch.tanh,
    "erf({})": torch.erf,
    "gelu({})": F.gelu,
    "gelu_tanh({})": lambda x: F.gelu(x, approximate="tanh"),
    "mish({})": F.mish,
    "log_sigmoid({})": F.logsigmoid,
    "softplus({},1,20)": F.softplus,
    "elu({},1,1,1)": F.elu,
    "clamp({},-1,2)": lambda x: x.clamp(-1, 2),
    "leaky_relu({},0.1)": lambda x: F.leaky_relu(x, 0.1),
    "neg({})": torch.neg,
    "abs({})": torch.abs,
    "sin({})": torch.sin,
    "cos({})": torch.cos,
    "exp(neg(abs({})))": lambda x: torch.exp(-x.abs()),
    "log1p(square({}))": lambda x: torch.log1p(x * x),
    "rsqrt(add(square({}),1))": lambda x: torch.rsqrt(x * x + 1),
}


@dataclass(frozen=True)
class Value:
    """An expression, its value, and how far that in float32 may be from it."""

    text: str
    value: Tensor
    error: Tensor


def rounded(text: str, value: Tensor, error: Tensor) -> Value:
    return Value(text, value, error + 2 * HALF_ULP * value.abs())


def combined(draw: st.DrawFn, leaves: list[Value], depth: int) -> Value:
    """A tree over some values that is not deeper than ``depth``."""
    kinds = ["leaf", "unary", "unary", "add", "sub", "mul", "minimum", "maximum", "where", "div", "number"]
    kind = draw(st.sampled_from(kinds)) if depth else "leaf"
    if kind == "leaf":
        return draw(st.sampled_from(leaves))
    a = combined(draw, leaves, depth - 1)
    if kind == "number":
        factor = draw(st.sampled_from([0.5, 2.0, -1.25]))
        return rounded(f"mul({a.text},{factor:g})", a.value * factor, a.error * abs(factor))
    if kind == "unary":
        text, function = draw(st.sampled_from(list(UNARY.items())))
        made = function(a.value)
        return Value(text.format(a.text), made, STEEPEST * a.error + OF_SIZE * made.abs() + AT_ALL)
    b = combined(draw, leaves, depth - 1)
    larger = torch.maximum(*torch.broadcast_tensors(a.error, b.error))
    match kind:
        case "where":  # what is compared has no error
            one, other = (draw(st.sampled_from(leaves)) for _ in range(2))
            by = draw(st.sampled_from(["gt", "le", "ge", "lt"]))
            truth = getattr(torch, by)(one.value, other.value)
            made = torch.where(truth, a.value, b.value)
            return Value(f"where({by}({one.text},{other.text}),{a.text},{b.text})", made, larger)
        case "minimum" | "maximum":
            return Value(f"{kind}({a.text},{b.text})", getattr(torch, kind)(a.value, b.value), larger)
        case "mul":
            error = a.error * b.value.abs() + b.error * a.value.abs() + a.error * b.error
            return rounded(f"mul({a.text},{b.text})", a.value * b.value, error)
        case "div":
            made, below = a.value / (b.value.abs() + 1), b.value.abs() + 1
            error = (a.error + made.abs() * (b.error + HALF_ULP * below)) / below
            return rounded(f"div({a.text},add(abs({b.text}),1))", made, error)
    function = torch.add if kind == "add" else torch.sub
    return rounded(f"{kind}({a.text},{b.text})", function(a.value, b.value), a.error + b.error)


@st.composite
def expressions(draw: st.DrawFn) -> Case:
    batch, size, channels = draw(BATCH), (draw(st.integers(1, 9)), draw(st.integers(1, 9))), draw(ODD)
    order, random = draw(st.sampled_from(["nyxc", "nyxc", "ncyx"])), numbers(draw)
    extents = {"n": batch, "y": size[0], "x": size[1], "c": channels}
    has = [axis for axis in "nyxc" if extents[axis] > 1]

    def operand(name: str, full: bool, constant: bool) -> tuple[str, Value, Tensor]:
        own = [axis for axis in has if (full or draw(st.booleans())) and not (constant and axis == "n")]
        tensor = 2 * torch.randn([extents[a] if a in own else 1 for a in order], generator=random)
        return "".join(own) or "1", Value(name, tensor.double(), torch.zeros((), dtype=torch.float64)), tensor

    read = [operand(f"x{i}", i == 0, False) for i in range(draw(st.integers(1, 3)))]
    known = [operand(f"c{i}", False, True) for i in range(draw(st.integers(0, 2)))]
    leaves = [value for _, value, _ in (*read, *known)]
    result = combined(draw, leaves, 3)
    for _, value, _ in (*read, *known):  # a kernel reads what it is given
        if value.text not in result.text:
            result = rounded(f"add({result.text},{value.text})", result.value + value.value, result.error)
    key = KernelKey.make(
        "elementwise",
        size,
        batch,
        expr=result.text,
        reads=tuple(axes for axes, _, _ in read),
        constants=tuple(axes for axes, _, _ in known),
        order=order if order != "nyxc" else "",
    )
    shape = [extents[axis] for axis in order]
    operands = [tensor for _, _, tensor in (*read, *known)]
    return Case.of(key, (channels, channels), operands, result.value.expand(shape), result.error)
