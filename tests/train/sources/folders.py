"""Folders of pictures for tests: pictures of one colour each, and what a folder is read as."""

import pytest
from PIL import Image

from aap_hw.errors import UserError
from aap_hw.train.sources import ImageSource

SMALL, LARGE = (3, 16, 16), (3, 96, 96)


def colour(label, number):
    """A colour that tells a class and an image apart."""
    return (40 + 80 * label, 10 * number, 200)


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
