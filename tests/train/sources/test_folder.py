"""A folder of pictures is understood as it is meant, whatever else lies in it, or a sentence says what is wrong."""

import logging
import os
import re
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image

from aap_hw.errors import UserError
from aap_hw.train.augment import Draws, training_batch
from aap_hw.train.data import Normalisation
from aap_hw.train.evaluation import evaluate
from aap_hw.train.settings import Augmentation
from aap_hw.train.sources import ImageSource, folder

SMALL, LARGE = (3, 16, 16), (3, 96, 96)


def colour(label, number):
    """A colour that tells a class and an image apart."""
    return (40 + 80 * label, 10 * number, 200)


@pytest.fixture
def pictures(tmp_path):
    """Two classes of four and two plain pictures, wide and high."""
    for split, count in (("train", 4), ("val", 2)):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                size = (130, 100) if number % 2 else (100, 120)
                Image.new("RGB", size, colour(label, number)).save(tmp_path / split / name / f"{number}.png")
    return tmp_path


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
    whole, _ = training_batch(data, torch.arange(6), how, draws)
    assert len({image.numpy().tobytes() for image in whole}) == 6
    part, _ = training_batch(data, torch.arange(6)[2:4], how, draws[2:4])
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


def test_tiny_imagenet_is_read_as_it_is_published(pictures):
    flat = pictures / "val" / "images"
    flat.mkdir()
    lines = []
    for name in ("cat", "dog"):
        for number in range(2):
            (pictures / "val" / name / f"{number}.png").rename(flat / f"val_{name}{number}.png")
            lines.append(f"val_{name}{number}.png\t{name}\t0\t0\t63\t63\n")
        (pictures / "val" / name).rmdir()
    (pictures / "val" / "val_annotations.txt").write_text("".join(lines))
    images, labels = ImageSource(f"imagefolder:{pictures}").load(SMALL).batch("test", range(4))
    assert labels.tolist() == [0, 0, 1, 1]
    assert tuple(images[3][:, 5, 5].tolist()) == colour(1, 1)


def picture(place, of=(40, 90, 200)):
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), of).save(place)


def write(place, text):
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(text.encode("latin-1"))


def load(place, shape=SMALL):
    return ImageSource(f"imagefolder:{place}").load(shape)


def refused(place, shape=SMALL):
    """The sentence, with the folder's own name taken out."""
    with pytest.raises(UserError) as problem:
        load(place, shape)
    assert "\n" not in str(problem.value)
    return str(problem.value).replace(str(place), "FOLDER")


def colours(data, split="train"):
    return [tuple(image[:, 5, 5].tolist()) for image in data.batch(split, range(data.count(split)))[0]]


@pytest.mark.parametrize(
    ("train", "test"),
    [("Train", "VAL"), ("TRAINING", "Valid"), ("training", "validation"), ("train", "dev"), ("train", "Eval"),
     ("Training", "Testing"), ("train", "test"), ("training_set", "test_set"), ("TrainSet", "val-data")],
)  # fmt: skip
def test_a_split_may_have_any_of_its_usual_names(pictures, train, test):
    (pictures / "train").rename(pictures / train)
    (pictures / "val").rename(pictures / test)
    data = load(pictures)
    assert (data.count("train"), data.count("test")) == (8, 4)


def test_the_images_to_test_with_are_those_to_validate_with_if_there_are_both(pictures):
    for name in ("cat", "dog"):
        picture(pictures / "test" / name / "0.png")
    assert load(pictures).count("test") == 4


@pytest.mark.parametrize(("first", "second"), [("Train", "train"), ("val", "valid"), ("eval", "val"), ("VAL", "val")])
def test_two_folders_that_could_be_the_same_split_are_refused(pictures, first, second):
    for name in (first, second):
        (pictures / name).mkdir(exist_ok=True)
    assert f"FOLDER has both '{first}' and '{second}', and either could be meant" in refused(pictures)


LEFT_BEHIND = [
    ".ipynb_checkpoints/0-checkpoint.png", "._0.png", ".DS_Store", "@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg",
    "__MACOSX/cat/._0.png", "Thumbs.db", "desktop.ini", "lost+found/1.png", "$RECYCLE.BIN/$R1.png", "#recycle/1.png",
    ".git/objects/1.png", "@Recycle/1.png",
]  # fmt: skip


