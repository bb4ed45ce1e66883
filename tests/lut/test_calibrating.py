"""Proves that factors of kernels are found from whole networks, and that few or bad measurements do no harm."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aap_hw.compile.kernel import KernelKey
from aap_hw.lut.calibrating import FACTOR_SPREAD, LEAST, MOST, Observation, fitted_factors

KEYS = [KernelKey.make("conv2d", (size, size), 1, kernel=(1, 1)) for size in (7, 14, 28, 56)]


def observations(factors: list[float], count: int, noise: float = 0.0, seed: int = 0) -> list[Observation]:
    """Networks of kernels of 50 to 500 µs in which each takes its factor times as long."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        alone = random.uniform(50, 500, len(factors))
        measured = float(alone @ factors) * float(random.normal(1, noise))
        made.append(Observation(dict(zip(KEYS, alone.tolist(), strict=False)), measured))
    return made


def predicted(factors: dict[KernelKey, float], network: Observation) -> float:
    return sum(us * factors[key] for key, us in network.kernels_us.items())


def errors(factors: dict[KernelKey, float], networks: list[Observation]) -> np.ndarray:
    return np.array([predicted(factors, network) / network.measured_us - 1 for network in networks])


def test_factors_that_differ_are_found_from_a_dozen_networks() -> None:
    true = [1.0, 1.1, 0.9, 1.5]
    found = fitted_factors(observations(true, 13))
    assert list(found) == KEYS
    assert list(found.values()) == pytest.approx(true, abs=0.03)


@given(st.lists(st.floats(0.8, 1.6), min_size=1, max_size=4), st.integers(0, 50))
def test_networks_that_were_not_seen_are_predicted_better_than_by_one_factor_for_all(
    true: list[float], seed: int
) -> None:
    seen, others = observations(true, 13, noise=0.01, seed=seed), observations(true, 40, seed=1000 + seed)
    found = fitted_factors(seen)
    common = float(np.median([o.measured_us / sum(o.kernels_us.values()) for o in seen]))
    by_one = errors(dict.fromkeys(KEYS[: len(true)], common), others)
    assert np.abs(errors(found, others)).mean() <= np.abs(by_one).mean() + 0.006


@given(st.floats(LEAST, MOST), st.integers(1, 3))
def test_factor_that_all_kernels_have_in_common_is_found_from_one_network(common: float, count: int) -> None:
    found = fitted_factors(observations([common] * 4, count))
    assert list(found.values()) == pytest.approx([common] * 4, rel=1e-6)


def test_one_disturbed_network_moves_no_factor_far() -> None:
    networks = observations([1.0] * 4, 13)
    slow = networks[0]
    networks[0] = Observation(slow.kernels_us, 1.3 * slow.measured_us)
    assert all(abs(factor - 1) < FACTOR_SPREAD for factor in fitted_factors(networks).values())


@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=5))
def test_factors_stay_within_reason_whatever_was_measured(latencies: list[float]) -> None:
    networks = [
        Observation(o.kernels_us, us) for o, us in zip(observations([1.0] * 4, len(latencies)), latencies, strict=True)
    ]
    assert all(LEAST <= factor <= MOST for factor in fitted_factors(networks).values())


def test_known_factors_stay_and_the_others_make_up_for_them() -> None:
    true = [1.4, 1.0, 1.2, 1.0]
    fixed = {KEYS[0]: 1.4, KEYS[1]: 1.0}
    found = fitted_factors(observations(true, 13), fixed)
    assert list(found) == KEYS[2:]
    assert list(found.values()) == pytest.approx(true[2:], abs=0.02)
    assert fitted_factors(observations(true, 3), dict.fromkeys(KEYS, 1.0)) == {}


def test_without_networks_there_are_no_factors() -> None:
    assert fitted_factors([]) == {}
