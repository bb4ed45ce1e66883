"""Every kind of file that holds weights is read to the same numbers, and nothing that it holds beside them is run.

What is no checkpoint, is damaged or lies about its sizes is refused by its path, in words that are not PyTorch's.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import datetime
import decimal
import enum
import fractions
import io
import json
import os
import pathlib
import pickle
import re
import types
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from aap_hw.errors import UserError
from tests.models.checkpoints.networks import are_equal, loaded, network, weights

State = dict[str, torch.Tensor]
TRAINED = weights()


class Stage(enum.IntEnum):
    LAST = 2


class Attributes(dict[str, Any]):
    """A dictionary whose keys are attributes, as Lightning's and yacs' are."""

    __getattr__ = dict.__getitem__


class History:
    """What only its own library can make: it wants an argument and keeps to slots."""

    __slots__ = ("values",)

    def __init__(self, values: Any) -> None:
        self.values = values


class Calls:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


BESIDE: dict[str, Any] = {
    "namespace": argparse.Namespace(lr=0.1),
    "simple namespace": types.SimpleNamespace(lr=0.1),
    "numpy": [np.float64(91.2), np.dtype("int16"), np.arange(3), np.array(["a"]), np.array([None])],
    "paths": [pathlib.Path("x"), pathlib.PureWindowsPath("C:/x")],
    "collections": [collections.defaultdict(list, a=[1]), collections.Counter("aab"), collections.deque([1])],
    "enum": Stage.LAST,
    "times": [datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), datetime.date(2026, 1, 2), datetime.timedelta(1)],
    "numbers": [decimal.Decimal("1.5"), fractions.Fraction(1, 3), 3 + 4j, 2**80, range(4), slice(1)],
    "identity": uuid.UUID(int=7),
    "sets": [{1, 2}, frozenset("a")],
    "torch": [torch.Size([2]), torch.float16, torch.device("cuda:1"), torch.strided, torch.Generator().get_state()],
    "attributes": Attributes(lr=Attributes(first=0.1)),
    "a class of the script's": History([1.0, 2.0]),
    "functions": [os.path.join, np.mean, print],
    "an optimiser": torch.optim.Adam(network().parameters()),
}


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("anew", [True, False], ids=["archive", "old"])
def test_whatever_lies_beside_the_weights_they_are_read(tmp_path: Path, name: str, anew: bool) -> None:
    file = tmp_path / "c.ckpt"
    torch.save({name: BESIDE[name], "state_dict": TRAINED}, file, _use_new_zipfile_serialization=anew)
    assert are_equal(loaded(file), TRAINED)


def save_pickle(content: Any, file: Path) -> None:
    file.write_bytes(pickle.dumps(content))


def save_old_pickle(content: Any, file: Path) -> None:
    file.write_bytes(pickle.dumps(content, protocol=2))


def save_old(content: Any, file: Path) -> None:
    torch.save(content, file, _use_new_zipfile_serialization=False)


def save_without_checksums(content: Any, file: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(content, file)
    finally:
        torch.serialization.set_crc32_options(True)


def save_arrays(protocol: int) -> Callable[[State, Path], None]:
    def save(state: State, file: Path) -> None:
        arrays = {name: tensor.numpy() for name, tensor in state.items()}
        arrays["0.weight"] = np.asfortranarray(arrays["0.weight"])
        arrays["0.bias"] = arrays["0.bias"].astype(">f4")
        file.write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}, protocol=protocol))

    return save


def save_sharded(state: State, file: Path) -> None:
    """As Hugging Face splits a large model; `file` is the index."""
    places = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(state)}
    for place in set(places.values()):
        safetensors.torch.save_file({name: state[name] for name in state if places[name] == place}, file.parent / place)
    file.write_text(json.dumps({"metadata": {}, "weight_map": places}))


def save_parameters(state: State, file: Path) -> None:
    torch.save({name: nn.Parameter(tensor, tensor.is_floating_point()) for name, tensor in state.items()}, file)


class Old:
    """A tensor as PyTorch 0.1 wrote a parameter."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __reduce__(self) -> Any:
        numbers = self.tensor.storage(), self.tensor.storage_offset(), self.tensor.size(), self.tensor.stride()
        return nn.Parameter, (Calls(torch._utils._rebuild_tensor, *numbers),), (True, False, collections.OrderedDict())


