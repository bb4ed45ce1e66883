"""Attention scores follow the published formula, whatever way the images were divided into batches."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aap_hw.attention import REDUCTIONS, ActivationSums
from aap_hw.errors import UserError

FORMULAS = {
    "mean": lambda powers: sum(powers) / len(powers),
    "sum": sum,
    "max": max,
}


def by_the_formula(activation, reduction, p):
    """A_c written out with loops over channels and pixels, in Python numbers."""
    images, channels = activation.shape[:2]
    maps = activation.abs().reshape(images, channels, -1).tolist()
    scores = []
    for c in range(channels):
        pixels = range(len(maps[0][c]))
        powers = [(math.fsum(image[c][xy] for image in maps) / images) ** p for xy in pixels]
        scores.append(FORMULAS[reduction](powers))
    return scores


def added(*batches):
    sums = ActivationSums()
    for batch in batches:
        sums.add(batch)
    return sums


@pytest.mark.parametrize("p", [1, 2, 0.5])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(5, 3, 4, 2), (5, 3, 1, 1), (5, 3), (1, 2, 3, 3)])
def test_scores_equal_the_formula(shape, reduction, p):
    activation = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = by_the_formula(activation, reduction, p)
    np.testing.assert_allclose(added(activation).scores(reduction, p), expected, rtol=1e-12)


def test_the_power_is_taken_after_the_mean_over_images_and_before_the_mean_over_pixels():
    activation = torch.tensor([1.0, 3.0, 5.0, 7.0]).reshape(2, 1, 1, 2)  # mean over images: 3 and 5
    assert added(activation).scores("mean", 2).tolist() == [(9 + 25) / 2]
    assert added(activation).scores("sum", 2).tolist() == [9 + 25]
    assert added(activation).scores("max", 2).tolist() == [25]


@settings(max_examples=50)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.sampled_from(REDUCTIONS), st.integers(0, 999))
def test_any_division_into_batches_gives_the_scores_of_one_batch(lengths, reduction, seed):
    generator = torch.Generator().manual_seed(seed)
    activation = torch.randn(sum(lengths), 4, 3, 3, generator=generator)
    parts = activation.split(lengths)
    whole = added(activation).scores(reduction, 2)
    sums = added(*parts)
    assert sums.images == len(activation)
    np.testing.assert_allclose(sums.scores(reduction, 2), whole, rtol=1e-12)


def test_memory_is_one_map_however_many_images():
    sums = added(*[torch.ones(7, 3, 2, 2)] * 20)
    assert sums.total.shape == (3, 2, 2)
    assert sums.images == 140


def test_maps_of_another_size_are_refused():
    sums = added(torch.ones(1, 3, 4, 4))
    for other in (torch.ones(1, 3, 1, 1), torch.ones(1, 1, 4, 4)):
        with pytest.raises(ValueError, match="do not add"):
            sums.add(other)
    assert sums.images == 1


def test_scores_without_images_are_refused():
    with pytest.raises(ValueError, match="no image"):
        ActivationSums().scores()


@pytest.mark.parametrize(
    ("reduction", "p", "complaint"),
    [
        ("men", 1, "did you mean 'mean'"),
        ("average", 1, "use one of mean, sum, max"),
        ("mean", 0, "positive number"),
        ("mean", -1, "positive number"),
        ("mean", math.nan, "positive number"),
        ("mean", math.inf, "positive number"),
    ],
)
def test_a_score_that_does_not_exist_is_refused(reduction, p, complaint):
    with pytest.raises(UserError, match=complaint):
        added(torch.ones(1, 1, 1, 1)).scores(reduction, p)
