"""An exported program that could run code, change files or be read in two ways is refused before it is loaded."""

from __future__ import annotations

import contextlib
import io
import json
import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aap_hw.errors import UserError
from aap_hw.models.source import find
from tests.models.exporting import ANY_NUMBER


class Runs:
    """Pickled, it makes a folder when it is loaded."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("was_run",)


Members = list[tuple[str, bytes]]


def rewritten(path: Path, change: Callable[[Members], Members]) -> None:
    with zipfile.ZipFile(path) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Duplicate name")
        for member, content in change(members):
            archive.writestr(member, content)


def in_member(name: str, change: Callable[[bytes], bytes]) -> Callable[[Members], Members]:
    return lambda members: [(each, change(data) if each.endswith(name) else data) for each, data in members]


def edited(change: Callable[[Any], object]) -> Callable[[bytes], bytes]:
    def edit(content: bytes) -> bytes:
        document = json.loads(content)
        change(document)
        return json.dumps(document).encode()

    return edit


def batch_size(document: Any) -> Any:
    return document["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]["as_expr"]


def pickled() -> bytes:
    stream = io.BytesIO()
    torch.save(Runs(), stream)
    return stream.getvalue()


PICKLED_WEIGHT = in_member("weights_config.json", edited(lambda d: d["config"]["wide.bias"].update(use_pickle=True)))


def with_code_as_weight(members: Members) -> Members:
    """A weight's bytes run code, if they are unpickled."""
    config = next(data for name, data in members if name.endswith("weights_config.json"))
    place = json.loads(config)["config"]["wide.bias"]["path_name"]
    return in_member(f"/{place}", lambda _: pickled())(members)


def evil(members: Members) -> Members:
    return PICKLED_WEIGHT(with_code_as_weight(members))


def renamed(members: Members, change: Callable[[str], str]) -> Members:
    return [(change(name), data) for name, data in members]


def legacy(members: Members) -> Members:
    """Names of PyTorch 2.7, at the root."""
    from torch._export.serde.schema import SCHEMA_VERSION

    program = next(data for name, data in members if name.endswith("models/model.json"))
    parts = {
        "version": ".".join(map(str, SCHEMA_VERSION)).encode(),
        "serialized_exported_program.json": program,
        **{f"serialized_{name}.pt": pickled() for name in ("state_dict", "constants", "example_inputs")},
    }
    return [*parts.items(), *members]


UNSAFE: dict[str, tuple[Callable[[Members], Members], str]] = {
    "pickled example": (
        in_member("sample_inputs/model.pt", lambda _: pickled()),
        "example inputs that are not plain tensors",
    ),
    "pickled weight": (PICKLED_WEIGHT, "the pickled object 'wide.bias'"),
    "pickled constant": (
        in_member(
            "model_constants_config.json",
            edited(lambda d: d["config"].update(c={"path_name": "opaque_obj_0", "use_pickle": False})),
        ),
        "the pickled object 'c'",
    ),
    "size that is code": (
        in_member(
            "models/model.json", edited(lambda d: batch_size(d).update(expr_str="__import__('os').getpid()"))
        ),
        "the size '__import__",
    ),
    "function of torch": (
        in_member(
            "models/model.json",
            edited(lambda d: d["graph_module"]["graph"]["nodes"][0].update(target="torch.hub.load")),
        ),
        "the operator 'torch.hub.load'",
    ),
    "function of TorchScript": (
        in_member(
            "models/model.json",
            edited(lambda d: d["graph_module"]["graph"]["nodes"][0].update(target="torch.ops.aten.save.default")),
        ),
        "the operator 'torch.ops.aten.save.default'",
    ),
    "view of memory beyond the tensor": (
        in_member(
            "models/model.json",
            edited(
                lambda d: d["graph_module"]["graph"]["nodes"][0].update(target="torch.ops.aten._reshape_alias.default")
            ),
        ),
        "the operator 'torch.ops.aten._reshape_alias.default'",
    ),
    "rounding that is none of those known": (
        in_member(
            "models/model.json",
            edited(
                lambda d: d["graph_module"]["graph"]["nodes"][0].update(
                    target="torch.ops.quantized_decomposed.fake_quant_per_channel.default"
                )
            ),
        ),
        "the operator 'torch.ops.quantized_decomposed.fake",
    ),
    "guards": (
        in_member("models/model.json", edited(lambda d: d.update(guards_code=["print(1)"]))),
        "guards in Python",
    ),
    "second program": (
        lambda members: [
            *members,
            *renamed([each for each in members if "model." in each[0]], lambda name: name.replace("model.", "other.")),
        ],
        "the file 'models/other.json'",
    ),
}  # fmt: skip


