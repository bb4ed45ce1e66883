"""Movements of values, drawn at random."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st
from torch import Tensor

from aap_hw.compile.front.views import View
from aap_hw.graph import WidthExpr


def moved_at_random(draw: st.DrawFn, view: View, values: Tensor) -> tuple[View, Tensor]:
    """One more movement of a view, and of the values themselves as PyTorch moves them."""
    shape, axis = values.shape, draw(st.integers(0, values.dim() - 1))
    size = shape[axis]
    match draw(st.sampled_from(["permute", "split", "join", "slice", "select", "roll", "repeat", "each", "windows"])):
        case "permute":
            order = draw(st.permutations(range(len(shape))))
            return view.permuted(order), values.permute(order)
        case "split":
            inner = draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0]))
            made = [*shape[:axis], size // inner, inner, *shape[axis + 1 :]]
            return view.reshaped([WidthExpr(each) for each in made], made), values.reshape(made)
        case "join":
            made = [*shape[:axis], math.prod(shape[axis : axis + 2]), *shape[axis + 2 :]]
            return view.reshaped([WidthExpr(each) for each in made], made), values.reshape(made)
        case "slice":
            step, first = draw(st.sampled_from([-1, 1, 2])), draw(st.integers(0, size - 1))
            places = range(first, size, step) if step > 0 else range(first, -1, -1)
            made = view.sliced(axis, WidthExpr(first), WidthExpr(len(places)), len(places), step)
            return made, values.index_select(axis, torch.tensor(places))
        case "select" if len(shape) > 1:
            place = draw(st.integers(0, size - 1))
            return view.selected(axis, place), values.select(axis, place)
        case "roll":
            shift = draw(st.integers(-size, 2 * size))
            return view.rolled(axis, shift, size), values.roll(shift, axis)
        case "repeat":
            times = [1 + (dim == axis) for dim in range(len(shape))]
            return view.repeated(axis, 2), values.repeat(times)
        case "each":
            return view.repeated(axis, 2, each=True), values.repeat_interleave(2, axis)
        case "windows" if size > 1:
            return view.windows(axis, size - 1, 2, 1), values.unfold(axis, 2, 1)
    return view, values
