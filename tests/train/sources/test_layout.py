"""A folder of pictures is understood as it is meant, whatever else lies in it, or a sentence says what is wrong."""

import logging
import os
import re
import unicodedata

import pytest

from aap_hw.errors import UserError
from aap_hw.train.sources import ImageSource
from tests.train.sources.folders import LARGE, SMALL, colour, colours, load, picture, refused, write


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


def test_of_three_splits_one_is_for_validation_and_of_two_the_second_is_to_test_with(pictures):
    assert (load(pictures).has_validation, load(pictures).chosen_by) == (False, "test")
    for name in ("cat", "dog"):
        picture(pictures / "test" / name / "0.png", (1, 2, 99))
    for shape in (SMALL, LARGE):
        data = load(pictures, shape)
        assert (data.count("train"), data.count("val"), data.count("test")) == (8, 4, 2)
        assert data.chosen_by == "val"
        assert colours(data, "val") == [colour(0, 0), colour(0, 1), colour(1, 0), colour(1, 1)]
        assert colours(data, "test") == [(1, 2, 99)] * 2
        fewer = data.limited(2)
        assert [fewer.count(split) for split in fewer.splits] == [2, 2, 2]
        assert colours(fewer, "val") == [colour(0, 0), colour(1, 0)]


def test_a_test_split_without_classes_is_left_out_and_one_of_some_classes_refused(pictures, caplog):
    picture(pictures / "test" / "images" / "0.png")
    with caplog.at_level(logging.WARNING):
        data = load(pictures)
    assert (data.has_validation, data.count("test")) == (False, 4)
    assert [record.message for record in caplog.records] == [
        f"{pictures}/test: left out, as its pictures have no classes"
    ]
    picture(pictures / "test" / "cat" / "0.png")
    assert refused(pictures) == (
        "FOLDER/test has other classes than the folder 'train': dog only in 'train' and images only in 'test'; give "
        "each class a sub-folder of one name in both"
    )


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
