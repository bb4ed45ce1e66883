"""A network's channels are scored on the samples that a run is shown, as its settings say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aap_hw.attention import attention_scores
from aap_hw.errors import UserError
from aap_hw.models.origin import Origin
from aap_hw.prune.samples import calibration_batches
from aap_hw.prune.scoring import scores_of
from aap_hw.prune.task import PruneSettings, Task
from tests.synthetic import ORIGIN, few_images, resnet20, table

FEW = PruneSettings(calibration_images=8)


@pytest.mark.usefixtures("quick_baseline")
def test_attention_is_reduced_and_scaled_as_the_settings_say() -> None:
    module, graph, _ = resnet20()
    asked = replace(FEW, score="attention", reduction="max", p=2.0, score_scale="max")
    found = scores_of(Task(ORIGIN, table(), few_images()), module, graph, asked)
    shown = [samples for samples, _ in calibration_batches(few_images(), ORIGIN.inputs, 8)]
    expected = attention_scores(module, shown, reduction="max", p=2.0, graph=graph)
    assert found.keys() == expected.keys()
    for name, each in expected.items():
        assert found[name] == pytest.approx(each / each.max())


@pytest.mark.usefixtures("quick_baseline")
def test_taylor_scores_of_other_classes_are_refused() -> None:
    images = few_images()
    origin = Origin.of("resnet18", (3, 32, 32))
    with pytest.raises(UserError, match="Taylor scores need the loss"):
        scores_of(Task(origin, table(), images), resnet20()[0], resnet20()[1], replace(FEW, score="taylor"))
