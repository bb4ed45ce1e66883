"""The embedded images are what their note says, and become network inputs as documented."""

import gzip
import hashlib
import importlib.util
import io
import lzma
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

from aap_hw.errors import UserError
from aap_hw.inputs import Inputs
from aap_hw.prune.samples import calibration_batches
from aap_hw.train import data as data_module
from aap_hw.train.augment import Draws, training_batch
from aap_hw.train.data import (
    EMBEDDED_FILE,
    EMBEDDED_SHA256,
    LabelledImages,
    LazyImages,
    Normalisation,
    load_embedded,
)
from aap_hw.train.evaluation import evaluate
from aap_hw.train.settings import Augmentation
from tests.needs import FASHION_MNIST, needs_fashion_mnist

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_embedded_data.py"
FOLDER = resources.files("aap_hw") / "data"


def tiny(train, test=None, labels=None):
    test = train if test is None else test
    labels = np.zeros(len(train), np.int64) if labels is None else labels
    return LabelledImages(train, labels, test, np.zeros(len(test), np.int64), ("a", "b"))


def make_script():
    spec = importlib.util.spec_from_file_location("make_embedded_data", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_embedded_set_is_balanced():
    data = load_embedded()
    assert data.train_images.shape == (10_000, 28, 28)
    assert data.test_images.shape == (2_000, 28, 28)
    assert np.array_equal(np.bincount(data.train_labels), [1000] * 10)
    assert np.array_equal(np.bincount(data.test_labels), [200] * 10)
    assert data.classes == 10


def test_embedded_test_images_are_not_among_the_training_images():
    data = load_embedded()
    seen = {image.tobytes() for image in data.train_images}
    assert len(seen) > 9_990  # the original set repeats a few images
    assert sum(image.tobytes() in seen for image in data.test_images) == 0


def test_checksum_is_in_the_note_beside_the_file():
    assert EMBEDDED_SHA256 in (FOLDER / "README.md").read_text(encoding="utf-8")
    content = lzma.decompress((FOLDER / EMBEDDED_FILE).read_bytes())
    assert hashlib.sha256(content).hexdigest() == EMBEDDED_SHA256


def arrays_in(packed: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(lzma.decompress(packed)), allow_pickle=False) as archive:
        return dict(archive)


@pytest.mark.slow
@needs_fashion_mnist
def test_script_makes_the_embedded_files_again(tmp_path):
    digest = make_script().make(FASHION_MNIST, tmp_path)
    made = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert set(made) == {EMBEDDED_FILE, "LICENSE.fashion-mnist", "README.md"}
    # The headers of an archive differ between versions of Python, and what xz makes of it between those of liblzma.
    again, kept = arrays_in(made.pop(EMBEDDED_FILE)), arrays_in((FOLDER / EMBEDDED_FILE).read_bytes())
    assert again.keys() == kept.keys()
    for name, array in kept.items():
        assert array.dtype == again[name].dtype
        np.testing.assert_array_equal(again[name], array)
    made["README.md"] = made["README.md"].replace(digest.encode(), EMBEDDED_SHA256.encode())
    assert all((FOLDER / name).read_bytes() == content for name, content in made.items())


def test_script_names_a_truncated_source(tmp_path):
    packed = gzip.compress(bytes(range(200)))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(packed[:40])
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz"):
        make_script().make(tmp_path, tmp_path)


def test_script_names_the_package_when_a_source_is_missing(tmp_path):
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz.*dataset-fashion-mnist"):
        make_script().make(tmp_path, tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "other content"])
def test_damaged_embedded_images_are_named(damage, monkeypatch, tmp_path):
    packed = (FOLDER / EMBEDDED_FILE).read_bytes()
    (tmp_path / "data").mkdir()
    damaged = packed[:1000] if damage == "truncated" else lzma.compress(b"something else")
    (tmp_path / "data" / EMBEDDED_FILE).write_bytes(damaged)
    monkeypatch.setattr(data_module.resources, "files", lambda package: tmp_path)
    with pytest.raises(UserError, match=EMBEDDED_FILE):
        load_embedded()