@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_what_machines_leave_in_folders_is_no_data(pictures, shape, caplog):
    clean = load(pictures, shape)
    for place in (pictures, pictures / "train", pictures / "val", pictures / "train" / "cat", pictures / "val" / "dog"):
        for name in LEFT_BEHIND:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    with caplog.at_level(logging.WARNING):
        data = load(pictures, shape)
        assert colours(data) == colours(clean)
    assert data.class_names == ("cat", "dog")
    assert (data.train_labels.tolist(), data.test_labels.tolist()) == ([0] * 4 + [1] * 4, [0] * 2 + [1] * 2)
    assert caplog.records == []


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
    assert evaluate(network, data, LARGE) == pytest.approx(200 / 3)
    for file in (pictures / "val").rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match="more than 1 of 4 image files cannot be decoded"):
        evaluate(network, data, LARGE)


def test_a_batch_is_as_large_as_it_was_planned_if_a_picture_breaks(pictures):
    data = load(pictures, LARGE)
    (pictures / "train" / "cat" / "1.png").write_bytes(b"")
    draws = Draws.of(4, Augmentation(flip=False), torch.Generator().manual_seed(0), crops=True)
    images, labels = training_batch(data, torch.tensor([0, 1, 4, 5]), Augmentation(), draws)
    assert labels.tolist() == [0, 1, 1, 0]
    shown = [colour(0, 0), colour(1, 0), colour(1, 1), colour(0, 0)]
    assert [tuple(image[:, 5, 5].tolist()) for image in images] == shown


def test_files_that_are_not_read_are_counted_by_their_endings(pictures, caplog):
    for name in ("cat/1.HEIC", "cat/2.heic", "dog/3.heic", "cat/a.mp4", "dog/README", "dog/b.svg", "dog/c.dng"):
        (pictures / "train" / name).write_bytes(b"?")
    picture(pictures / "train" / "loose.jpg")
    picture(pictures / "train" / "cat" / "9.JPEG")
    with caplog.at_level(logging.WARNING):
        assert load(pictures).count("train") == 9
    assert [record.message for record in caplog.records] == [
        f"{pictures}/train: left out, as they are not read: 3 .heic, 1 .mp4, 1 without an ending, 1 .svg, 1 .dng",
        f"{pictures}/train: left out, as they are in no class's folder: loose.jpg",
    ]


def test_a_class_of_files_that_are_not_read_is_refused(pictures):
    for file in (pictures / "val" / "dog").iterdir():
        file.rename(file.with_suffix(".heic"))
    assert "FOLDER/val/dog holds no picture of a format that is read, only 2 .heic; " in refused(pictures)


def test_pictures_in_deeper_folders_are_of_the_class_above_and_it_is_said(pictures, caplog):
    picture(pictures / "train" / "cat" / "siamese" / "young" / "a.png", (1, 2, 99))
    with caplog.at_level(logging.WARNING):
        data = load(pictures)
    assert data.train_labels.tolist() == [0] * 5 + [1] * 4
    assert colours(data)[4] == (1, 2, 99)
    assert [record.message for record in caplog.records] == [
        f"{pictures}/train: pictures in deeper folders, such as cat/siamese/young/a.png, belong to the class whose "
        "folder they are in"
    ]


