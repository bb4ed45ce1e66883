"""Samples of any shape are found by their names, fit the network or are refused, and are taken as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aap_hw.errors import UserError
from aap_hw.inputs import Inputs
from aap_hw.train.arrays import ArraySamples, MadeSamples
from aap_hw.train.data import LabelledImages
from aap_hw.train.sources import ImageSource
from aap_hw.train.sources.example import Example

WAVE = Inputs.parse("1x40")
PAIR = Inputs.parse("ids:int64:5,scale:5")


def saved(folder: Path, **arrays: Any) -> ImageSource:
    np.savez(folder / "a.npz", **arrays)
    return ImageSource(f"npz:{folder / 'a.npz'}")


def recordings(**change: Any) -> dict[str, Any]:
    waves = np.random.default_rng(0).normal(size=(6, 1, 40))
    labels = np.arange(6) % 2
    return {"x_train": waves, "y_train": labels, "x_test": waves[:4], "y_test": labels[:4]} | change


def test_recordings_are_taken_as_they_are(tmp_path: Path) -> None:
    data = saved(tmp_path, **recordings()).load(WAVE)
    assert (data.classes, data.count("train"), data.count("test")) == (2, 6, 4)
    (taken,) = data.inputs("train", WAVE, [4, 1])
    torch.testing.assert_close(taken, torch.from_numpy(recordings()["x_train"][[4, 1]]).float())
    assert data.stored("train", [4, 1])[1].tolist() == [0, 1]


def test_recordings_may_have_a_split_for_validation(tmp_path: Path) -> None:
    more = {"x_val": np.full((5, 1, 40), 3.0), "y_val": np.array([1, 1, 0, 1, 0])}
    data = saved(tmp_path, **recordings(**more)).load(WAVE)
    assert (data.chosen_by, data.count("val"), data.count("test")) == ("val", 5, 4)
    taken, labels = data.limited(2).stored("val", slice(None))
    assert float(taken[0].mean()) == 3.0
    assert labels.tolist() == [1, 0]
    with pytest.raises(UserError, match=r"name its arrays x_train, x_val, x_test, .* y_train, y_val and y_test"):
        saved(tmp_path, **recordings(x_val=more["x_val"])).load(WAVE)


def test_several_inputs_are_found_by_name_or_by_number(tmp_path: Path) -> None:
    ids, scale = np.arange(15).reshape(3, 5), np.ones((3, 5), np.float32)
    for names in (("ids_train", "scale_train"), ("x1_train", "x2_train"), ("train_ids", "x2_train")):
        data = saved(tmp_path, **dict(zip(names, (ids, scale), strict=True))).load(PAIR)
        taken = data.inputs("test", PAIR)  # without labels one split is enough
        assert [each.dtype for each in taken] == [torch.int64, torch.float32]
        assert torch.equal(taken[0], torch.from_numpy(ids))
        assert data.classes == 0


def test_bytes_for_a_network_of_images_are_images_by_either_name(tmp_path: Path) -> None:
    pixels, labels = np.zeros((4, 8, 8), np.uint8), np.arange(4) % 2
    for x, y in (("x", "y"), ("images", "labels")):
        arrays = {f"{name}_{split}": each for name, each in ((x, pixels), (y, labels)) for split in ("train", "test")}
        assert isinstance(saved(tmp_path, **arrays).load((3, 8, 8)), LabelledImages)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"x_train": np.zeros((6, 1, 39))}, "x_train of .* holds samples of 1x39, and the network takes 1x40"),
        ({"x_train": np.full((6, 1, 40), np.nan)}, "infinite or NaN values"),
        ({"x_train": np.zeros((6, 1, 40), complex)}, "is of type complex128"),
        ({"x_train": np.zeros((0, 1, 40))}, "holds no samples"),
        ({"y_test": np.array([0, 1, 2.5, 0])}, "y_test of .* is float64"),
        ({"y_train": np.arange(5)}, r"6 train images but labels of shape \(5,\)"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        saved(tmp_path, **recordings(**change)).load(WAVE)


def test_whole_numbers_that_float32_does_not_hold_are_refused(tmp_path: Path) -> None:
    ids = np.full((3, 5), (1 << 24) + 1)
    with pytest.raises(UserError, match="holds values from 16777217 to 16777217"):
        saved(tmp_path, ids_train=ids, scale_train=np.ones((3, 5))).load(PAIR)


def test_pictures_and_their_normalisation_are_refused_for_other_networks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'embedded' gives images, and the network takes 1x40"):
        ImageSource("embedded").load(WAVE)


def test_made_samples_are_the_same_again_and_those_of_the_splits_differ() -> None:
    made = MadeSamples(PAIR, (7, 2))
    ids, _ = made.inputs("train", PAIR, range(64))
    assert torch.equal(ids, made.inputs("train", PAIR, range(64))[0])
    assert not torch.equal(ids, made.inputs("test", PAIR, range(64))[0])
    assert set(ids.flatten().tolist()) == set(range(7))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.zeros(3, 1, 40), "1x40"),
        (np.zeros((3, 40)), "40"),
        ((torch.zeros(2, 3, 8, 8), np.zeros(2, np.int64)), "3x8x8,int64:scalar"),
        ({"ids": np.zeros((2, 5), np.int32), "mask": np.ones((2, 5), bool)}, "ids:int32:5,mask:bool:5"),
    ],
)
def test_an_example_says_what_the_network_takes(value: object, text: str) -> None:
    example = Example.of(value, "here")
    assert example.inputs.text == text
    assert isinstance(example.samples, ArraySamples)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({}, "here holds no arrays"),
        ({"a": np.zeros((2, 3)), "b": np.zeros((3, 3))}, "the arrays of here differ in length"),
        (np.array(["a", "b"]), "is of type <U1; give numbers"),
        (np.float32(3), "holds no samples"),
        ((each for each in (1, 2)), "here is a generator and not an array of numbers; give a tensor or an array"),
        ([(torch.zeros(2, 3), torch.zeros(2, 4, 5))], "here is a tuple and not an array of numbers"),
    ],
)
def test_what_is_no_example_is_refused(value: object, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Example.of(value, "here")