SAVED: dict[str, tuple[str, Callable[[Any, Path], None]]] = {
    "torch.save": ("c.pth", lambda state, file: torch.save(state, file)),
    "torch.save before 1.6": ("c.pth.tar", save_old),
    "without checksums": ("c.pt", save_without_checksums),
    "pickle": ("c.pkl", save_pickle),
    "pickle, protocol 2": ("c.pkl", save_old_pickle),
    "NumPy arrays, protocol 2": ("c.pkl", save_arrays(2)),
    "NumPy arrays, protocol 5": ("c.pkl", save_arrays(5)),
    "safetensors": ("c.safetensors", lambda state, file: safetensors.torch.save_file(state, file)),
    "safetensors in parts": ("model.safetensors.index.json", save_sharded),
    "parameters": ("c.pt", save_parameters),
    "parameters of 2017": ("c.pth", lambda state, file: save_old({n: Old(t) for n, t in state.items()}, file)),
    "views of one run of numbers": ("c.pt", lambda state, file: torch.save(as_views(state), file)),
    "doubles": (
        "c.pt",
        lambda state, file: torch.save({n: t.double() for n, t in floating(state)} | counters(state), file),
    ),
}


def floating(state: State) -> list[tuple[str, torch.Tensor]]:
    return [(name, tensor) for name, tensor in state.items() if tensor.is_floating_point()]


def counters(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not tensor.is_floating_point()}


def as_views(state: State) -> State:
    run = torch.cat([tensor.flatten() for _, tensor in floating(state)])
    pieces = run.split([tensor.numel() for _, tensor in floating(state)])
    views = {name: piece.view(tensor.shape) for (name, tensor), piece in zip(floating(state), pieces, strict=True)}
    views["3.weight"] = views["3.weight"].t().contiguous().t()  # and one whose rows are not together
    return views | counters(state)


@pytest.mark.parametrize("name", SAVED)
@pytest.mark.filterwarnings("ignore:TypedStorage")
def test_every_kind_of_file_gives_the_same_numbers(tmp_path: Path, name: str) -> None:
    file, save = SAVED[name]
    save(TRAINED, tmp_path / file)
    assert are_equal(loaded(tmp_path / file), TRAINED)


@pytest.mark.parametrize(
    ("dtype", "save"),
    [
        (torch.bfloat16, torch.save),
        (torch.float16, torch.save),
        (torch.float8_e4m3fn, torch.save),
        (torch.half, save_old),
    ],
)
def test_narrow_numbers_become_the_networks_own(tmp_path: Path, dtype: torch.dtype, save: Any) -> None:
    narrow = {name: tensor.to(dtype) for name, tensor in floating(TRAINED)}
    save(narrow, tmp_path / "c.pth")
    found = loaded(tmp_path / "c.pth")
    assert all(torch.equal(found[name], tensor.float()) for name, tensor in narrow.items())


