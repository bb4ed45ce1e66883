"""Proves that a network's slowdown is found from whole networks, and that few or bad measurements do no harm."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aap_hw.lut.calibrating import ALONE, MOST_TILT, Observation, Slowdown, fitted_slowdown, uncertainty

MICROSECONDS = st.floats(1.0, 1e6)


def observations(slowdown: Slowdown, count: int, noise: float = 0.0, seed: int = 0) -> list[Observation]:
    """Networks whose kernels take 1 to 6 ms."""
    random = np.random.default_rng(seed)
    sums = random.uniform(1000, 6000, count)
    return [Observation(us, slowdown.network_us(us) * float(random.lognormal(0, noise))) for us in sums.tolist()]


@given(st.floats(0.8, 2.0), st.floats(-0.2, 0.2), st.integers(0, 50))
def test_networks_that_were_not_seen_are_predicted_from_a_dozen(scale: float, tilt: float, seed: int) -> None:
    true = Slowdown(6000.0, 6000.0 * scale, tilt)
    found = fitted_slowdown(observations(true, 13, noise=0.01, seed=seed))
    for other in observations(true, 20, seed=1000 + seed):
        assert found.network_us(other.alone_us) == pytest.approx(other.measured_us, rel=0.04)


@given(MICROSECONDS, MICROSECONDS)
def test_one_network_scales_all_by_its_ratio(alone_us: float, measured_us: float) -> None:
    found = fitted_slowdown([Observation(alone_us, measured_us)])
    assert found.tilt == 0
    assert found.network_us(2 * alone_us) == pytest.approx(2 * measured_us)


@given(st.lists(st.tuples(MICROSECONDS, MICROSECONDS), min_size=1, max_size=6), MICROSECONDS)
def test_more_work_takes_longer_whatever_was_measured(pairs: list[tuple[float, float]], us: float) -> None:
    found = fitted_slowdown([Observation(*pair) for pair in pairs])
    assert 0 < found.network_us(us) < found.network_us(1.001 * us)
    assert found.network_us(found.alone_us) == pytest.approx(found.measured_us)


def test_the_smallest_and_the_largest_networks_differ_by_the_most_tilt_at_most() -> None:
    found = fitted_slowdown([Observation(1.0, 1.0), Observation(1000.0, 9000.0)])
    ratios = [found.network_us(us) / us for us in (1.0, 1000.0)]
    assert ratios[1] - ratios[0] == pytest.approx(MOST_TILT * 5, rel=0.01)


def test_beyond_the_largest_network_the_ratio_stays() -> None:
    slowdown = Slowdown(2000.0, 2400.0, 0.3)
    assert slowdown.network_us(1000.0) / 1000.0 < 1.2
    assert slowdown.network_us(9000.0) / 9000.0 == pytest.approx(1.2)


def test_one_disturbed_network_hardly_moves_the_others() -> None:
    networks = observations(ALONE, 13)
    networks[0] = Observation(networks[0].alone_us, 1.3 * networks[0].measured_us)
    found = fitted_slowdown(networks)
    assert all(found.network_us(o.alone_us) == pytest.approx(o.measured_us, rel=0.06) for o in networks[1:])


@given(st.floats(0.8, 2.0), st.floats(-0.9, 0.9), MICROSECONDS)
def test_what_the_kernels_may_take_is_the_inverse(scale: float, tilt: float, us: float) -> None:
    slowdown = Slowdown(2000.0, 2000.0 * scale, tilt)
    assert slowdown.alone_of(slowdown.network_us(us)) == pytest.approx(us, rel=1e-4)


def test_without_networks_a_network_takes_what_its_kernels_take() -> None:
    assert fitted_slowdown([]) == ALONE
    assert ALONE.network_us(123.0) == 123.0


@pytest.mark.parametrize("noise", [0.01, 0.05])
def test_the_uncertainty_is_how_far_off_lines_through_other_networks_are(noise: float) -> None:
    true = Slowdown(6000.0, 6600.0, 0.0)
    several = [observations(true, 9, noise, seed) for seed in range(200)]
    off = [fitted_slowdown(each).network_us(3500.0) / true.network_us(3500.0) - 1 for each in several]
    told = np.mean(np.square([uncertainty(each) for each in several])) ** 0.5
    assert told == pytest.approx(np.std(off), rel=0.2)


def test_two_networks_leave_a_line_wholly_uncertain() -> None:
    assert uncertainty(observations(ALONE, 2)) == float("inf")
    assert uncertainty(observations(ALONE, 3)) == pytest.approx(0.0, abs=1e-9)