def test_mean_and_deviation_are_those_of_the_training_pixels():
    data = load_embedded()
    pixels = data.train_images / 255
    mean, std = (float(v) for v in data.mean_and_std)
    assert mean == pytest.approx(pixels.mean(), abs=1e-6)
    assert std == pytest.approx(pixels.std(), abs=1e-6)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 224, 224), (3, 14, 14)])
def test_tensors_have_the_shape_that_the_network_takes(shape):
    inputs = load_embedded().tensors("test", shape, range(3))
    assert inputs.shape == (3, *shape)
    assert inputs.dtype == torch.float32


def test_tensors_at_the_stored_size_are_the_normalised_pixels_in_every_channel():
    data = load_embedded()
    inputs = data.tensors("train", (3, 28, 28), [5, 7])
    pixels = data.train_images / 255
    expected = (pixels[[5, 7]] - pixels.mean()) / pixels.std()
    for channel in range(3):
        np.testing.assert_allclose(inputs[:, channel], expected, atol=1e-5)


def test_bilinear_resize_by_two_averages_neighbours_three_to_one():
    # Half-pixel centres: output pixel 1 lies a quarter of a pixel right of input pixel 0.
    row = np.array([0, 100, 200, 40], np.uint8)
    data = tiny(np.stack([np.tile(row, (4, 1))] * 2))
    mean, std = (float(v) for v in data.mean_and_std)
    pixels = (data.tensors("train", (1, 8, 8), [0])[0, 0, 0] * std + mean) * 255
    np.testing.assert_allclose(pixels, [0, 25, 75, 125, 175, 160, 80, 40], atol=1e-3)


def test_all_kinds_of_indices_pick_the_same_images():
    data = load_embedded()
    wanted = data.tensors("test", (1, 28, 28), [2, 3, 4])
    for indices in (range(2, 5), slice(2, 5), np.arange(2, 5), torch.arange(2, 5)):
        assert torch.equal(data.tensors("test", (1, 28, 28), indices), wanted)
    assert torch.equal(data.tensors("test", (1, 28, 28))[2:5], wanted)


@pytest.mark.parametrize("count", [10, 64, 1001])
def test_spread_images_are_of_all_classes_alike(count):
    data = load_embedded()
    chosen = data.spread("train", count)
    assert len(np.unique(chosen)) == count
    per_class = np.bincount(data.train_labels[chosen], minlength=10)
    assert per_class.max() - per_class.min() <= 1


def test_spread_over_more_images_than_there_are_takes_each_once():
    data = load_embedded()
    assert np.array_equal(data.spread("test", 5_000), np.arange(2_000))
    with pytest.raises(UserError, match="at least 1"):
        data.spread("test", 0)


def test_normalising_does_not_change_the_stored_bytes():
    data = load_embedded()
    before = data.train_images[:10].copy()
    data.tensors("train", (1, 28, 28), slice(0, 10))
    assert np.array_equal(data.train_images[:10], before)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((np.zeros((2, 4, 4)),), "float64"),
        ((np.zeros((2, 16), np.uint8),), r"shape \(2, 16\)"),
        ((np.zeros((2, 4, 4), np.uint8), np.zeros((2, 5, 5), np.uint8)), "equally large"),
        (
            (np.zeros((2, 4, 4), np.uint8), None, np.array([0])),
            "2 training images but labels of shape .*; give one whole number an image$",
        ),
        ((np.zeros((2, 4, 4), np.uint8), None, np.array([0, 2])), "2 classes"),
        ((np.zeros((2, 4, 4), np.uint8), None, np.array([-1, 0])), "number them from 0"),
        ((np.zeros((2, 4, 4), np.uint8), None, np.eye(2)), r"labels\.argmax\(1\) of one-hot ones"),
        ((np.zeros((2, 4, 4), np.uint8), None, np.zeros((2, 1), int)), "give one whole number an image$"),
        (
            (np.zeros((2, 4, 4), np.uint8), None, np.zeros(2)),
            "labels are float64; give one whole number an image, such as labels.astype",
        ),
        ((np.zeros((2, 4, 4), np.uint8), None, [0, 1]), "labels are a list; give a NumPy array"),
        ((torch.zeros(2, 4, 4, dtype=torch.uint8),), "images are a Tensor; give a NumPy array"),
        ((np.zeros((2, 4, 4), np.uint8), np.zeros((0, 4, 4), np.uint8)), "not one image in the test split"),
        ((np.zeros((0, 4, 4), np.uint8),), "not one image in the training split"),
    ],
)
def test_images_that_cannot_be_used_are_refused(arguments, complaint):
    with pytest.raises(UserError, match=complaint):
        tiny(*arguments)


