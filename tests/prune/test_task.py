"""What a run can be told by is what its parts know, on the command line too; anything else is refused at once."""

from __future__ import annotations

from typing import Any

import click
import pytest

from aap_hw.attention import ALTERNATIVES, SCALES
from aap_hw.cli.prune import command
from aap_hw.compile.keys.precision import PLANNED_PRECISIONS
from aap_hw.errors import UserError
from aap_hw.policy import SCHEDULES
from aap_hw.prune import defaults
from aap_hw.prune.task import PruneSettings


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"allocator": "exat"}, "allocator is 'exat'; give exact or threshold; did you mean 'exact'"),
        ({"score": "taylr"}, "score is 'taylr'; give None, read-attention, .* did you mean 'taylor'"),
        ({"score": ""}, "score is ''; give None"),
        ({"score_scale": "rang"}, "score_scale is 'rang'; .* did you mean 'rank'"),
        ({"score_scale": None}, "score_scale is None; give raw"),
        ({"schedule": "aditive"}, "schedule is 'aditive'; give geometric or additive; did you mean"),
        (
            {"allocator": "threshold", "threshold_weights": "params"},
            "threshold_weights is 'params'; give None, latency",
        ),
        ({"threshold_weights": "flops"}, "add --allocator threshold"),
        ({"rounds": 0}, "rounds is 0; give at least 1"),
        ({"only": "layer1.*"}, r"only is 'layer1\.\*'; give a tuple of patterns: \('layer1\.\*',\)"),
        ({"skip": "kind:mlp"}, "skip is 'kind:mlp'; give a tuple of patterns"),
        ({"depth": "no"}, "depth is 'no'; give True or False"),
        ({"renormalised": "yes"}, "renormalised is 'yes'; give True or False"),
        ({"training": {"epochs": 1}}, r"training is \{'epochs': 1\}; give aap_hw\.TrainSettings"),
        ({"calibration_images": 0}, "calibration_images is 0; give at least 1"),
        ({"reduction": "mode"}, "unknown attention reduction 'mode'"),
        ({"p": 0.0}, "the attention exponent p must be a positive number"),
        ({"precision": "mixed", "allocator": "threshold"}, "a threshold chooses widths and no precisions"),
    ],
    ids=lambda given: "-".join(given) if isinstance(given, dict) else "",
)
def test_setting_that_nothing_can_be_pruned_by_is_refused(wrong: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        PruneSettings(**wrong)


def test_norms_are_cut_into_by_default_only_if_training_follows() -> None:
    for asked, trained, untrained in ((None, True, None), (True, True, True), (False, False, False)):
        settings = PruneSettings(renormalised=asked)
        assert (settings.cuts_renormalised(True), settings.cuts_renormalised(False)) == (trained, untrained)


def test_words_are_those_that_the_parts_of_a_run_know() -> None:
    assert set(defaults.SCORES) == {"attention", "read-attention", *ALTERNATIVES}
    assert set(defaults.SCORE_SCALES) == set(SCALES)
    assert set(defaults.ATTENTION_CUTS) == {"widths", "heads"}
    assert set(defaults.SCHEDULES) == set(SCHEDULES)


def test_command_offers_every_word_and_no_other() -> None:
    offered = {each.name: each.type.choices for each in command.params if isinstance(each.type, click.Choice)}
    assert offered == {
        "score": defaults.SCORES,
        "score_scale": defaults.SCORE_SCALES,
        "schedule": defaults.SCHEDULES,
        "allocator": defaults.ALLOCATORS,
        "attention_cuts": defaults.ATTENTION_CUTS,
        "threshold_weights": defaults.THRESHOLD_WEIGHTS,
        "precision": PLANNED_PRECISIONS,
    }
    for name, words in offered.items():
        for word in words:
            allocator = "threshold" if name == "threshold_weights" else "exact"
            PruneSettings(**{"allocator": allocator, name: word})
