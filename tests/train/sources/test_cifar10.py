"""CIFAR-10 is the same images, whichever of its forms the folder holds."""

import json

import numpy as np
import pytest
from PIL import Image

from aap_hw.errors import UserError
from aap_hw.train.sources import cifar10
from aap_hw.train.sources.cifar10 import load_cifar10


@pytest.fixture(scope="module")
def few():
    random = np.random.default_rng(0)
    return random.integers(0, 256, (12, 3, 32, 32), np.uint8), random.integers(0, 10, 12)


def write_binary(folder, images, labels):
    (folder / "cifar-10-batches-bin").mkdir()
    rows = np.concatenate([labels[:, None].astype(np.uint8), images.reshape(len(images), -1)], axis=1)
    for number in range(5):
        part = rows[2 * number : 2 * number + 2]
        (folder / "cifar-10-batches-bin" / f"data_batch_{number + 1}.bin").write_bytes(part.tobytes())
    (folder / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(rows[10:].tobytes())


def write_png(folder, images, labels):
    def write(name, some):
        Image.fromarray(some.transpose(0, 2, 3, 1).reshape(len(some), 1024, 3)).save(folder / name)

    for number in range(5):
        write(f"data_batch_{number + 1}.png", images[2 * number : 2 * number + 2])
    write("test_batch.png", images[10:])
    (folder / "train_lables.json").write_text(json.dumps(labels[:10].tolist()))
    (folder / "test_lables.json").write_text(json.dumps(labels[10:].tolist()))


@pytest.mark.parametrize("write", [write_binary, write_png])
def test_images_and_labels_are_read_in_order(write, few, tmp_path):
    write(tmp_path, *few)
    data = load_cifar10(tmp_path)
    assert np.array_equal(np.concatenate([data.train_images, data.test_images]), few[0])
    assert np.array_equal(np.concatenate([data.train_labels, data.test_labels]), few[1])
    assert data.classes == 10


def test_the_folder_may_be_the_inner_one(few, tmp_path):
    write_binary(tmp_path, *few)
    assert len(load_cifar10(tmp_path / "cifar-10-batches-bin").test_images) == 2


def test_inputs_are_normalised_as_the_shared_checkpoints_expect(few, tmp_path):
    write_binary(tmp_path, *few)
    inputs = load_cifar10(tmp_path).tensors("train", (3, 32, 32), [3])
    expected = (few[0][3] / 255 - np.reshape([0.485, 0.456, 0.406], (3, 1, 1))) / np.reshape(
        [0.229, 0.224, 0.225], (3, 1, 1)
    )
    np.testing.assert_allclose(inputs[0], expected, atol=1e-5)


def test_failure_without_a_text_is_called_by_its_type(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise EOFError

    (tmp_path / "cifar-10-batches-py").mkdir()
    monkeypatch.setattr("torchvision.datasets.CIFAR10", fail)
    with pytest.raises(UserError, match=r"cannot read CIFAR-10 in .*: EOFError; "):
        cifar10.load_cifar10(tmp_path)


def test_pickles_of_unknown_content_are_not_opened(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    for name in (*cifar10.TRAIN_FILES, "test_batch", "batches.meta"):
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(UserError, match=r"cannot read CIFAR-10 in .*--download"):
        load_cifar10(tmp_path)


def test_what_is_missing_or_damaged_is_named(few, tmp_path):
    with pytest.raises(UserError, match=r"there is no CIFAR-10 in"):
        load_cifar10(tmp_path)
    write_png(tmp_path, *few)
    (tmp_path / "train_lables.json").write_text("[1, 2]")
    with pytest.raises(UserError, match=r"train_lables.json has labels of shape \(2,\) for 10 images"):
        load_cifar10(tmp_path)
    for text in ("{", json.dumps([1.7] * 10), json.dumps([2**70] * 10)):
        (tmp_path / "train_lables.json").write_text(text)
        with pytest.raises(UserError, match=r"train_lables.json: it is no list of whole numbers"):
            load_cifar10(tmp_path)
    for content in ((tmp_path / "data_batch_3.png").read_bytes()[:-30], b"", b"%!PS-Adobe-3.0 EPSF-3.0\n"):
        (tmp_path / "data_batch_3.png").write_bytes(content)
        with pytest.raises(UserError, match=r"data_batch_3.png: it is no whole PNG file"):
            load_cifar10(tmp_path)


def test_a_truncated_binary_file_is_named(few, tmp_path):
    write_binary(tmp_path, *few)
    file = tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"data_batch_2.bin is damaged: 6145 bytes are not rows of 3073"):
        load_cifar10(tmp_path)
