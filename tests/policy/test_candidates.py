"""Candidate widths are what the device can use, and the channels kept at each width are the best ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aap_hw.policy import best_channels, candidate_widths, kept_share

positive = st.integers(1, 3000)
scores_of_a_group = hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 1e12))


@given(positive, st.integers(1, 64), st.integers(1, 32))
def test_candidates_are_evenly_spaced_multiples_and_end_at_the_full_width(width, granularity, at_most):
    widths = candidate_widths(width, granularity, at_most)
    assert widths[-1] == width
    assert 1 <= len(widths) <= at_most
    assert list(widths) == sorted(set(widths))
    assert all(w % granularity == 0 for w in widths[:-1])
    assert len(set(np.diff((0, *widths[:-1])))) <= 1


@given(positive, st.integers(1, 64), st.integers(1, 32))
def test_no_finer_step_would_give_few_enough_candidates(width, granularity, at_most):
    widths = candidate_widths(width, granularity, at_most)
    step = widths[0] if len(widths) > 1 else None
    if step is None:
        # A single candidate: even two would be too many, or the granularity leaves none below the full width.
        assert at_most == 1 or granularity >= width
    elif step > granularity:
        assert len(range(step - granularity, width, step - granularity)) + 1 > at_most


@pytest.mark.parametrize("bad", [(0, 8, 4), (16, 0, 4), (16, 8, 0), (-1, 8, 4)])
def test_candidates_of_nothing_are_refused(bad):
    with pytest.raises(ValueError, match="at least 1"):
        candidate_widths(*bad)


def test_kept_share_of_a_known_group():
    np.testing.assert_allclose(kept_share([1.0, 5.0, 0.0, 4.0], (0, 1, 2, 3, 4)), [0, 0.5, 0.9, 1, 1])


@given(scores_of_a_group)
def test_kept_share_never_falls_and_ends_at_exactly_one(scores):
    share = kept_share(scores, range(scores.size + 1))
    assert share[0] == 0
    assert share[-1] == 1
    assert (np.diff(share) >= 0).all()


@given(scores_of_a_group, st.data())
def test_best_channels_hold_the_share_that_is_promised_and_no_other_set_holds_more(scores, data):
    w = data.draw(st.integers(0, scores.size))
    best = best_channels(scores, w)
    assert list(best) == sorted(set(best.tolist()))
    assert len(best) == w
    rest = np.delete(scores, best)
    if w and rest.size:
        assert scores[best].min() >= rest.max()
    if scores.sum() > 0:
        promised = kept_share(scores, (w,))[0]
        assert promised == pytest.approx(scores[best].sum() / scores.sum(), rel=1e-9, abs=1e-12)


@given(hnp.arrays(np.float64, st.integers(2, 30), elements=st.integers(0, 3).map(float)), st.data())
def test_smaller_widths_are_nested_in_larger_ones(scores, data):
    w = data.draw(st.integers(1, scores.size))
    assert set(best_channels(scores, w - 1)) < set(best_channels(scores, w))


def test_of_equal_channels_the_first_are_kept():
    assert best_channels([2, 1, 2, 1, 1, 2], 4).tolist() == [0, 1, 2, 5]
    scores = np.random.default_rng(0).integers(0, 3, 500)  # long enough for sorting that is not stable
    in_order = sorted(range(500), key=lambda channel: (-scores[channel], channel))
    for w in (50, 200, 450):
        assert best_channels(scores, w).tolist() == sorted(in_order[:w])


def test_a_group_without_any_attention_counts_each_channel_the_same():
    np.testing.assert_allclose(kept_share(np.zeros(4), (1, 2, 4)), [0.25, 0.5, 1])


def test_scores_near_the_largest_float_do_not_overflow():
    assert kept_share(np.full(8, 1e308), (2, 8)).tolist() == [0.25, 1]


@pytest.mark.parametrize("scores", [[], [[1.0, 2.0]], [1.0, float("nan")], [1.0, float("inf")], [-1.0, 2.0]])
def test_scores_that_are_no_attention_are_refused(scores):
    with pytest.raises(ValueError, match="scores must be"):
        best_channels(scores, 1)
    with pytest.raises(ValueError, match="scores must be"):
        kept_share(scores, (1,))


@pytest.mark.parametrize("w", [-1, 4])
def test_widths_outside_the_group_are_refused(w):
    with pytest.raises(ValueError, match="of 3 channels"):
        best_channels([1, 2, 3], w)
    with pytest.raises(ValueError, match="of 3 channels"):
        kept_share([1, 2, 3], (1, w))
