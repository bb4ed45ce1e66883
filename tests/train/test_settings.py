"""Settings of training: the learning rate over time, and what is refused."""

import math
import re
from dataclasses import fields
from pathlib import Path

import pytest

from aap_hw.errors import UserError
from aap_hw.train.settings import Augmentation, Loss, Optimiser, Schedule, TrainSettings


def test_cosine_schedule_warms_up_and_falls_to_zero():
    settings = TrainSettings(epochs=11, learning_rate=0.4, schedule=Schedule(warmup_epochs=1.0))
    assert settings.learning_rate_at(0.5) == pytest.approx(0.2)
    assert settings.learning_rate_at(1.0) == pytest.approx(0.4)
    assert settings.learning_rate_at(6.0) == pytest.approx(0.2)
    assert settings.learning_rate_at(1 + 10 / 3) == pytest.approx(0.4 * (1 + math.cos(math.pi / 3)) / 2)
    assert settings.learning_rate_at(11.0) == pytest.approx(0.0, abs=1e-12)


def test_a_warm_up_takes_half_of_the_training_at_most():
    rates = [TrainSettings(epochs=1, learning_rate=0.4).learning_rate_at(epoch) for epoch in (0.25, 0.5, 0.75, 1.0)]
    assert rates == pytest.approx([0.2, 0.4, 0.2, 0.0], abs=1e-12)
    assert Schedule("step", warmup_epochs=5.0).at(1.0, 2) == 1.0


def test_step_schedule_falls_at_each_step():
    settings = TrainSettings(epochs=9, learning_rate=0.1, schedule=Schedule("step", (3, 6), warmup_epochs=0.0))
    rates = [settings.learning_rate_at(epoch) for epoch in (0.0, 2.99, 3.0, 5.99, 6.0)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (TrainSettings, {"epochs": 0}),
        (TrainSettings, {"batch_size": 1}),
        (TrainSettings, {"learning_rate": 0.0}),
        (TrainSettings, {"learning_rate": math.nan}),
        (TrainSettings, {"learning_rate": math.inf}),
        (TrainSettings, {"average": 1.0}),
        (TrainSettings, {"precision": "fp8"}),
        (Schedule, {"kind": "cosin"}),
        (Schedule, {"factor": 0.0}),
        (Schedule, {"factor": math.inf}),
        (Schedule, {"warmup_epochs": -1}),
        (Schedule, {"warmup_epochs": math.inf}),
        (Optimiser, {"name": "adam"}),
        (Optimiser, {"momentum": 0.0}),
        (Optimiser, {"momentum": 1.0, "nesterov": False}),
        (Optimiser, {"weight_decay": -1e-4}),
        (TrainSettings, {"epochs": math.inf}),
        (TrainSettings, {"batch_size": math.inf}),
        (Optimiser, {"clip_norm": math.inf}),
        (Optimiser, {"weight_decay": math.inf}),
        (Optimiser, {"clip_norm": 0.0}),
        (Loss, {"label_smoothing": 1.0}),
        (Loss, {"distillation": 1.5}),
        (Loss, {"temperature": 0.0}),
        (Loss, {"temperature": math.inf}),
        (Augmentation, {"crop_padding": -1}),
        (Augmentation, {"mixup": -0.1}),
        (Augmentation, {"mixup": math.inf}),
    ],
)
def test_settings_that_cannot_be_trained_with_are_refused_by_name_or_value(make, wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(UserError, match=f"{name} |{re.escape(repr(value))}"):
        make(**wrong)


def test_page_on_training_names_every_setting_and_says_the_defaults(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "data_and_training.md").read_text("utf-8").partition("## Training")[2]
    example = page.partition("```toml\n")[2].partition("```")[0]
    kinds = (TrainSettings, Optimiser, Schedule, Augmentation, Loss)
    assert [each.name for kind in kinds for each in fields(kind) if f"{each.name} =" not in example] == []
    (tmp_path / "training.toml").write_text(example)
    read = TrainSettings.read(str(tmp_path / "training.toml"))
    assert (read.epochs, read.average, read.precision) == (60, 0.999, "auto")
    assert read.optimiser == Optimiser("sgd", 0.9, True, 5e-4, 5.0)
    assert read.schedule == Schedule("step", (30, 45), 0.1, 1.0)
    assert read.augmentation == Augmentation(True, 4, 0.2)
    assert read.loss == Loss(0.1, 0.5, 4.0)
    (tmp_path / "training.toml").write_text("schedule = {}")
    default = TrainSettings.read(str(tmp_path / "training.toml"))
    assert default == TrainSettings()
    assert (
        f"trains {default.epochs} epochs at a learning rate of {default.learning_rate}, in batches of "
        f"{default.batch_size}"
    ) in " ".join(page.split())


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("epochs = ", "training.toml is no TOML file: Invalid value"),
        ("epoch = 3", r"epoch: .*\(it is 3\)"),
        ("optimiser = { momentun = 0.9 }", r"optimiser\.momentun: .*\(it is 0\.9\)"),
        ('learning_rate = "fast"', r"learning_rate: .*\(it is 'fast'\)"),
        ("loss = { label_smoothing = 1.5 }", "label_smoothing is 1.5; give 0 up to below 1"),
    ],
)
def test_file_that_nothing_can_be_trained_by_is_refused(tmp_path, text, sentence):
    (tmp_path / "training.toml").write_text(text)
    with pytest.raises(UserError, match=sentence) as refused:
        TrainSettings.read(str(tmp_path / "training.toml"))
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match=r"cannot read the training settings .*none\.toml: No such file"):
        TrainSettings.read(str(tmp_path / "none.toml"))
