"""Pictures become what torchvision's and timm's own transforms make of them, and folders become a network's classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm.data
import torch
import torchvision
from PIL import Image

from aap_hw.errors import UserError
from aap_hw.inputs import Inputs
from aap_hw.models import published
from aap_hw.models.published import of_timm
from aap_hw.train.classes import as_classes_of
from aap_hw.train.data import LabelledImages, Normalisation
from aap_hw.train.preparation import Preparation
from aap_hw.train.sources import ImageSource

# Whoever wants the same accuracy needs the same pixels.
SIZES = [(640, 480), (333, 500), (97, 411), (224, 224), (1050, 800)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of many shapes, JPEGs among them: noise of several scales, with sharp edges."""
    place, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split in ("train", "val"):
        (place / split / "a").mkdir(parents=True)
        for number, (width, height) in enumerate(SIZES):
            coarse = Image.fromarray(generator.integers(0, 256, (9, 9, 3), np.uint8))
            pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
            fine = generator.integers(-40, 40, pixels.shape) * (np.arange(width) % 97 < 48)[None, :, None]
            picture = Image.fromarray((pixels + fine).clip(0, 255).astype(np.uint8))
            picture.save(place / split / "a" / f"{number}.{'jpg' if number % 2 else 'png'}")
    return place


def compare(place: Path, how: Preparation, shape: tuple[int, int, int], theirs: object) -> None:
    assert callable(theirs)
    ours = ImageSource(f"imagefolder:{place}").load(shape, how=how).inputs("test", Inputs.of(shape))[0]
    files = sorted((place / "val" / "a").iterdir())
    wanted = torch.stack([theirs(Image.open(file).convert("RGB")) for file in files])
    levels = (ours - wanted).abs() * torch.tensor(how.normalisation.std).reshape(3, 1, 1) * 255
    assert float(levels.max()) < 0.01


@pytest.mark.parametrize("name", ["IMAGENET1K_V1", "IMAGENET1K_V2"])
def test_pictures_are_those_that_torchvision_evaluates_on(name: str, folder: Path) -> None:
    weights = torchvision.models.ResNet50_Weights[name]
    found = published.find("resnet50", name)
    assert found.size is not None
    assert found.preparation is not None
    compare(folder, found.preparation, found.size, weights.transforms())


@pytest.mark.parametrize(
    "config",
    [
        {"input_size": (3, 224, 224), "interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center"},
        {"input_size": (3, 160, 160), "interpolation": "bilinear", "crop_pct": 0.95, "mean": (0.5,) * 3},
        {"input_size": (3, 128, 128), "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "squash"},
        {"input_size": (3, 192, 192), "interpolation": "lanczos", "crop_pct": 0.9},
    ],
)
def test_pictures_are_those_that_timm_evaluates_on(config: dict[str, object], folder: Path) -> None:
    found = of_timm.described("x", config, None, None, None)
    assert found.size is not None
    assert found.preparation is not None
    resolved = timm.data.resolve_data_config(pretrained_cfg=dict(config))
    compare(folder, found.preparation, found.size, timm.data.create_transform(**resolved))


def test_the_size_that_weights_were_tested_with_has_its_own_crop() -> None:
    config = {"input_size": (3, 224, 224), "crop_pct": 0.875, "test_input_size": (3, 256, 256), "test_crop_pct": 1.0}
    found = of_timm.described("x", config, None, None, None)
    shapes = [(3, side, side) for side in (224, 256, 192)]
    prepared = [found.prepared(Inputs.of(shape)) for shape in shapes]
    assert [each and each.scaled(shape[1]) for each, shape in zip(prepared, shapes, strict=True)] == [256, 256, 219]


def test_what_a_caller_says_comes_before_what_the_weights_say(folder: Path) -> None:
    how = Preparation(64, 64, "bilinear", Normalisation((0.5,) * 3, (0.5,) * 3))
    asked = Normalisation((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    for given, expected in ((None, how.normalisation), (asked, asked)):
        images = ImageSource(f"imagefolder:{folder}", None, given).load((3, 96, 96), how=how)
        assert isinstance(images, LabelledImages)
        assert images.normalisation == expected


def test_grey_images_take_a_mean_for_each_colour_of_the_network() -> None:
    how = Preparation(32, 32, "bilinear", Normalisation((0.1, 0.2, 0.3), (1.0, 0.5, 0.25)))
    images = ImageSource("embedded", 10).load((3, 32, 32), how=how)
    (prepared,) = images.inputs("test", Inputs.of((3, 32, 32)))
    plain = prepared[:, 0] + 0.1
    assert torch.allclose(prepared[:, 1], (plain - 0.2) / 0.5, atol=1e-6)
    assert torch.allclose(prepared[:, 2], (plain - 0.3) / 0.25, atol=1e-6)


def images_of(*names: str) -> LabelledImages:
    pixels, labels = np.zeros((len(names), 8, 8), np.uint8), np.arange(len(names))
    return LabelledImages(pixels, labels, pixels, labels, names, None, pixels, labels)


def test_a_part_of_imagenets_folders_is_labelled_as_its_networks_label_them() -> None:
    found = published.find("resnet50", "IMAGENET1K_V1")
    images = as_classes_of(images_of("n01440764", "n02102040", "n03445777"), found.classes, found.folders)
    assert images.class_names == found.classes
    assert images.val_labels is not None
    assert images.val_labels.tolist() == images.train_labels.tolist() == images.test_labels.tolist()
    assert [found.classes[label] for label in images.test_labels] == ["tench", "English springer", "golf ball"]
    by_word = as_classes_of(images_of("golf ball", "tench"), found.classes, found.folders)
    assert by_word.test_labels.tolist() == [images.test_labels[2], images.test_labels[0]]
    # ImageNet has a bird and a machine of this name, so that a folder could be either.
    with_twice = as_classes_of(images_of("crane", "tench"), ("crane", "tench", "crane"), ())
    assert with_twice.class_names == ("crane", "tench")
    assert as_classes_of(images_of("cat", "dog"), found.classes, found.folders).class_names == ("cat", "dog")


def test_without_a_list_of_them_all_of_imagenets_folders_are_known_by_their_order_and_a_part_is_refused() -> None:
    names, classes = [f"n{number:08d}" for number in range(1000)], [f"class {number}" for number in range(1000)]
    images = as_classes_of(images_of(*names), classes, ())
    assert (images.class_names, images.test_labels.tolist()) == (tuple(classes), list(range(1000)))
    with pytest.raises(UserError, match="of 2 of ImageNet's 1000 classes, and which they are is known to timm only"):
        as_classes_of(images_of(*names[:2]), classes, ())
