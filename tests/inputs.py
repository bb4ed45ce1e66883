"""Inputs of all kinds that networks take, for property tests."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from aap_hw.inputs import TYPES, Input, Inputs

shapes = st.lists(st.integers(1, 9), max_size=5).map(tuple)
names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True).filter(lambda name: not hasattr(torch, name))


@st.composite
def inputs_of_all_kinds(draw: st.DrawFn) -> Inputs:
    """Any number of tensors of any shape and type, those without a name first."""
    unnamed, named = draw(st.integers(0, 3)), draw(st.lists(names, max_size=3, unique=True))
    wanted = [*[None] * unnamed, *named] or [None]
    return Inputs(tuple(Input(draw(shapes), draw(st.sampled_from(TYPES)), name) for name in wanted))