def assert_refused(copied: Path, change: Callable[[Members], Members], contains: str) -> None:
    """A file that was changed is not even looked up, and nothing that it contains has run."""
    rewritten(copied, change)
    with pytest.raises(UserError, match=f"is not loaded: it contains {contains}"):
        find(str(copied))
    assert not Path("was_run").exists()


@pytest.mark.parametrize("name", UNSAFE)
def test_file_that_could_run_code_is_refused_before_it_does(
    copied: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copied.parent)
    change, what = UNSAFE[name]
    assert_refused(copied, change, f"{what}.*; name a Python file instead")
    torch.load(io.BytesIO(pickled()), weights_only=False)
    assert Path("was_run").exists(), "nobody would have noticed"


class Fills(nn.Module):
    """Writes into a tensor that it makes."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.zeros(2).copy_(x[0]).sum()


def test_file_whose_tensor_was_made_a_file_on_the_disk_is_refused_before_it_is_overwritten(tmp_path: Path) -> None:
    path, victim = tmp_path / "fills.pt2", tmp_path / "victim"
    victim.write_bytes(before := b"12345678")
    torch.export.save(torch.export.export(Fills(), (torch.zeros(2, 2),), **ANY_NUMBER), path)
    given = {"filename": {"as_string": str(victim)}, "shared": {"as_bool": True}, "size": {"as_int": 2}}
    inputs = [{"name": name, "arg": value, "kind": 1} for name, value in given.items()]

    def tampered(document: Any) -> None:
        nodes = document["graph_module"]["graph"]["nodes"]
        (made,) = [each for each in nodes if each["target"] == "torch.ops.aten.zeros.default"]
        made.update(target="torch.ops.aten.from_file.default", inputs=inputs)

    assert_refused(path, in_member("models/model.json", edited(tampered)), "the operator 'torch.ops.aten.from_file")
    assert victim.read_bytes() == before
    torch.export.load(path).module(check_guards=False)(torch.ones(2, 2))
    assert victim.read_bytes() != before, "nobody would have noticed"


def with_second_weights(folder: str) -> Callable[[Members], Members]:
    """Add another list of weights before the harmless one, which is the one that Python finds under their name."""

    def change(members: Members) -> Members:
        weights = [each for each in PICKLED_WEIGHT(members) if each[0].endswith("weights_config.json")]
        return [*renamed(weights, lambda name: name.replace("data", folder)), *with_code_as_weight(members)]

    return change


AMBIGUOUS: dict[str, tuple[Callable[[Members], Members], str, bool]] = {
    "two folders": (
        lambda members: [*renamed(evil(members), lambda name: name.replace("my net", "evil")), *members],
        r"several folders \(evil, my net\)",
        False,
    ),
    "a name twice": (with_second_weights("data"), "'my net/data/weights/model_weights_config.json' twice", True),
    "a name in capitals": (with_second_weights("DATA"), "the file 'DATA/weights/model_weights_config.json'", True),
    "names outside the folder": (legacy, "'version' outside its folder", True),
}  # fmt: skip
"""What is done to the archive, what is said of it, and whether this PyTorch would run it."""


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_archive_that_could_be_read_in_two_ways_is_refused(
    copied: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copied.parent)
    change, what, is_run = AMBIGUOUS[name]
    assert_refused(copied, change, f"{what}, which could run code")
    with contextlib.suppress(Exception):
        torch.export.load(copied)
    assert Path("was_run").exists() == is_run


@pytest.mark.parametrize("length", [0, 100, 10_000, -50])
def test_truncated_file_is_one_sentence(copied: Path, length: int) -> None:
    copied.write_bytes(copied.read_bytes()[:length])
    with pytest.raises(UserError, match=r"my net\.pt2 is damaged or no file of this PyTorch's torch.export.save: "):
        find(str(copied))


def test_flipped_bit_is_noticed(copied: Path) -> None:
    with zipfile.ZipFile(copied) as archive:
        longest = archive.read(max(archive.infolist(), key=lambda entry: entry.file_size))
    content = bytearray(copied.read_bytes())
    content[content.index(longest) + len(longest) // 2] ^= 1
    copied.write_bytes(content)
    with pytest.raises(UserError, match=r"my net\.pt2 is damaged"):
        find(str(copied))
