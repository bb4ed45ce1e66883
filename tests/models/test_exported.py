"""An exported program is cut and trained like the network it was made from, and runs no code when it is loaded."""

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

from aap_hw.compile.front.program import is_random
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.models.exported import is_quantised, load
from aap_hw.models.origin import Origin
from aap_hw.models.source import find
from tests.graph.ground_truth import assert_cut_equals_silenced, lively, random_keep
from tests.quantize.saved import quantised_program


class Net(nn.Module):
    """A depthwise convolution, a residual, batch norms and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12))
        self.wide = nn.Conv2d(12, 20, 1)
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(20, 7))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + torch.relu(self.depthwise(x))
        return self.head(torch.relu(self.wide(x)).mean((2, 3)))  # type: ignore[no-any-return]


ANY_NUMBER = {"dynamic_shapes": ({0: torch.export.Dim("n", min=1)},)}


@pytest.fixture(scope="module")
def original() -> nn.Module:
    model = lively(Net(), (4, 3, 8, 8))[0].float()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
        elif isinstance(module, nn.Dropout):
            module.p = 0.5
    return model


@pytest.fixture(scope="module")
def file(original: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "my net.pt2"
    torch.export.save(torch.export.export(original, (torch.zeros(2, 3, 8, 8),), **ANY_NUMBER), path)
    return path


@pytest.fixture
def copied(file: Path, tmp_path: Path) -> Path:
    return Path(tmp_path / file.name).write_bytes(file.read_bytes()) and tmp_path / file.name


def test_program_says_its_size_and_computes_what_the_network_did(file: Path, original: nn.Module) -> None:
    origin = Origin.of(str(file))
    assert (origin.model, origin.short, origin.inputs.image) == (str(file), "my net", (3, 8, 8))
    assert origin.classes == 7
    images = torch.rand(5, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(origin.build()(images), original(images))


def test_program_has_the_groups_of_the_network_and_is_cut_like_it(file: Path, original: nn.Module) -> None:
    program = Origin.of(str(file)).build()
    graph = ChannelGraph.trace(program, (torch.zeros(2, 3, 8, 8),))
    expected = ChannelGraph.trace(original, (torch.zeros(2, 3, 8, 8),))
    described = [(g.name, g.width, g.frozen is None, len(g.axes)) for g in graph.groups]
    assert described == [(g.name, g.width, g.frozen is None, len(g.axes)) for g in expected.groups]
    assert [name for name, _, free, _ in described if free] == ["stem.0", "wide"]
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    exact = program.double()
    graph = ChannelGraph.trace(exact, (images,))
    smaller = assert_cut_equals_silenced(exact, graph, images, random_keep(graph, 3))
    torch.export.export(smaller, (images,))


def test_batch_norm_and_dropout_obey_the_training_flag(file: Path) -> None:
    program = Origin.of(str(file)).build()
    images = torch.rand(16, 3, 8, 8)
    before = program.get_buffer("stem.1.running_mean").clone()
    assert torch.equal(program(images), program(images))
    assert torch.equal(program.get_buffer("stem.1.running_mean"), before)
    program.train()
    assert not torch.equal(program(images), program(images))
    assert not torch.equal(program.get_buffer("stem.1.running_mean"), before)
    program.eval()
    assert torch.equal(program(images), program(images))


class Drops(nn.Module):
    """Every kind of dropout, and a norm that takes the batch's statistics in evaluation, too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3, track_running_stats=False)
        self.drop = nn.Sequential(nn.Dropout2d(), nn.AlphaDropout(), nn.FeatureAlphaDropout(), nn.RReLU())
        self.lstm = nn.LSTM(4, 4, num_layers=2, dropout=0.5, batch_first=True)
        self.attention = nn.TransformerEncoderLayer(4, 2, 8, 0.5, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.drop(self.norm(x)), self.lstm(x[:, 0])[0], self.attention(x[:, 1])


def test_every_dropout_of_a_program_that_was_exported_in_training_obeys_the_flag(tmp_path: Path) -> None:
    model, images = Drops(), torch.rand(3, 3, 4, 4)
    torch.export.save(torch.export.export(model.train(), (images,), **ANY_NUMBER), tmp_path / "net.pt2")
    program = load(tmp_path / "net.pt2")
    nodes = ChannelGraph.trace(program.eval(), (images,)).program.graph.nodes
    assert not [node for node in nodes if is_random(node)]
    with torch.no_grad():
        torch.testing.assert_close(program(images), model.eval()(images))
        program.train()
        assert not any(map(torch.equal, program(images), program(images)))


def test_program_for_one_number_of_images_is_refused_with_what_to_write(original: nn.Module, tmp_path: Path) -> None:
    torch.export.save(torch.export.export(original, (torch.zeros(1, 3, 8, 8),)), tmp_path / "one.pt2")
    with pytest.raises(UserError, match=r"exported for batches of exactly 1; .*dynamic_shapes=\(\{0: torch.export.Dim"):
        find(str(tmp_path / "one.pt2"))


def test_quantised_program_is_one_for_compiling_only(tmp_path: Path) -> None:
    program = quantised_program()
    torch.export.save(program, tmp_path / "q.pt2")
    with pytest.raises(UserError, match=r"q\.pt2 is quantised already, and can only be compiled and deployed as it is"):
        Origin.of(str(tmp_path / "q.pt2"))
    origin = Origin.of(str(tmp_path / "q.pt2"), may_be_quantised=True)
    assert (origin.is_quantised, origin.inputs.image) == (True, (3, 16, 16))
    module, image = origin.build(), torch.rand(1, 3, 16, 16)
    assert is_quantised(module)
    assert not is_quantised(Net())
    assert torch.equal(module(image), program.module()(image))
    torch.export.save(quantised_program(batch=2), tmp_path / "two.pt2")
    with pytest.raises(UserError, match=r"two\.pt2 was exported for batches of exactly 2; "):
        Origin.of(str(tmp_path / "two.pt2"), may_be_quantised=True)


def test_program_of_several_sizes_of_images_has_no_usual_one(original: nn.Module, tmp_path: Path) -> None:
    sizes = ({0: torch.export.Dim("n", min=1), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")},)
    program = torch.export.export(original, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=sizes)
    torch.export.save(program, tmp_path / "any.pt2")
    with pytest.raises(UserError, match="has no usual image size"):
        Origin.of(str(tmp_path / "any.pt2"))
    assert Origin.of(str(tmp_path / "any.pt2"), (3, 16, 12)).classes == 7


class Looked(nn.Module):
    """Rows of a table, as many times as is said beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)

    def forward(self, ids: torch.Tensor, times: torch.Tensor | int) -> torch.Tensor:
        return self.table(ids) * (times if isinstance(times, int) else times[..., None])  # type: ignore[no-any-return]


def test_program_of_several_inputs_says_what_they_are_and_that_their_batches_agree(tmp_path: Path) -> None:
    network, n = Looked(), torch.export.Dim("n", min=1)
    example = torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 5)
    program = torch.export.export(network, example, dynamic_shapes=({0: n}, {0: n}), strict=False)
    torch.export.save(program, tmp_path / "two.pt2")
    origin = Origin.of(str(tmp_path / "two.pt2"))
    assert origin.inputs.text == "int64:5,5"
    ids, times = torch.randint(9, (3, 5)), torch.rand(3, 5)
    torch.testing.assert_close(origin.build()(ids, times), network(ids, times))


def test_program_that_takes_more_than_tensors_is_refused(tmp_path: Path) -> None:
    program = torch.export.export(Looked(), (torch.zeros(2, 5, dtype=torch.int64), 3), strict=False)
    torch.export.save(program, tmp_path / "times.pt2")
    with pytest.raises(UserError, match="does not take tensors alone"):
        find(str(tmp_path / "times.pt2"))


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


class SaysHow(nn.Module):
    """Operators that are told in a word how to compute."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.gelu(self.layer(x), approximate="tanh")
        x = nn.functional.interpolate(x, scale_factor=2, mode="bilinear")
        return torch.einsum("nchw,nchv->nc", x, torch.div(x, 2, rounding_mode="floor"))


def test_words_about_how_to_compute_are_no_reason_to_refuse(tmp_path: Path) -> None:
    torch.export.save(
        torch.export.export(network := SaysHow().eval(), (torch.zeros(2, 3, 8, 8),), **ANY_NUMBER), tmp_path / "how.pt2"
    )
    images = torch.rand(3, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(Origin.of(str(tmp_path / "how.pt2")).build()(images), network(images))


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


def test_texts_that_a_program_was_saved_with_do_not_matter(original: nn.Module, tmp_path: Path) -> None:
    program = torch.export.export(original, (torch.zeros(2, 3, 8, 8),), **ANY_NUMBER)
    torch.export.save(program, tmp_path / "net.pt2", extra_files={"notes/of mine.txt": "of May"})
    images = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(Origin.of(str(tmp_path / "net.pt2")).build()(images), original(images))


@pytest.mark.parametrize("length", [0, 100, 10_000, -50])
def test_truncated_file_is_one_sentence(copied: Path, length: int) -> None:
    copied.write_bytes(copied.read_bytes()[:length])
    with pytest.raises(UserError, match=r"my net\.pt2 is damaged or no file of this PyTorch's torch.export.save: "):
        find(str(copied))


def test_flipped_bit_is_noticed(copied: Path) -> None:
    content = bytearray(copied.read_bytes())
    place = content.find(Net().wide.weight.shape[0].to_bytes(1, "little"), len(content) // 2)
    content[place] ^= 1
    copied.write_bytes(content)
    with pytest.raises(UserError, match=r"my net\.pt2 is damaged"):
        find(str(copied))
