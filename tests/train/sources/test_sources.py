"""Every source of images gives what its files hold, at the network's size, or says in a sentence what is wrong."""

import gzip
import pickle
import struct
import sys

import numpy as np
import pytest
import torch

from aap_hw.errors import UserError
from aap_hw.inputs import Inputs
from aap_hw.train.data import LabelledImages, Normalisation
from aap_hw.train.sources import ImageSource, npz


def write_idx(path, array):
    head = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(head + array.tobytes()) if path.suffix == ".gz" else head + array.tobytes())


@pytest.mark.parametrize(("inner", "suffix"), [("", ".gz"), ("FashionMNIST/raw", "")])
def test_the_four_files_of_fashion_mnist_are_read_packed_or_not(tmp_path, inner, suffix):
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (5, 28, 28), np.uint8), np.arange(5, dtype=np.uint8)
    (tmp_path / inner).mkdir(parents=True, exist_ok=True)
    for prefix in ("train", "t10k"):
        write_idx(tmp_path / inner / f"{prefix}-images-idx3-ubyte{suffix}", images)
        write_idx(tmp_path / inner / f"{prefix}-labels-idx1-ubyte{suffix}", labels)
    data = ImageSource(f"fashion-mnist:{tmp_path}").load((1, 28, 28))
    read, of = data.batch("test", range(5))
    assert np.array_equal(read[:, 0], images)
    assert of.tolist() == labels.tolist()
    write_idx(tmp_path / inner / f"train-images-idx3-ubyte{suffix}", images)
    broken = tmp_path / inner / f"t10k-labels-idx1-ubyte{suffix}"
    broken.write_bytes(broken.read_bytes()[:-2])
    with pytest.raises(UserError, match="t10k-labels"):
        ImageSource(f"fashion-mnist:{tmp_path}").load((1, 28, 28))
    for content in (b"", b"\0\0\x08", b"\0\0\x08\x03\0"):
        broken.write_bytes(gzip.compress(content) if suffix else content)
        with pytest.raises(UserError, match=r"t10k-labels.* is not an IDX file of bytes"):
            ImageSource(f"fashion-mnist:{tmp_path}").load((1, 28, 28))


def arrays(count=6, shape=(8, 8, 3), **changes):
    random = np.random.default_rng(1)
    images = random.integers(0, 256, (count, *shape), np.uint8)
    labels = np.arange(count) % 3
    return {
        "train_images": images,
        "train_labels": labels,
        "test_images": images,
        "test_labels": labels[:, None],
    } | changes


def test_an_archive_of_arrays_is_read_with_channels_last_and_labels_in_columns(tmp_path):
    given = arrays(mean=np.array([0.5, 0.4, 0.3]), std=np.array([0.2, 0.2, 0.1]))
    np.savez(tmp_path / "a.npz", **given)
    data = ImageSource(f"npz:{tmp_path / 'a.npz'}").load((3, 8, 8))
    images, labels = data.batch("test", range(6))
    assert np.array_equal(images, given["test_images"].transpose(0, 3, 1, 2))
    assert labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.classes == 3
    assert data.normalisation == Normalisation((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))


