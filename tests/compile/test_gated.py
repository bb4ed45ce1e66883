"""Proves that swish and hard-swish by straight lines in 16 bits are as near to the functions as stated."""

from __future__ import annotations

import numpy as np
import pytest

from aap_hw.compile.code.tables import FUNCTIONS
from aap_hw.compile.cpu.int8.gated import BUMPS, PIECES, Lines, largest_error
from aap_hw.compile.keys.precision import Scale

STEPS = np.geomspace(0.001, 1.0, 16)


@pytest.mark.parametrize("zero", [0, 12, 255])
@pytest.mark.parametrize("name", BUMPS)
def test_what_is_made_is_within_the_stated_error_of_the_function(name: str, zero: int) -> None:
    """Beside it, half a step is due to the last rounding."""
    for step in STEPS:
        made = Scale(float(step), zero)
        x = np.concatenate([np.linspace(-10, 10, 4001), np.linspace(-256, 256, 999) * step])
        exact = np.clip(FUNCTIONS[name](x) / step + zero, 0, 255)
        off = np.abs(Lines.of(name, made).evaluated(x, made) - exact) - 0.5
        assert off.max() < largest_error(step) / step, step


@pytest.mark.parametrize("name", BUMPS)
def test_a_bump_is_what_the_function_lacks(name: str) -> None:
    bump, x = BUMPS[name], np.linspace(0, 30, 5001)
    assert np.allclose(x - bump.of(x), FUNCTIONS[name](x), atol=1e-12)
    assert np.allclose(-bump.of(x), FUNCTIONS[name](-x), atol=1e-12)
    assert bump.highest - 1e-5 < bump.of(x).max() <= bump.highest


@pytest.mark.parametrize("name", BUMPS)
def test_a_wrong_number_in_the_table_is_seen(name: str) -> None:
    made = Scale(0.01, 30)
    lines, x = Lines.of(name, made), np.linspace(-8, 8, 4001)
    right = lines.evaluated(x, made).astype(int)
    for piece in range(PIECES // 4):
        for numbers in (lines.heights, lines.slopes):
            before, numbers[piece] = numbers[piece], numbers[piece] ^ 16
            assert np.abs(lines.evaluated(x, made) - right).max() > 0, piece
            numbers[piece] = before
