"""Proves that the functions of element-wise expressions keep within the errors that they state, over the whole range.

The exact values are PyTorch's in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.approximations import sigmoid_for_bytes, silu_for_bytes
from aap_hw.compile.code.functions import CODE, value_of
from aap_hw.compile.cpu.emit import Tensor, kernel_code, lane_loop
from aap_hw.compile.families.expression import FUNCTIONS, Term, depth_of, parse, text_of
from aap_hw.errors import UserError
from tests.compile.running import target

LANES = 16


@dataclass(frozen=True)
class Case:
    """A function of x, how PyTorch computes it, and its error: so much of its size, or so much at all."""

    text: str
    function: Callable[[torch.Tensor], torch.Tensor]
    of_size: float = 1e-7
    at_all: float = 1e-37
    within: float = 3e38
    value: Callable[[Any], Any] | None = None  # in place of that of the text


CASES = [
    Case("tanh(x)", torch.tanh, 5e-7),
    Case("erf(x)", torch.erf, 5e-7),
    Case("gelu(x)", F.gelu, 5e-7, 1e-6),
    Case("gelu_tanh(x)", lambda x: F.gelu(x, approximate="tanh"), 5e-7, 1e-6),
    Case("exp(x)", torch.exp, 3e-7),
    Case("isnan(x)", lambda x: x.isnan().to(x.dtype)),
    Case("expm1(x)", torch.expm1, 5e-7, within=88),
    Case("log(x)", torch.log, 3e-7),
    Case("log1p(x)", torch.log1p, 5e-7),
    Case("softplus(x,1,20)", F.softplus, 5e-7),
    Case("softplus(x,2,3)", lambda x: F.softplus(x, 2, 3), 5e-7),
    Case("mish(x)", F.mish, 1e-6, 1e-30),
    Case("log_sigmoid(x)", F.logsigmoid, 5e-7),
    Case("elu(x,1,1,1)", F.elu, 5e-7),
    Case("elu(x,1.67326324,1.05070099,1)", F.selu, 5e-7),
    Case("elu(x,0.5,1,2)", lambda x: F.celu(x, 0.5), 5e-7),
    Case("leaky_relu(x,0.1)", lambda x: F.leaky_relu(x, 0.1)),
    Case("clamp(x,-1,2)", lambda x: F.hardtanh(x, -1, 2)),
    Case("pow(x,3)", lambda x: x**3, 2e-7),
    Case("pow(x,4)", lambda x: x**4, 3e-7),
    Case("pow(x,5)", lambda x: x**5, 3e-7 * 450),
    Case("pow(x,-2)", lambda x: x**-2, 3e-7 * 180),
    Case("pow(x,1.7)", lambda x: x**1.7, 3e-7 * 150),
    Case("pow(2,x)", lambda x: 2**x, 3e-7 * 100),
    Case("square(x)", torch.square),
    Case("sqrt(x)", torch.sqrt),
    Case("rsqrt(x)", torch.rsqrt, 2e-7),
    Case("reciprocal(x)", torch.reciprocal),
    Case("abs(x)", torch.abs),
    Case("neg(x)", torch.neg),
    Case("sign(x)", torch.sign),
    Case("floor(x)", torch.floor),
    Case("ceil(x)", torch.ceil),
    Case("trunc(x)", torch.trunc),
    Case("round(x)", torch.round),
    Case("quotient(x,41)", lambda x: x / 41),
    Case("floor_divide(x,0.75)", lambda x: torch.floor_divide(x, 0.75), within=1e30),
    Case("trunc_divide(x,-0.75)", lambda x: torch.div(x, -0.75, rounding_mode="trunc"), within=1e30),
    Case("remainder(x,-0.75)", lambda x: torch.remainder(x, -0.75), within=1e7),
    Case("fmod(x,0.75)", lambda x: torch.fmod(x, 0.75), within=1e7),
    Case("power(x,3)", lambda x: x**3, 3e-7 * 250),
    Case("power(x,-2)", lambda x: x**-2, 3e-7 * 180),
    Case("power(x,0)", lambda x: x**0),
    Case("power(x,1.75)", lambda x: x**1.75, 3e-7 * 150),
    Case("power(-2,floor(x))", lambda x: (-2) ** x.floor(), 3e-7 * 100),
    Case("sin(x)", torch.sin, 0, 3e-7, within=8000),
    Case("cos(x)", torch.cos, 0, 3e-7, within=8000),
    Case("relu(x)", F.relu),
    Case("relu6(x)", F.relu6),
    Case("hardsigmoid(x)", F.hardsigmoid, 2e-7, 2e-7),
    Case("hardswish(x)", F.hardswish, 2e-7, 2e-7),
    Case("sigmoid(x)", torch.sigmoid, 1e-6),
    Case("silu(x)", F.silu, 1e-6, 1e-7, within=1e30),
    Case("sigmoid for bytes", torch.sigmoid, 0, 3e-7, value=sigmoid_for_bytes),
    Case("silu for bytes", F.silu, 3e-7, 5e-7, 1e30, silu_for_bytes),
    Case(
        "where(logical_and(gt(x,-1),le(x,2)),add(x,1),sub(x,3))",
        lambda x: torch.where((x > -1) & (x <= 2), x + 1, x - 3),
    ),
    Case(
        "where(logical_or(lt(x,-1),ge(x,2)),mul(x,3),div(x,3))",
        lambda x: torch.where((x < -1) | (x >= 2), x * 3, x / 3),
    ),
    Case("add(eq(x,1),logical_not(ne(x,0)))", lambda x: (x == 1).double() + (x == 0).double()),
    Case(
        "where(gt(x,-1),x,-3.4028235e+38)",
        lambda x: torch.where(x > -1, x, torch.finfo(torch.float32).min),
        within=3.41e38,
    ),
    Case("minimum(maximum(x,-5),5)", lambda x: x.clamp(-5, 5)),
    Case(
        "silu(gelu(tanh(exp(mul(x,0.1)))))", lambda x: F.silu(F.gelu(torch.tanh(torch.exp(x * 0.1)))), 2e-6, within=100
    ),
]


def numbers() -> np.ndarray:
    """Of all sizes, both signs, and close together where functions bend."""
    random = np.random.default_rng(0)
    sizes = np.exp(random.uniform(-87, 88, 20000)) * random.choice([-1, 1], 20000)
    special = [0.0, np.inf, -np.inf, 1.0, -1.0, 1e-40, 3.95, 9.0, 1e30, -1e30]
    small, wide = np.linspace(-12, 12, 48001), np.linspace(-130, 130, 20001)
    values = np.concatenate([small, wide, random.normal(size=9000) * 1e-3, sizes, special]).astype("float32")
    return np.resize(values, -(-len(values) // LANES) * LANES)


def test_functions_keep_within_the_errors_that_they_state() -> None:
    x = numbers()

    def kernel(case: Case) -> Any:
        def body(taken: Any, made: Any) -> None:
            with T.serial(0, len(x) // LANES) as step, lane_loop(LANES) as lane:
                at = step * LANES + lane
                value = case.value(taken[at]) if case.value else value_of(parse(case.text), {"x": taken[at]})
                T.buffer_store(made, value, [at])

        return kernel_code([Tensor("taken", x.shape, "float32"), Tensor("made", x.shape, "float32")], body)

    codes = {f"case_{i}": kernel(case).with_attr("global_symbol", f"case_{i}") for i, case in enumerate(CASES)}
    library = tvm.compile(tvm.IRModule(codes), target=target().tvm).jit()
    for i, case in enumerate(CASES):
        output = tvm.runtime.tensor(np.full_like(x, np.nan))
        library[f"case_{i}"](tvm.runtime.tensor(x), output)
        actual, expected = output.numpy(), case.function(torch.from_numpy(x).double()).numpy()
        with np.errstate(over="ignore"):
            is_finite = np.isfinite(expected.astype("float32"))
        asked = is_finite & np.isfinite(x) & (np.abs(x) <= case.within)
        error = np.abs(actual[asked] - expected[asked])
        allowed = case.of_size * np.abs(expected[asked]) + case.at_all
        worst = int((error - allowed).argmax())
        assert error[worst] <= allowed[worst], f"{case.text} of {x[asked][worst]}"
        if case.within > 1e38:  # what float32 does not hold is infinite, and what is not a number is none
            is_nan = np.isnan(expected)
            np.testing.assert_array_equal(actual[is_nan & np.isfinite(x)], np.nan, err_msg=case.text)
            beyond = ~is_finite & ~is_nan & np.isfinite(x)
            assert np.array_equal(actual[beyond], np.sign(expected[beyond]) * np.inf), case.text


def test_every_function_is_tried_here() -> None:
    assert CODE.keys() == FUNCTIONS.keys()
    assert {name for name in FUNCTIONS if any(f"{name}(" in case.text for case in CASES)} == FUNCTIONS.keys()


def test_text_of_an_expression_is_read_back_as_what_it_was() -> None:
    expression = Term("clamp", (Term("mul", ("x0", -0.1)), float("-inf"), 1e20))
    assert text_of(expression) == "clamp(mul(x0,-0.1),-1e999,1e20)"
    assert parse(text_of(expression)) == expression


def test_depth_is_that_of_the_functions_that_are_nested() -> None:
    assert depth_of(parse("add(mul(gelu(x),2),abs(abs(x)))")) == 1 + 1 + 3
    assert depth_of(parse("silu(silu(add(x,silu(x))))")) == 3 + 3 + 1 + 3


@pytest.mark.parametrize("text", ["erfinv(x)", "add(x)", "open(x)", "x.y", "add(x,'1')", "add(x", "__import__"])
def test_what_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no expression of this version"):
        parse(text)