@pytest.mark.parametrize(
    ("images", "complaint"),
    [
        (np.linspace(0, 1, 32, dtype="f4"), r"float32 from 0 to 1; .*such as \(images \* 255\)\.round\(\)\.astype"),
        (np.linspace(0, 255, 32), r"float64 from 0 to 255; .*such as images\.astype"),
        (np.linspace(0, 65535, 32).astype(">u2"), r"uint16 from 0 to 65535; .*such as \(images / 257\)"),
        (np.linspace(0, 4000, 32).astype(int), r"int64 from 0 to 4000; .*such as \(images / images\.max\(\) \* 255\)"),
        (np.linspace(-2.1, 2.6, 32), r"float64 from -2\.1 to 2\.6, as if normalised; give bytes .* from before that"),
        (np.append(np.zeros(31), np.nan), "float64, and some pixels are not finite numbers; give bytes"),
        (np.zeros(32, bool), "bool; give bytes"),
    ],
    ids=["0 to 1", "0 to 255", "16 bits", "12 bits", "normalised", "not a number", "bool"],
)
def test_images_of_another_type_are_told_how_to_become_bytes(images, complaint):
    with pytest.raises(UserError, match=f"the training images are {complaint}"):
        tiny(images.reshape(2, 4, 4))


@pytest.mark.parametrize(
    ("mean", "complaint"), [(float("nan"), "cannot be normalised"), (123.675, "divide means and deviations .* by 255")]
)
def test_a_mean_that_is_not_of_images_between_0_and_1_is_refused(mean, complaint):
    with pytest.raises(UserError, match=complaint):
        Normalisation((mean,), (58.4,))


@pytest.mark.parametrize("kind", [np.uint8, np.int32, ">i8"])
def test_labels_of_any_whole_numbers_can_be_learnt_from(kind):
    data = tiny(np.zeros((2, 4, 4), np.uint8), labels=np.array([0, 1], kind))
    labels = data.batch("train", [1, 0])[1]
    assert labels.dtype == torch.int64
    assert labels.tolist() == [1, 0]


class NothingReadable(LazyImages):
    """Six files of which not one is a picture."""

    shape = (6, 3, 8, 8)

    def read(self, indices, crops):
        return np.zeros((len(indices), *self.shape[1:]), np.uint8), np.zeros(len(indices), bool)


def test_no_figure_is_made_of_images_that_cannot_be_read():
    files, labels = NothingReadable(), np.zeros(6, np.int64)
    data = LabelledImages(files, labels, files, labels, ("a", "b"), Normalisation((0.5,) * 3, (0.5,) * 3))
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
    with pytest.raises(UserError, match="none of the 6 test images can be read, so there is no accuracy"):
        evaluate(network, data, Inputs.of((3, 8, 8)))
    with pytest.raises(UserError, match="none of the test images that are needed can be read"):
        data.tensors("test", (3, 8, 8), range(2))
    with pytest.raises(UserError, match="none of the 3 training images to rank filters by can be read"):
        list(calibration_batches(data, Inputs.of((3, 8, 8)), 3))
    draws = Draws.of(4, Augmentation(), torch.Generator().manual_seed(0), crops=True)
    with pytest.raises(UserError, match="none of the 4 images of a batch can be read"):
        training_batch(data, torch.arange(4), Augmentation(), draws)


def test_colour_images_need_a_network_with_as_many_channels():
    data = tiny(np.zeros((2, 3, 4, 4), np.uint8))
    assert data.tensors("train", (3, 4, 4)).shape == (2, 3, 4, 4)
    with pytest.raises(UserError, match="3 channels and the network takes 1"):
        data.tensors("train", (1, 4, 4))