def test_links_are_followed_and_never_in_circles(pictures, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    picture(elsewhere / "more" / "a.png", (1, 2, 99))
    cat = pictures / "train" / "cat"
    (cat / "b.png").symlink_to(elsewhere / "more" / "a.png")
    (cat / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(cat)
    (elsewhere / "up").symlink_to(pictures / "train")
    (cat / "self").symlink_to(".")
    (cat / "circle").symlink_to("circle")
    (cat / "circle.png").symlink_to("circle.png")
    os.mkfifo(cat / "pipe.png")
    for split, name in (("val", "dog"), ("train", "dog")):
        (pictures / split / name).rename(elsewhere.parent / f"{split}-{name}")
        (pictures / split / name).symlink_to(elsewhere.parent / f"{split}-{name}")
    (elsewhere.parent / "train-dog" / "split").symlink_to(pictures / "train")
    data = load(pictures)
    assert sorted(colours(data)) == sorted([*(colour(n // 4, n % 4) for n in range(8)), (1, 2, 99), (1, 2, 99)])
    assert data.test_labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("name", [b"caf\xe9", "Gebäck 🥐 & Co".encode(), b"two\nlines", b" spaces "])
def test_a_class_may_have_any_name(pictures, name):
    for split in ("train", "val"):
        (pictures / split / "dog").rename(pictures / split / os.fsdecode(name))
    data = load(pictures)
    assert os.fsdecode(name) in data.class_names
    for file in (pictures / "val" / os.fsdecode(name)).iterdir():
        file.unlink()
    sentence = refused(pictures)
    assert sentence.isprintable()
    assert sentence.encode()


def test_a_name_is_the_same_however_its_accents_are_kept(pictures):
    for split, form in (("train", "NFC"), ("val", "NFD")):
        (pictures / split / "cat").rename(pictures / split / unicodedata.normalize(form, "\xe9l\xe9phant"))
    data = load(pictures)
    assert data.class_names == ("dog", "\xe9l\xe9phant")
    assert data.test_labels.tolist() == [0, 0, 1, 1]
    assert [tuple(image[:, 5, 5].tolist()) for image in data.batch("test", [2])[0]] == [colour(0, 0)]
    picture(pictures / "train" / unicodedata.normalize("NFD", "\xe9l\xe9phant") / "0.png")
    assert "two sub-folders that are both called" in refused(pictures)


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


WRONG = {
    "classes and no splits": (
        ["cat/0.png", "dog/0.png"],
        "FOLDER needs the folders 'train' and 'val'.*; it has cat, dog$",
    ),
    "one split": (["train/cat/0.png"], "FOLDER needs the folders 'train' and 'val'.*; it has train$"),
    "pictures alone": (["0.png"], "FOLDER needs the folders 'train' and 'val'.*; it has no folders$"),
    "one level deeper": (
        ["data/Train/cat/0.png", "data/valid/cat/0.png"],
        "FOLDER needs the folders .*; give FOLDER/data, which has them$",
    ),
    "pictures without classes to train with": (
        ["train/0.png", "val/cat/0.png"],
        "FOLDER/train has no sub-folders, and each class needs one; .* into one of any name, such as FOLDER/train/all",
    ),
    "pictures without classes to test with": (
        ["train/cat/0.png", "test/0.png"],
        "FOLDER/test has no sub-folders, and needs the same ones as 'train'",
    ),
    "detection, splits inside": (
        ["images/train/0.png", "images/val/0.png", "labels/train/0.txt", "labels/val/0.txt"],
        "FOLDER has pictures beside what is to be found in them, for detection or segmentation, .*train/all",
    ),
    "detection, splits outside": (
        ["train/images/0.png", "train/labels/0.txt", "valid/images/0.png", "valid/labels/0.txt"],
        "FOLDER/train has pictures beside what is to be found in them",
    ),
    "segmentation": (
        ["train/Images/0.png", "train/Masks/0.png", "val/Images/0.png", "val/Masks/0.png"],
        "FOLDER/train has pictures beside what is to be found in them",
    ),
    "other classes": (
        ["train/cat/0.png", "train/dog/0.png", "val/cat/0.png", "val/wolf/0.png"],
        "FOLDER/val has other classes than the folder 'train': dog only in 'train' and wolf only in 'val'; ",
    ),
    "a class that is lacking": (
        ["train/cat/0.png", "train/dog/0.png", "val/cat/0.png"],
        "other classes than the folder 'train': dog only in 'train'; ",
    ),
    "an empty class": (
        ["train/cat/0.png", "train/dog/.keep", "val/cat/0.png", "val/dog/0.png"],
        r"FOLDER/train/dog holds no picture of a format that is read; put .jpg, .png or the like there, ",
    ),
    "annotations of other classes": (
        ["train/cat/0.png", "val/images/0.png", "val/val_annotations.txt=0.png\twolf\n"],
        "FOLDER/val/val_annotations.txt names the unknown class 'wolf' in line 1",
    ),
    "annotations of no class": (
        ["train/cat/0.png", "val/images/0.png", "val/val_annotations.txt=\n\n"],
        "FOLDER/val/val_annotations.txt names no picture of cat, which the training split has",
    ),
    "annotations that are no text": (
        ["train/cat/0.png", "val/images/0.png", "val/val_annotations.txt=\xff"],
        "FOLDER/val/val_annotations.txt cannot be read as text",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_folder_that_cannot_be_understood_is_refused(tmp_path, name):
    files, sentence = WRONG[name]
    for file in files:
        name, _, text = file.partition("=")
        picture(tmp_path / name) if name.endswith(".png") else write(tmp_path / name, text)
    assert re.search(sentence, refused(tmp_path))


def test_a_split_is_not_the_folder_to_give(pictures):
    with pytest.raises(UserError, match=f"needs the folders 'train' and 'val' .*; give {pictures}, which has them"):
        load(pictures / "train")
    with pytest.raises(UserError, match=r"there is no folder of images .*gone; name the one that has them"):
        load(pictures / "gone")
    with pytest.raises(UserError, match=r"0.png is a file and not a folder of images; unpack it if it is an archive"):
        load(pictures / "train" / "cat" / "0.png")


def test_the_home_folder_may_be_written_as_a_tilde(pictures, monkeypatch):
    """No shell replaces it behind a colon."""
    monkeypatch.setenv("HOME", str(pictures.parent))
    assert ImageSource(f"imagefolder:~/{pictures.name}").load(SMALL).count("train") == 8
