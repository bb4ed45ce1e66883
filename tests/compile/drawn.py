"""Random kernels beside what PyTorch computes in float64, and how far float32 may be from it.

A case has the address of a kernel, the values that it reads as they lie in memory, and what it has to make of them.
Nothing of the reference is read off the address.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from aap_hw.compile.code.function import KernelFunction
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from tests.compile.random_kernels import EXPONENTIAL, HALF_ULP, STEEPEST, packed, random_tensors, reference
from tests.compile.running import Convolution

ODD = st.one_of(st.integers(1, 20), st.integers(1, 130))
BATCH = st.integers(1, 2)
# Steps behind a kernel, as PyTorch has them.
EPILOGUES: dict[tuple[str, ...], Callable[[Tensor], Tensor]] = {
    (): lambda x: x,
    ("relu",): torch.relu,
    ("silu",): torch.nn.functional.silu,
    ("gelu",): torch.nn.functional.gelu,
}


@dataclass(frozen=True)
class Case:
    """A kernel, what it reads, and what it has to make.

    Attributes
    ----------
    operands : in calling order, literals left out; the kernel packs its own weight.
    expected, tolerance : in the layout of the kernel's output.
    """

    address: Address
    operands: Callable[[KernelFunction], Sequence[np.ndarray]]
    expected: np.ndarray
    tolerance: np.ndarray

    @staticmethod
    def of(key: KernelKey, widths: tuple[int, int], operands: Sequence[Tensor], expected: Tensor, error: Any) -> Case:
        """A case of operands in float32 that the kernel takes as they are, but for a weight that it packs."""
        arrays = [operand.contiguous().numpy() for operand in operands]
        assert not any(array.dtype == np.float64 for array in arrays)

        def given(function: KernelFunction) -> list[np.ndarray]:
            roles = [argument.role for argument in function.arguments]
            pack = function.pack or (lambda weight: weight)
            return [pack(array) if role == "weight" else array for role, array in zip(roles, arrays, strict=False)]

        allowed = torch.as_tensor(error, dtype=torch.float64).expand(expected.shape)
        return Case(Address(key, widths), given, expected.double().numpy(), allowed.numpy())

    def __str__(self) -> str:
        return f"{self.address.key} at {self.address.width_in}, {self.address.width_out}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What hypothesis shows, which has all arrays otherwise."""
        printer.text(str(self))


def rounding(terms: int) -> float:
    """The error of a sum of so many terms for each unit of their sizes; see `test_random_kernels.reference`."""
    return (min(terms, 6 * math.sqrt(terms)) + 2) * HALF_ULP


