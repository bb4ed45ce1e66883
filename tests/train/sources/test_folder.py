"""The pictures of a folder become images of the network's size and colours, and broken ones are left out or refused."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from aap_hw.errors import UserError
from aap_hw.inputs import Inputs
from aap_hw.train.augment import Draws, training_batch
from aap_hw.train.data import Normalisation
from aap_hw.train.evaluation import evaluate
from aap_hw.train.settings import Augmentation
from aap_hw.train.sources import ImageSource, folder
from tests.train.sources.folders import LARGE, SMALL, colour, colours, load, picture, refused


@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["kept decoded", "read when used"])
def test_a_folder_of_pictures_is_read_in_order_and_at_the_networks_size(pictures, shape):
    data = ImageSource(f"imagefolder:{pictures}").load(shape)
    images, labels = data.batch("train", range(8))
    assert data.class_names == ("cat", "dog")
    assert labels.tolist() == [0] * 4 + [1] * 4
    assert images.shape == (8, *shape)
    assert [tuple(image[:, 5, 5].tolist()) for image in images] == [colour(n // 4, n % 4) for n in range(8)]
    assert data.crops_are_random == (shape == LARGE)


def test_a_test_image_is_its_middle_with_the_shorter_side_a_seventh_longer(tmp_path):
    gradient = np.tile(np.arange(224, dtype=np.uint8)[None, :, None], (224, 1, 3))
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        Image.fromarray(gradient).save(tmp_path / split / "a" / "x.png")
    row = ImageSource(f"imagefolder:{tmp_path}").load((3, 112, 112)).batch("test", [0])[0][0, 0, 50].numpy()
    # 196 of 224 pixels in 112 columns: from 14 on, 1.75 a column.
    np.testing.assert_allclose(row, 14 + 1.75 * (np.arange(112) + 0.5) - 0.5, atol=1)


def test_training_takes_random_parts_of_large_pictures_and_the_same_ones_however_a_batch_is_shared(tmp_path):
    gradient = np.random.default_rng(0).integers(0, 256, (150, 150, 3), np.uint8)
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        for number in range(6):
            Image.fromarray(gradient).save(tmp_path / split / "a" / f"{number}.png")
    data, how = ImageSource(f"imagefolder:{tmp_path}").load(LARGE), Augmentation()
    draws = Draws.of(6, how, torch.Generator().manual_seed(0), crops=True)
    (whole,), _ = training_batch(data, torch.arange(6), how, draws)
    assert len({image.numpy().tobytes() for image in whole}) == 6
    (part,), _ = training_batch(data, torch.arange(6)[2:4], how, draws[2:4])
    assert torch.equal(whole[2:4], part)


@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_a_broken_picture_is_named_and_left_out(pictures, shape, caplog):
    (pictures / "train" / "cat" / "1.png").write_bytes(b"not a picture")
    with caplog.at_level(logging.WARNING):
        data = ImageSource(f"imagefolder:{pictures}").load(shape)
        images, labels = data.batch("train", range(data.count("train")))
        data.batch("train", range(data.count("train")))
    assert labels.tolist() == [0] * 3 + [1] * 4
    assert tuple(images[1][:, 5, 5].tolist()) == colour(0, 2)
    assert [record.message for record in caplog.records] == [
        f"{pictures}/train/cat/1.png (it is no picture of a kind that is read) cannot be decoded and is left out"
    ]


def test_too_many_broken_pictures_are_refused(pictures, monkeypatch):
    monkeypatch.setattr(folder, "MOST_BROKEN", 1)
    for number in range(2):
        (pictures / "train" / "dog" / f"{number}.png").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"more than 1 of 8 image files cannot be decoded, among them .*dog/0.png \(it is empty\), "
    ):
        ImageSource(f"imagefolder:{pictures}").load(SMALL)


@pytest.mark.parametrize("side", [16, 96])
def test_a_network_of_one_channel_is_shown_grey_pictures(pictures, side):
    data = load(pictures, (1, side, side))
    images, _ = data.batch("train", range(8))
    assert images.shape == (8, 1, side, side)
    luma = [0.299 * r + 0.587 * g + 0.114 * b for r, g, b in (colour(n // 4, n % 4) for n in range(8))]
    np.testing.assert_allclose(images[:, 0, 3, 3], luma, atol=1)
    normalised = data.tensors("train", (1, side, side), [7])[0, 0, 3, 3]
    assert float(normalised) == pytest.approx((luma[7] / 255 - 0.449) / 0.226, abs=0.02)
    given = ImageSource(f"imagefolder:{pictures}", normalisation=Normalisation((0.5,), (0.25,))).load((1, side, side))
    assert float(given.tensors("train", (1, side, side), [7])[0, 0, 3, 3]) == pytest.approx(
        luma[7] / 63.75 - 2, abs=0.02
    )


@pytest.mark.parametrize("channels", [2, 4, 13])
def test_a_network_of_other_channels_cannot_be_shown_pictures(pictures, channels):
    assert f"grey or in colour and the network takes {channels} channels" in refused(pictures, (channels, 32, 32))


@pytest.mark.parametrize("shape", [SMALL, LARGE])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_class_without_one_picture_that_can_be_decoded_is_refused(pictures, monkeypatch, shape, split):
    monkeypatch.setattr(folder, "MOST_BROKEN_OF_FEW", 1)
    for file in (pictures / split / "dog").iterdir():
        file.write_bytes(b"<html>")
    assert (
        f"not one picture of 'dog' in FOLDER/{split} can be decoded: FOLDER/{split}/dog/0.png (it is no picture of"
        in (refused(pictures, shape))
    )


@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_a_quarter_of_few_pictures_may_be_broken_and_no_more(pictures, shape):
    for number in range(2):
        (pictures / "train" / "cat" / f"{number}.png").write_bytes(b"")
    data = load(pictures, shape)
    assert colours(data) == [colour(0, 2), colour(0, 3), *(colour(1, n) for n in range(4))]
    (pictures / "train" / "cat" / "2.png").write_bytes(b"")
    assert refused(pictures, SMALL).startswith(
        "more than 2 of 8 image files cannot be decoded, among them FOLDER/train/cat/0.png (it is empty), "
        "FOLDER/train/cat/1.png (it is empty), FOLDER/train/cat/2.png (it is empty); replace or delete them"
    )


def test_an_accuracy_is_of_the_pictures_that_can_be_decoded(pictures):
    """Of the four, one of class 0 breaks after loading; a network that answers 1 to all is right in two of three."""
    data = load(pictures, LARGE)
    (pictures / "val" / "cat" / "1.png").write_bytes(b"")
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(int(np.prod(LARGE)), 2))
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].bias.copy_(torch.tensor([0.0, 1.0]))
    assert evaluate(network, data, Inputs.of(LARGE)) == pytest.approx(200 / 3)
    for file in (pictures / "val").rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match="more than 1 of 4 image files cannot be decoded"):
        evaluate(network, data, Inputs.of(LARGE))


def test_a_batch_is_as_large_as_it_was_planned_if_a_picture_breaks(pictures):
    data = load(pictures, LARGE)
    (pictures / "train" / "cat" / "1.png").write_bytes(b"")
    draws = Draws.of(4, Augmentation(flip=False), torch.Generator().manual_seed(0), crops=True)
    (images,), labels = training_batch(data, torch.tensor([0, 1, 4, 5]), Augmentation(), draws)
    assert labels.tolist() == [0, 1, 1, 0]
    shown = [colour(0, 0), colour(1, 0), colour(1, 1), colour(0, 0)]
    assert [tuple(image[:, 5, 5].tolist()) for image in images] == shown


@pytest.mark.parametrize("range_of", [(0, 15), (0, 1), (241, 255)])
def test_pictures_that_are_all_but_black_or_white_are_pointed_out(tmp_path, range_of, caplog):
    """Twelve bits in sixteen become at most 15 of 255."""
    halves = np.repeat(np.array([range_of], np.uint16) * 257, 10, 1).repeat(20, 0)
    for split in ("train", "val"):
        picture(tmp_path / split / "a" / "0.png")
        Image.fromarray(halves).save(tmp_path / split / "a" / "0.png")
    for shape in (SMALL, LARGE):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            load(tmp_path, shape)
        least, most = range_of
        tone = "black" if most < 128 else "white"
        sentence = f"{tmp_path}/train: all pictures are nearly {tone}, with values from {least} to {most} of 255; "
        assert caplog.records[0].message.startswith(sentence)