class Other(nn.Module):
    """A network as its author wrote it, with what is no part of its state."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()
        self.register_buffer("passing", torch.ones(2), persistent=False)
        self.register_parameter("nothing", None)
        self.note = torch.ones(5)
        self.callback = os.path.join

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.layers(image)
        return scores


@pytest.mark.parametrize("save", [torch.save, save_old, save_pickle], ids=["archive", "old", "pickle"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda module: module,
        lambda module: {"epoch": 3, "model": None, "ema": copy.deepcopy(module).half().float()},
        lambda module: {"model": nn.DataParallel(module)},
        lambda module: [module, {"lr": 0.1}],
        lambda module: types.SimpleNamespace(net=module),
        lambda module: torch.fx.symbolic_trace(module),
        lambda module: torch.compile(module),
    ],
    ids=["alone", "under a key", "parallel", "in a list", "an attribute", "traced", "compiled"],
)
def test_a_network_that_was_saved_as_a_whole_is_read_without_its_code(
    tmp_path: Path, save: Any, wrap: Any, caplog: pytest.LogCaptureFixture
) -> None:
    module = Other()
    module.layers.load_state_dict({name: tensor.half().float() for name, tensor in TRAINED.items()})
    save(wrap(module), tmp_path / "c.pt")
    wanted = Other()
    assert are_equal(loaded(tmp_path / "c.pt", wanted), module.state_dict())
    assert not [each for each in caplog.records if each.name.startswith("aap_hw")]


def test_an_average_of_ultralytics_is_read_in_half_precision(tmp_path: Path) -> None:
    module = network()
    module.load_state_dict(TRAINED)
    torch.save({"model": network().half(), "ema": copy.deepcopy(module).half(), "updates": 3}, tmp_path / "best.pt")
    found = loaded(tmp_path / "best.pt")
    assert all(torch.equal(found[name], tensor.half().float()) for name, tensor in floating(TRAINED))


@pytest.mark.parametrize("save", [torch.save, save_old, save_pickle], ids=["archive", "old", "pickle"])
def test_code_beside_the_weights_is_not_run(tmp_path: Path, save: Any) -> None:
    mark = tmp_path / "mark"
    harm = Calls(os.system, f"touch {mark}")
    save(
        {"args": harm, "state_dict": {**TRAINED, "0.extra": harm}, "model": Calls(torch.hub.load, "a/b", "c")},
        tmp_path / "c.pt",
    )
    assert are_equal(loaded(tmp_path / "c.pt"), TRAINED)
    assert not mark.exists()


def test_weights_that_only_code_could_give_are_refused_in_our_words(tmp_path: Path) -> None:
    torch.save({"state_dict": Calls(torch.hub.load_state_dict_from_url, "https://example.com/w.pt")}, tmp_path / "c.pt")
    with pytest.raises(
        UserError, match=r"no weights; what torch.hub.load_state_dict_from_url would make .* could run code; "
    ):
        loaded(tmp_path / "c.pt")


def jit(file: Path) -> None:
    torch.jit.save(torch.jit.script(network()), file)


def exported(file: Path) -> None:
    torch.export.save(torch.export.export(network().eval(), (torch.zeros(1, 3, 4, 4),)), file)


def text(content: bytes) -> Callable[[Path], None]:
    return lambda file: file.write_bytes(content) and None


def packed(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("weights/readme.txt", "unpack me")


def arrays(file: Path) -> None:
    np.savez(file.with_suffix(".npz"), a=np.ones(3))
    file.with_suffix(".npz").rename(file)


NO_CHECKPOINTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "TorchScript": (jit, r"is a TorchScript program and no checkpoint; .*torch.jit.load\('.*c.pth'\).state_dict\(\)"),
    "exported": (exported, "is an exported program and no checkpoint; give it as --model"),
    "arrays": (arrays, "is an archive of NumPy's"),
    "packed": (packed, "is a zip archive and no checkpoint"),
    "pointer": (
        text(b"version https://git-lfs.github.com/spec/v1\noid sha256:00"),
        "pointer of Git LFS .*'git lfs pull'",
    ),
    "Keras": (text(b"\x89HDF\r\n\x1a\n...."), "an HDF5 file"),
    "gzip": (text(b"\x1f\x8b\x08...."), "packed with gzip; unpack it"),
    "page": (text(b"<!DOCTYPE html>"), "were not written by torch.save"),
    "empty": (text(b""), "damaged or cut short"),
    "a number": (lambda file: torch.save(7, file), "holds a int and no weights"),
}


@pytest.mark.parametrize("name", NO_CHECKPOINTS)
@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_what_is_no_checkpoint_is_refused_by_what_it_is(tmp_path: Path, name: str) -> None:
    save, sentence = NO_CHECKPOINTS[name]
    save(tmp_path / "c.pth")
    with pytest.raises(UserError, match=sentence) as refusal:
        loaded(tmp_path / "c.pth")
    assert not re.search("weights_only|Unpickl|C\\+\\+|safe_globals", str(refusal.value))


def lying(*where: Any, kind: Any = torch._utils._rebuild_tensor_v2) -> Callable[[Path], None]:
    """A tensor whose place among its numbers is another than it can be."""
    numbers = torch.zeros(3)

    def save(file: Path) -> None:
        torch.save(
            {**TRAINED, "0.bias": Calls(kind, numbers.storage(), *where, False, collections.OrderedDict())}, file
        )

    return save


def shortened(file: Path) -> None:
    """Fewer numbers than the file says there are."""
    torch.save(TRAINED, file)
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content[:8] if name.endswith("data/0") else content)


def elsewhere(file: Path) -> None:
    """Numbers that are said to be in a file of this machine."""
    torch.save(TRAINED, file)
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            key = b"X\x01\x00\x00\x000"
            archive.writestr(name, content.replace(key, b"X\x0e\x00\x00\x00../../../../x0", 1))


DAMAGED: dict[str, Callable[[Path], None]] = {
    "beyond the end": lying(0, (4,), (1,)),
    "far beyond the end": lying(2**62, (4,), (1,)),
    "long strides": lying(0, (2, 2), (2**40, 1)),
    "before the beginning": lying(-1, (4,), (1,)),
    "backwards": lying(3, (4,), (-1,)),
    "no number": lying("0", (4,), (1,)),
    "a truth": lying(True, (2,), (1,)),
    "as many strides": lying(0, (4,), (1, 1)),
    "no numbers": lambda file: torch.save(
        {"0.bias": Calls(torch._utils._rebuild_tensor_v2, None, 0, (4,), (1,))}, file
    ),
    "fewer numbers": shortened,
    "another file": elsewhere,
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.filterwarnings("ignore:TypedStorage")
def test_a_tensor_that_cannot_be_is_refused(tmp_path: Path, name: str) -> None:
    DAMAGED[name](tmp_path / "c.pth")
    with pytest.raises(UserError, match=r"c\.pth( are damaged|: the file is damaged| do not fit mynet)"):
        loaded(tmp_path / "c.pth")


def test_numbers_that_are_spread_out_of_one_are_read(tmp_path: Path) -> None:
    torch.save({**TRAINED, "0.bias": torch.tensor(2.0).expand(4)}, tmp_path / "c.pth")
    assert loaded(tmp_path / "c.pth")["0.bias"].tolist() == [2.0] * 4


def bomb(levels: int) -> Any:
    value: Any = [torch.zeros(2)]
    for _ in range(levels):
        value = [value, value]
    return value


@pytest.mark.parametrize("content", [bomb(40), {"a": [{"b": bomb(30)}]}])
def test_lists_in_lists_without_end_are_refused(tmp_path: Path, content: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aap_hw.models.checkpoints.contents._MOST", 10_000)
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(UserError, match="it has no end"):
        loaded(tmp_path / "c.pth")


def test_what_is_in_itself_is_read_once(tmp_path: Path) -> None:
    content: dict[str, Any] = {"state_dict": TRAINED}
    content["trainer"] = content
    torch.save(content, tmp_path / "c.pth")
    assert are_equal(loaded(tmp_path / "c.pth"), TRAINED)


UNREADABLE: dict[str, Callable[[], torch.Tensor]] = {
    "quantized": lambda: torch.quantize_per_tensor(torch.zeros(4), 0.1, 0, torch.qint8),
    "sparse": lambda: torch.zeros(4).to_sparse(),
    "from the device 'meta'": lambda: torch.zeros(4, device="meta"),
}


@pytest.mark.parametrize("what", UNREADABLE)
@pytest.mark.filterwarnings("ignore")
def test_a_tensor_without_plain_numbers_is_refused_by_name(tmp_path: Path, what: str) -> None:
    torch.save({**TRAINED, "0.bias": UNREADABLE[what]()}, tmp_path / "c.pth")
    with pytest.raises(UserError, match=rf"'0\.bias' cannot be used: .*{what}"):
        loaded(tmp_path / "c.pth")


def of_every_kind() -> list[bytes]:
    stream, old = io.BytesIO(), io.BytesIO()
    torch.save({"model": network(), "a": 1}, stream)
    torch.save(TRAINED, old, _use_new_zipfile_serialization=False)
    return [stream.getvalue(), old.getvalue(), pickle.dumps(TRAINED), safetensors.torch.save(TRAINED)]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(of_every_kind()), st.data())
def test_a_damaged_file_is_loaded_or_refused_but_nothing_else_happens(content: bytes, data: st.DataObject) -> None:
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.sampled_from([len(damaged), len(damaged) // 2, len(damaged) - 3]))
    file = FUZZED / ("c.safetensors" if content[:2] not in (b"PK", b"\x80\x02", b"\x80\x04") else "c.pth")
    file.write_bytes(damaged[:end])
    with contextlib.suppress(UserError):
        loaded(file)


@pytest.fixture(autouse=True, scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    global FUZZED
    FUZZED = tmp_path_factory.mktemp("fuzzed")


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        (
            '{"weight_map": {"a": "../other.safetensors"}}',
            r"names '\.\./other\.safetensors', which is no file beside it",
        ),
        ('{"weight_map": {"a": "gone.safetensors"}}', r"cannot read .*gone\.safetensors: No such file"),
        ('{"weight_map": ["a"]}', "damaged or cut short"),
        ("[]", "damaged or cut short"),
    ],
)
def test_an_index_that_names_no_files_beside_it_is_refused(tmp_path: Path, index: str, sentence: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=sentence):
        loaded(tmp_path / "model.safetensors.index.json")