def after(steps: tuple[str, ...], value: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """A value and its error behind an epilogue."""
    made = EPILOGUES[steps](value)
    return made, error if steps in ((), ("relu",)) else STEEPEST * error + EXPONENTIAL * (1 + made.abs())


def numbers(draw: st.DrawFn) -> torch.Generator:
    """A source of random numbers, which would be too many for hypothesis to draw."""
    return torch.Generator().manual_seed(draw(st.integers(0, 2**31)))


def of_convolution(case: Convolution) -> Case:
    """A convolution of images (N, C, H, W), whose kernel works on (N, H, W, C)."""
    tensors = random_tensors(case)
    expected, tolerance = (array.transpose(0, 2, 3, 1) for array in reference(case, tensors))
    return Case(case.address(), lambda function: packed(function, case, tensors), expected, tolerance)


@st.composite
def normalisations(draw: st.DrawFn) -> Case:
    op = draw(st.sampled_from(["layer_norm", "rms_norm", "group_norm", "group_norm"]))
    each = draw(st.one_of(st.just(1), st.integers(1, 24))) if op == "group_norm" else 0
    width = each * draw(st.integers(1, 1 + 130 // each)) if each else draw(st.one_of(ODD, st.integers(1, 1500)))
    batch, pixels = draw(BATCH), draw(st.one_of(ODD, st.integers(1, 1500) if each else ODD))
    is_affine, steps, epsilon = (
        draw(st.booleans()),
        draw(st.sampled_from(list(EPILOGUES))),
        10.0 ** -draw(st.integers(1, 6)),
    )
    random, offset = numbers(draw), draw(st.sampled_from([0.0, 3.0]))
    rows = offset + torch.randn(batch, pixels, width, generator=random)
    scale, shift = 1 + torch.rand(width, generator=random), torch.randn(width, generator=random)
    # (N, pixels, groups, channels of each) with what is summed up in the axes of `over`.
    x = rows.double().reshape(batch, pixels, -1, each or width)
    over, count = ((1, 3), pixels * each) if each else ((3,), width)
    error_of_mean = rounding(count) * x.abs().mean(over, keepdim=True)
    mean = x.mean(over, keepdim=True)
    if op == "rms_norm":
        mean, error_of_mean = torch.zeros_like(mean), torch.zeros_like(mean)
    variance = ((x - mean) ** 2).mean(over, keepdim=True) + epsilon
    made, relative = (x - mean) / variance.sqrt(), rounding(count) + error_of_mean**2 / variance
    error = (error_of_mean + 2 * HALF_ULP * x.abs()) / variance.sqrt() + made.abs() * relative
    made, error = made.reshape(rows.shape), error.reshape(rows.shape)
    if is_affine:
        made = made * scale.double() + shift.double()
        error = error * scale + 2 * HALF_ULP * (made.abs() + shift.abs())
    made, error = after(steps, made, error)
    key = KernelKey.make(
        op,
        (pixels, 1),
        batch,
        affine="1" if is_affine else "",
        eps=epsilon,
        each="all" if each == width else each or "",
        epilogue=steps,
    )
    operands = [rows.reshape(batch, pixels, 1, width), *([scale, shift] if is_affine else [])]
    return Case.of(key, (width, width), operands, made.unsqueeze(2), error.unsqueeze(2))


@st.composite
def reductions(draw: st.DrawFn) -> Case:
    kind = draw(st.sampled_from(["sum", "mean", "amax", "amin", "norm", "var", "std", "softmax", "log_softmax"]))
    inner = draw(st.one_of(st.just(1), ODD))
    shape = draw(st.integers(1, 5)), draw(st.one_of(ODD, st.integers(1, 3000 // inner + 1))), inner
    reduced, random = shape[1], numbers(draw)
    correction = draw(st.integers(0, 1)) if kind in ("var", "std") and reduced > 1 else 0
    x = draw(st.sampled_from([1.0, 20.0])) * torch.randn(shape, generator=random) + draw(st.sampled_from([0.0, 5.0]))
    wide, attributes = x.double(), dict[str, object]()
    if "softmax" in kind:
        # The difference from the largest value is rounded before it is an exponent.
        power = EXPONENTIAL + rounding(reduced) + 2 * HALF_ULP * (wide.amax(1, keepdim=True) - wide)
        made = wide.softmax(1) if kind == "softmax" else wide.log_softmax(1)
        error = made * power if kind == "softmax" else power + 3 * HALF_ULP * wide.abs()
        key = KernelKey.make("axis_softmax", (), 1, shape=shape, log="1" if kind == "log_softmax" else "")
        key = key.having(shape=",".join(map(str, shape)))
        return Case.of(key, (1, 1), [x], made, error.abs() + 1e-37)
    sizes, apart = wide.abs().sum(1), wide - wide.mean(1, keepdim=True)
    variance = (apart**2).sum(1) / max(reduced - correction, 1)
    of_variance = rounding(reduced) * (2 * variance + rounding(reduced) * (sizes / reduced) ** 2)
    made, error = {
        "sum": lambda: (wide.sum(1), rounding(reduced) * sizes),
        "mean": lambda: (wide.mean(1), rounding(reduced) * sizes / reduced),
        "amax": lambda: (wide.amax(1), 0 * sizes),
        "amin": lambda: (wide.amin(1), 0 * sizes),
        "norm": lambda: (wide.norm(dim=1), rounding(reduced) * wide.norm(dim=1)),
        "var": lambda: (wide.var(1, correction=correction), of_variance),
        "std": lambda: (wide.std(1, correction=correction), (variance + of_variance).sqrt() - variance.sqrt() + 1e-6),
    }[kind]()
    steps = draw(st.sampled_from(list(EPILOGUES)))
    made, error = after(steps, made, error)
    attributes = {"of": kind, "correction": correction or "", "epilogue": steps}
    key = KernelKey.make("reduce", (), 1, shape=",".join(map(str, shape)), **attributes)
    return Case.of(key, (1, 1), [x], made, error)


@dataclass(frozen=True)
class Lying:
    """A tensor as PyTorch sees it, the row of values that it is a view of, and how a key says so."""

    tensor: Tensor
    row: Tensor
    text: str


def lying(draw: st.DrawFn, random: torch.Generator, *shape: int) -> Lying:
    """A tensor whose axes lie in any order, some of them perhaps not at all, somewhere in a row of values."""
    order = draw(st.permutations(range(len(shape))) | st.just([0, 2, 1, 3]) | st.just([0, 1, 2, 3]))
    has = [draw(st.integers(0, 5)) > 0 if axis < 2 else True for axis in range(len(shape))]
    lengths = [shape[axis] if has[axis] else 1 for axis in order]
    before, behind = draw(st.integers(0, 9)), draw(st.integers(0, 9))
    row = torch.randn(before + math.prod(lengths) + behind, generator=random)
    lies = row[before : before + math.prod(lengths)].view(lengths)
    tensor = lies.permute([order.index(axis) for axis in range(len(shape))]).expand(shape)
    return Lying(tensor, row, f"{len(row)};{','.join(map(str, tensor.stride()))};{before}")


@st.composite
def products(draw: st.DrawFn) -> Case:
    n, heads, rows, inner, columns = draw(BATCH), draw(st.integers(1, 3)), draw(ODD), draw(ODD), draw(ODD)
    random, steps = numbers(draw), draw(st.sampled_from(list(EPILOGUES)))
    left, right = lying(draw, random, n, heads, rows, inner), lying(draw, random, n, heads, inner, columns)
    a, b = left.tensor.double(), right.tensor.double()
    made, error = after(steps, a @ b, rounding(inner) * (a.abs() @ b.abs()))
    known = draw(st.sampled_from(["", "", "left", "right"]))
    shape = f"{heads},{rows},{inner},{columns}"
    attributes = {"shape": shape, "left": left.text, "right": right.text, "constant": known, "epilogue": steps}
    operands = [right.row, left.row] if known == "left" else [left.row, right.row]
    return Case.of(KernelKey.make("matmul", (), n, **attributes), (1, 1), operands, made, error)


@st.composite
def attentions(draw: st.DrawFn) -> Case:
    n, queries, keys = draw(BATCH), draw(ODD), draw(ODD)
    inner, columns, random = draw(st.integers(1, 70)), draw(st.integers(1, 70)), numbers(draw)
    shapes = (queries, inner), (keys, inner), (keys, columns)
    shared, of_keys = draw(st.sampled_from([1, 1, 2])), draw(st.integers(1, 3))  # queries' heads share those of keys
    heads = shared * of_keys
    query = lying(draw, random, n, heads, *shapes[0])
    key, value = (lying(draw, random, n, of_keys, *shape) for shape in shapes[1:])
    masks = [lying(draw, random, n, heads, queries, keys) for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2])))]
    known = [draw(st.booleans()) for _ in (query, key, value, *masks)]
    is_hiding, is_causal, by_head = bool(masks) and draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    scale = draw(st.sampled_from(["", "0.3"]))
    factor = float(scale or 1 / math.sqrt(inner))
    q, k, v = (each.tensor.double() for each in (query, key, value))
    k, v = (each.repeat_interleave(shared, 1) for each in (k, v))
    scores, sizes = factor * (q @ k.mT), factor * (q.abs() @ k.abs().mT)
    for mask in masks:
        if is_hiding:
            scores = scores.masked_fill(mask.tensor <= 0, -math.inf)
        else:
            scores, sizes = scores + mask.tensor, sizes + mask.tensor.abs()
    if is_causal:
        scores = scores.masked_fill(torch.ones(queries, keys).triu(1) > 0, -math.inf)
    shares = scores.softmax(-1).nan_to_num(0.0)  # a query that sees no key takes nothing
    of_scores = (rounding(inner) + 4 * HALF_ULP) * sizes.amax(-1, keepdim=True)
    made = shares @ v
    error = (2 * of_scores + EXPONENTIAL + 2 * rounding(keys)) * (shares @ v.abs())
    names = ["mask", "mask_2"][: len(masks)]
    attributes: dict[str, object] = {
        "shape": f"{heads},{queries},{keys},{inner},{columns}",
        **dict(zip(("query", "key", "value", *names), (e.text for e in (query, key, value, *masks)), strict=True)),
        "masked": "unseen" if is_hiding else "",
        "masked_by": tuple("constant" if each else "computed" for each in known[3:]),
        "constant": tuple(name for name, each in zip(("query", "key", "value"), known, strict=False) if each),
        "shared": shared if shared > 1 else "",
        "causal": "1" if is_causal else "",
        "made": "heads" if by_head else "",
        "scale": scale,
    }
    read = list(zip((query, key, value, *masks), known, strict=True))
    operands = [each.row for wanted in (False, True) for each, is_known in read if is_known == wanted]
    if not by_head:
        made, error = made.transpose(1, 2), error.transpose(1, 2)
    return Case.of(KernelKey.make("attention", (), n, **attributes), (1, 1), operands, made, error)
