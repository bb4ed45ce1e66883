"""Normalised scores keep the order of a group's channels and forget its scale."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aap_hw.attention import SCALES, scaled

SCALED = [name for name in SCALES if name != "raw"]


@pytest.mark.parametrize("how", SCALES)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=12))
def test_channels_keep_their_order(how, scores):
    scores = np.array(scores, dtype=float)
    (found,) = scaled({"g": scores}, how).values()
    assert (np.sign(scores[:, None] - scores) == np.sign(found[:, None] - found)).all()
    assert np.isfinite(found).all()
    assert (found >= 0).all()


@pytest.mark.parametrize("how", SCALED)
def test_a_groups_scale_makes_no_difference(how):
    scores = np.random.default_rng(0).random(9)
    found = scaled({"quiet": scores, "loud": 1e4 * scores}, how)
    assert found["quiet"] == pytest.approx(found["loud"])


def test_what_becomes_one():
    scores = np.array([1.0, 4.0, 2.0, 5.0])
    found = {how: scaled({"g": scores}, how)["g"] for how in SCALES}
    assert (found["raw"] == scores).all()
    assert found["mean"].mean() == pytest.approx(1)
    assert (found["l2"] ** 2).mean() == pytest.approx(1)
    assert found["max"].max() == 1
    assert found["rank"] == pytest.approx([0.25, 0.75, 0.5, 1.0])
    assert scaled({"g": np.array([3.0, 3.0])}, "rank")["g"] == pytest.approx([0.75, 0.75])


@pytest.mark.parametrize("how", SCALES)
def test_a_group_without_any_attention_is_no_error(how):
    assert np.isfinite(scaled({"g": np.zeros(3)}, how)["g"]).all()
