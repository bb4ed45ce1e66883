"""Proves that a network's slowdown is found from whole networks, and that few or bad measurements do no harm."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aap_hw.lut.calibrating import ALONE, EXPONENT_SPREAD, Observation, Slowdown, fitted_slowdown

MICROSECONDS = st.floats(1.0, 1e6)


def observations(slowdown: Slowdown, count: int, noise: float = 0.0, seed: int = 0) -> list[Observation]:
    """Networks whose kernels take 1 to 6 ms."""
    random = np.random.default_rng(seed)
    sums = random.uniform(1000, 6000, count)
    return [Observation(us, slowdown.network_us(us) * float(random.lognormal(0, noise))) for us in sums.tolist()]


@given(st.floats(0.8, 2.0), st.floats(0.9, 1.1), st.integers(0, 50))
def test_networks_that_were_not_seen_are_predicted_from_a_dozen(scale: float, exponent: float, seed: int) -> None:
    true = Slowdown(3000.0, 3000.0 * scale, exponent)
    found = fitted_slowdown(observations(true, 13, noise=0.01, seed=seed))
    for other in observations(true, 20, seed=1000 + seed):
        assert found.network_us(other.alone_us) == pytest.approx(other.measured_us, rel=0.04)


@given(MICROSECONDS, MICROSECONDS)
def test_one_network_scales_all_by_its_ratio(alone_us: float, measured_us: float) -> None:
    found = fitted_slowdown([Observation(alone_us, measured_us)])
    assert found.exponent == 1
    assert found.network_us(2 * alone_us) == pytest.approx(2 * measured_us)


@given(st.lists(st.tuples(MICROSECONDS, MICROSECONDS), min_size=1, max_size=6))
def test_exponent_stays_within_reason_whatever_was_measured(pairs: list[tuple[float, float]]) -> None:
    found = fitted_slowdown([Observation(*pair) for pair in pairs])
    assert abs(found.exponent - 1) <= 3 * EXPONENT_SPREAD + 1e-12
    assert found.network_us(10.0) < found.network_us(11.0)


def test_one_disturbed_network_hardly_moves_the_others() -> None:
    networks = observations(ALONE, 13)
    networks[0] = Observation(networks[0].alone_us, 1.3 * networks[0].measured_us)
    found = fitted_slowdown(networks)
    assert all(found.network_us(o.alone_us) == pytest.approx(o.measured_us, rel=0.06) for o in networks[1:])


@given(st.floats(0.8, 2.0), st.floats(0.7, 1.3), MICROSECONDS)
def test_what_the_kernels_may_take_is_the_inverse(scale: float, exponent: float, us: float) -> None:
    slowdown = Slowdown(2000.0, 2000.0 * scale, exponent)
    assert slowdown.alone_of(slowdown.network_us(us)) == pytest.approx(us)


def test_without_networks_a_network_takes_what_its_kernels_take() -> None:
    assert fitted_slowdown([]) == ALONE
    assert ALONE.network_us(123.0) == 123.0