def test_an_archive_may_have_a_split_for_validation(tmp_path):
    given = arrays()
    given |= {"val_images": given["train_images"][:4] // 2, "val_labels": np.array([2, 2, 1, 0])}
    np.savez(tmp_path / "a.npz", **given)
    data = ImageSource(f"npz:{tmp_path / 'a.npz'}", limit=2).load((3, 8, 8))
    assert (data.chosen_by, [data.count(split) for split in data.splits]) == ("val", [2, 2, 2])
    images, labels = data.batch("val", range(2))
    assert np.array_equal(images, given["val_images"][[0, 2]].transpose(0, 3, 1, 2))
    assert labels.tolist() == [2, 1]
    with pytest.raises(UserError, match=r"lacks val_labels \(it holds"):
        npz.named_samples({k: v for k, v in given.items() if k != "val_labels"}, Inputs.of((3, 8, 8)), "it")


@pytest.mark.parametrize("channels", [1, 3, 13])
@pytest.mark.parametrize("side", [4, 8])
def test_channels_come_first_or_last(tmp_path, channels, side):
    images = np.random.default_rng(2).integers(0, 256, (6, channels, side, side), np.uint8)
    for number, each in enumerate((images, images.transpose(0, 2, 3, 1))):
        np.savez(tmp_path / f"{number}.npz", **arrays(train_images=each, test_images=each))
        data = ImageSource(f"npz:{tmp_path / f'{number}.npz'}").load((channels, side, side))
        assert np.array_equal(data.batch("test", range(6))[0], images)


LABELS = np.arange(6) % 3


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"train_labels": np.array([{}] * 6)}, "made of Python objects, .*; give an .npz file of plain arrays"),
        ({"train_images": np.array([None] * 6)}, "train_images of .* is made of Python objects"),
        ({"train_labels": LABELS * 1.0}, r"train_labels of .* is float64.*such as labels\.astype"),
        ({"train_labels": LABELS + 0.5}, r"train_labels of .* is float64.*; give one whole number an image$"),
        (
            {"test_labels": np.eye(3, dtype=int)[LABELS]},
            r"test_labels of .* shape \(6, 3\); .* such as labels\.argmax\(1\)",
        ),
        (
            {"train_labels": np.array(list("abcabc"))},
            r"such as numpy\.unique\(labels, return_inverse=True\)\[1\] of names",
        ),
        (
            {"train_labels": LABELS + 1, "test_labels": LABELS + 1},
            "run from 1 to 3 and none is 0; number classes from 0",
        ),
        ({"train_labels": LABELS - 1}, "run from -1 to 2; number classes from 0"),
        ({"train_labels": LABELS * 10**12}, "run from 0 to 2000000000000; number classes from 0"),
        (
            {"test_images": np.zeros((0, 8, 8, 3), np.uint8), "test_labels": LABELS[:0]},
            "not one image in the test split",
        ),
        ({"mean": np.array([0.5])}, "lacks the other"),
        ({"mean": np.array(["a"] * 3), "std": np.ones(3)}, "'mean' and 'std' of .* are not numbers"),
        ({"train_images": np.zeros((6, 8, 8, 3))}, "give bytes"),
        ({"val_images": np.zeros((6, 4, 4, 3), np.uint8), "val_labels": LABELS}, "validation images .*equally large"),
    ],
)
def test_an_archive_of_something_else_is_refused(tmp_path, change, sentence):
    np.savez(tmp_path / "a.npz", **arrays(**change))
    with pytest.raises(UserError, match=sentence):
        ImageSource(f"npz:{tmp_path / 'a.npz'}").load((3, 8, 8))


def test_a_file_that_is_no_archive_of_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "whole.npz", **arrays())
    np.save(tmp_path / "alone.npy", np.zeros(3))
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    place = whole.index(arrays()["train_images"].tobytes()[:64])
    (tmp_path / "flipped.npz").write_bytes(whole[:place] + bytes(64) + whole[place + 64 :])
    (tmp_path / "pickled.npz").write_bytes(pickle.dumps({"train_images": 1}))
    for name, sentence in (
        ("gone.npz", "cannot read the images .*gone.npz: No such file"),
        ("alone.npy", "alone.npy is one array and not an archive of several; give an .npz file"),
        ("cut.npz", "cannot read the images .*cut.npz: it is no .npz file, or cut short"),
        ("pickled.npz", "cannot read the images .*pickled.npz: it is no .npz file, or cut short"),
        ("flipped.npz", "train_images of .*flipped.npz is damaged; give an .npz file"),
    ):
        with pytest.raises(UserError, match=sentence):
            ImageSource(f"npz:{tmp_path / name}").load((3, 8, 8))


