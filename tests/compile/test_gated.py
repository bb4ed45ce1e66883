"""Proves that swish and hard-swish by straight lines in 16 bits are as near to the functions as stated."""

from __future__ import annotations

import numpy as np
import pytest

from aap_hw.compile.code.quantized import GATED, LEAST_STEP
from aap_hw.compile.code.tables import FUNCTIONS
from aap_hw.compile.cpu.int8.gated import BUMPS, LENGTH, ONE, PIECES, Lines, largest_error
from aap_hw.compile.keys.precision import Scale
from aap_hw.errors import UserError

STEPS = np.geomspace(LEAST_STEP, 4.0, 16)
APART = 8
"""Of the zero points for one step; those for the next begin one further on."""
PLACES = np.concatenate([np.linspace(-10, 10, 301), np.linspace(-0.5, 0.5, 51)])
FAR = 1000.0


def most_off(name: str, made: Scale) -> float:
    """How many steps a result is from the function at most, beside what the last rounding may be off."""
    lines = Lines.of(name, made)
    largest = (ONE - 1 - lines.zero) * lines.unit  # beyond it there are no numbers
    x = np.concatenate([PLACES, np.linspace(-256, 256, 301) * made.scale, largest * np.linspace(0.9, 1.3, 301)])
    x = np.concatenate([x, [-FAR * made.scale, FAR * made.scale]])
    exact = np.clip(FUNCTIONS[name](x) / made.scale + made.zero_point, 0, 255)
    return float(np.abs(lines.evaluated(x, made) - exact).max()) - 0.5


@pytest.mark.parametrize("name", BUMPS)
def test_what_is_made_is_within_the_stated_error_of_the_function(name: str) -> None:
    assert (largest_error(0.02) / 0.02, largest_error(0.1) / 0.1) == pytest.approx((0.11, 0.05), abs=0.005)
    for i, step in enumerate(STEPS):
        for zero in {0, *range(i % APART, 256, APART), 255}:
            made = Scale(float(step), zero)
            assert most_off(name, made) < largest_error(made.scale) / made.scale, made


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("hardswish", Scale(0.0517, 196)),
        ("hardswish", Scale(0.1, 242)),
        ("silu", Scale(1.0, 248)),
        # Here the largest x was not enough for the largest byte.
        ("silu", Scale(0.1, 238)),
        ("hardswish", Scale(0.0517, 230)),
    ],
)
def test_the_largest_numbers_neither_wrap_around_nor_stop_short(name: str, made: Scale) -> None:
    assert most_off(name, made) < largest_error(made.scale) / made.scale
    assert Lines.of(name, made).evaluated(np.array([FAR]), made) == 255


def test_steps_that_are_too_small_are_refused() -> None:
    with pytest.raises(UserError, match=r"silu is quantised in steps of 0.0003, but .* 0.001 or more"):
        Lines.of("silu", Scale(0.0003, 255))


@pytest.mark.parametrize("name", BUMPS)
def test_a_bump_is_what_the_function_lacks(name: str) -> None:
    bump, x = BUMPS[name], np.linspace(0, 30, 5001)
    assert np.allclose(x - bump.of(x), FUNCTIONS[name](x), atol=1e-12)
    assert np.allclose(-bump.of(x), FUNCTIONS[name](-x), atol=1e-12)
    assert bump.highest - 1e-5 < bump.of(x).max() <= bump.highest
    assert name in GATED


@pytest.mark.parametrize("name", BUMPS)
def test_a_wrong_number_in_the_table_is_seen(name: str) -> None:
    made = Scale(0.01, 100)
    lines = Lines.of(name, made)
    x = np.linspace(-PIECES * LENGTH * lines.unit, 0, 2001)
    right = lines.evaluated(x, made).astype(int)
    for piece in range(PIECES):
        for numbers in (lines.heights, lines.slopes):
            before, numbers[piece] = numbers[piece], numbers[piece] ^ 16
            assert np.abs(lines.evaluated(x, made) - right).max() > 0, piece
            numbers[piece] = before