def test_a_function_of_the_users_is_called_with_the_input_shape(tmp_path, monkeypatch):
    (tmp_path / "my_images.py").write_text(
        "import numpy as np\nfrom aap_hw.train.data import LabelledImages\n"
        "def make(shape):\n    images = np.zeros((4, *shape), np.uint8)\n"
        "    return LabelledImages(images, np.arange(4), images, np.arange(4), tuple('abcd'))\n"
        "def wrong(shape):\n    return 3\n"
        "def fails(shape):\n    return shape[7]\n"
        "def last(shape):\n    images = np.zeros((4, *shape[1:], shape[0]), np.uint8)\n"
        "    return LabelledImages(images, np.arange(4), images, np.arange(4), tuple('abcd'))\n"
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert ImageSource("my_images:make").load((3, 4, 4)).count("train") == 4
    with pytest.raises(UserError, match="returned a int"):
        ImageSource("my_images:wrong").load((3, 4, 4))
    with pytest.raises(UserError, match=r"channels come before rows: images\.transpose\(0, 3, 1, 2\)"):
        ImageSource("my_images:last").load((3, 4, 4))
    with pytest.raises(UserError, match=r"fails gives no images: IndexError.* it is called with \(3, 4, 4\)"):
        ImageSource("my_images:fails").load((3, 4, 4))
    with pytest.raises(UserError, match="there is no 'lost' in my_images; did you mean 'last'"):
        ImageSource("my_images:lost").load((3, 4, 4))
    with pytest.raises(UserError, match="cannot import no_images for the images: ModuleNotFoundError"):
        ImageSource("no_images:make").load((3, 4, 4))
    with pytest.raises(UserError, match="no module of that name; did you mean 'imagefolder'"):
        ImageSource("imagfolder:photos").load((3, 4, 4))
    assert sys.path == before, "what is imported later would be looked for there, too"


@pytest.mark.parametrize(
    "given",
    ["y_train=[0, 1, 1, 0]", "y_train=torch.tensor([0, 1, 1, 0])", "x_train=torch.from_numpy(x)", "x_train=list(x)",
     "mean=[.5, .5, .5], std=torch.ones(3)"],
)  # fmt: skip
def test_a_function_of_the_users_may_return_lists_and_tensors(tmp_path, monkeypatch, given):
    (tmp_path / "my_arrays.py").write_text(
        "import numpy as np\nimport torch\n"
        "x, y = np.arange(4 * 48).reshape(4, 3, 4, 4).astype(np.uint8), np.array([0, 1, 1, 0])\n"
        "def make(shape):\n    arrays = dict(x_train=x, y_train=y, x_test=x, y_test=y)\n"
        f"    return {{**arrays, **dict({given})}}\n"
    )
    monkeypatch.chdir(tmp_path)
    data = ImageSource("my_arrays:make").load((3, 4, 4))
    assert isinstance(data, LabelledImages)
    assert data.train_labels.tolist() == [0, 1, 1, 0]
    assert np.array_equal(data.train_images, data.test_images)
    if "mean" in given:
        assert data.normalisation == Normalisation((0.5, 0.5, 0.5), (1.0, 1.0, 1.0))


def test_the_normalisation_and_the_number_of_images_can_be_chosen():
    given = Normalisation((0.5,), (0.25,))
    data = ImageSource("embedded", limit=20, normalisation=given).load((3, 28, 28))
    assert (data.count("train"), data.count("test")) == (20, 20)
    assert sorted(set(data.train_labels.tolist())) == list(range(10))
    pixels = data.batch("train", [0])[0]
    assert torch.allclose(data.tensors("train", (3, 28, 28), [0])[0, 0], (pixels[0, 0] / 255 - 0.5) / 0.25)


def test_fewer_images_are_normalised_as_all_of_them():
    few, all_of_them = (ImageSource("embedded", limit=limit).load((3, 28, 28)) for limit in (20, None))
    assert torch.equal(few.mean_and_std[0], all_of_them.mean_and_std[0])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("embeded", "did you mean 'embedded'"),
        ("cifar10", "does not say where the images are: write cifar10:FOLDER"),
        ("npz:", "write npz:FILE"),
        ("cifar-10:x/y", "did you mean 'cifar10'"),
        ("", "is no source of images"),
    ],
)
def test_a_text_that_is_no_source_is_refused_at_once(text, sentence):
    with pytest.raises(UserError, match=sentence):
        ImageSource(text)


def test_images_of_other_channels_than_the_network_takes_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", **arrays())
    with pytest.raises(UserError, match=r"have 3 channels.* the network takes 1"):
        ImageSource(f"npz:{tmp_path / 'a.npz'}").load((1, 8, 8))
    with pytest.raises(UserError, match="cannot be downloaded"):
        ImageSource(f"npz:{tmp_path / 'a.npz'}").load((3, 8, 8), download=True)
