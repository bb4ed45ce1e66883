"""A saved network is the same one in any process and minor version; a file that is not as it was is one sentence."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

import aap_hw
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.models import saved
from tests import forked
from tests.graph.attention_nets import DIM, Fused

ROOT = Path(__file__).parents[2]

LOADS_AND_PRINTS = """
import sys, torch, aap_hw
torch.manual_seed(3)
module = aap_hw.load(sys.argv[1], trust_source=True)
images = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
with torch.no_grad():
    print(module(images).numpy().tobytes().hex())
"""

IMAGES = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        self.wide = nn.Conv2d(8, 12, 1)
        self.tied = nn.Conv2d(12, 12, 1)
        self.again = nn.Conv2d(12, 12, 1)
        self.again.weight = self.tied.weight
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = torch.relu(self.wide(torch.relu(self.stem(x))))
        x = x + self.again(torch.relu(self.tied(x)))
        return self.head(x.mean((2, 3)))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved")
    (path / "net.py").write_text(NET)
    return path


@pytest.fixture(scope="module")
def keep() -> dict[str, list[int]]:
    return {"stem.0": [6, 1, 3]}


@pytest.fixture(scope="module")
def cut(folder: Path, keep: dict[str, list[int]]) -> nn.Module:
    """A cut network whose weights no factory makes."""
    dense = saved.Origin.of(f"{folder}/net.py:Net", (3, 16, 16)).build()
    smaller = ChannelGraph.trace(dense, (torch.zeros(1, 3, 16, 16),)).cut(dense, keep)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in smaller.parameters():
            parameter += 0.1 * torch.rand(parameter.shape, generator=generator)
    return smaller


@pytest.fixture(scope="module")
def file(folder: Path, cut: nn.Module, keep: dict[str, list[int]]) -> Path:
    path = folder / "small.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        aap_hw.save(cut.train(), keep, path, source="net.py:Net", input_shape=(3, 16, 16))
    assert cut.training
    cut.eval()
    return path


def output(module: nn.Module) -> Tensor:
    with torch.no_grad():
        return module(IMAGES)  # type: ignore[no-any-return]


def test_outputs_in_a_fresh_process_elsewhere_are_the_same_to_the_last_bit(file: Path, cut: nn.Module) -> None:
    child = forked.run(LOADS_AND_PRINTS, [str(file)], cwd=Path("/"), env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert child.returncode == 0, child.stderr
    actual = np.frombuffer(bytes.fromhex(child.stdout), dtype=np.float32).reshape(2, 5)
    assert np.array_equal(actual, output(cut).numpy())


def test_loaded_network_can_be_exported_cut_again_and_trained_on(file: Path) -> None:
    module = aap_hw.load(file, trust_source=True)
    assert not module.training
    assert module.get_parameter("again.weight") is module.get_parameter("tied.weight")
    program = torch.export.export(module, (IMAGES,))
    torch.testing.assert_close(program.module()(IMAGES), output(module))
    again = ChannelGraph.trace(module, (IMAGES,)).cut(module, {"stem.0": [0, 2]})
    assert again.get_parameter("stem.0.weight").shape[0] == 2
    optimizer = torch.optim.SGD(module.train().parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(IMAGES), torch.tensor([1, 4]))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_network_of_a_library_and_of_a_class_is_rebuilt_from_its_name(tmp_path: Path) -> None:
    origin = saved.Origin.of("squeezenet1_1", (3, 64, 64))
    dense = origin.build()
    keep = {"features.0": list(range(0, 64, 3))}
    smaller = ChannelGraph.trace(dense, (torch.zeros(1, 3, 64, 64),)).cut(dense, keep).double()
    image = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    for source in ("torchvision:squeezenet1_1", "torchvision.models:squeezenet1_1"):
        path = tmp_path / "a.safetensors"
        aap_hw.save(smaller, keep, path, source=source, input_shape=(3, 64, 64))
        loaded = aap_hw.load(path, trust_source=True)
        assert torch.equal(loaded(image), smaller(image))


def test_source_is_by_default_the_class(file: Path, cut: nn.Module, keep: dict[str, list[int]], tmp_path: Path) -> None:
    path = tmp_path / "of_class.safetensors"
    aap_hw.save(cut, keep, path, input_shape=(3, 16, 16))
    assert json.loads(parts(path)[0]["aap_hw"])["model"] == f"{file.parent}/net.py:Net"
    main = type("Net", (nn.Module,), {"__module__": "__main__"})()
    with pytest.raises(UserError, match=r"Net is defined in the program itself; say where with source='FILE\.py"):
        aap_hw.save(main, keep, path, input_shape=(3, 16, 16))


def test_source_can_be_named_anew_when_it_has_moved(file: Path, tmp_path: Path, folder: Path, cut: nn.Module) -> None:
    copy = rewritten(file, tmp_path / "copy.safetensors", lambda d: d.update(model="gone.py:Net"))
    with pytest.raises(
        UserError, match=r"copy\.safetensors cannot be rebuilt from .*gone\.py:Net: cannot read the model .*gone\.py"
    ):
        aap_hw.load(copy, trust_source=True)
    assert torch.equal(output(aap_hw.load(copy, source=f"{folder}/net.py:Net")), output(cut))


@pytest.mark.parametrize("source", ["net.py:Net", "net:Net"])
def test_source_is_that_of_the_folder_where_the_file_was_written_wherever_it_is_loaded(
    source: str, file: Path, cut: nn.Module, keep: dict[str, list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    monkeypatch.delitem(sys.modules, "net", raising=False)
    aap_hw.save(cut, keep, tmp_path / "small.safetensors", source=source, input_shape=(3, 16, 16))
    monkeypatch.delitem(sys.modules, "net", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text("raise SystemExit('of another project')")
    found = saved.read(Path("small.safetensors"), trust_source=True)
    assert torch.equal(output(found.module), output(cut))
    saved.write(found, Path("again.safetensors"))
    assert torch.equal(output(aap_hw.load("again.safetensors", trust_source=True)), output(cut))
    assert (found.origin.model, Path.cwd()) == (source, tmp_path)


def test_code_that_a_file_names_is_not_run_unless_it_is_trusted(
    folder: Path, cut: nn.Module, keep: dict[str, list[int]], tmp_path: Path
) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n" + NET)
    path, ours = tmp_path / "received.safetensors", f"{folder}/net.py:Net"
    aap_hw.save(cut, keep, path, source=ours, input_shape=(3, 16, 16))
    received = rewritten(path, tmp_path / "copy.safetensors", lambda d: d.update(model=f"{tmp_path}/evil.py:Net"))
    with pytest.raises(UserError, match=r"names Python code that makes its network, .*evil\.py:Net, and that would"):
        aap_hw.load(received)
    assert torch.equal(output(aap_hw.load(received, source=ours)), output(cut))
    for source in (f"{tmp_path}/evil.py:Net.pt2", "evil:Net.pt2"):
        other = rewritten(path, tmp_path / "other.safetensors", lambda d, source=source: d.update(model=source))
        with pytest.raises(UserError, match="names Python code that makes its network"):
            aap_hw.load(other)
    assert not (tmp_path / "ran").exists()
    aap_hw.load(received, trust_source=True)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("version", ["1.0", "1.7"])
def test_other_minor_version_is_read(file: Path, tmp_path: Path, cut: nn.Module, version: str) -> None:
    def change(description: dict[str, Any]) -> None:
        description.update(version=version, a_later_field={"of": "ours"})
        del description["weights"], description["written_by"]

    assert torch.equal(
        output(aap_hw.load(rewritten(file, tmp_path / "other.safetensors", change), trust_source=True)), output(cut)
    )


def parts(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safetensors.safe_open(path, "pt") as opened:
        return opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def rewritten(
    source: Path,
    target: Path,
    change: Callable[[dict[str, Any]], object],
    tensors: Callable[[dict[str, Tensor]], object] = lambda _: None,
) -> Path:
    """A file as another aap-hw would have written it, with a checksum that is right."""
    metadata, state = parts(source)
    description = json.loads(metadata["aap_hw"])
    change(description)
    tensors(state)
    text = json.dumps(description)
    digest = hashlib.sha256(text.encode())
    for name in sorted(state):
        digest.update(f"{name} {state[name].dtype} {list(state[name].shape)}".encode())
        digest.update(state[name].numpy().tobytes())
    safetensors.torch.save_file(state, target, {"aap_hw": text, "sha256": digest.hexdigest()})
    return target


MISMATCHES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "other major version": (lambda d: d.update(version="2.0"), r"of version 2\.0 and this aap-hw reads 1\.x; .*wrote"),
    "no version": (lambda d: d.pop("version"), "its description cannot be read"),
    "no channels": (lambda d: d.pop("kept_channels"), "the key 'kept_channels' is missing"),
    "channels that are no list": (lambda d: d.update(kept_channels={"stem.0": 3}), "kept_channels must be a list"),
    "fewer channels": (lambda d: d["kept_channels"].update({"stem.0": [1]}), r"is \(3,\) in the saved .* and \(1,\)"),
    "uncut": (lambda d: d.update(kept_channels={}), r"is \(3,\) in the saved network and \(8,\) in"),
    "unknown group": (lambda d: d["kept_channels"].update(nowhere=[0]), "no channel group 'nowhere'"),
    "channel that is not there": (
        lambda d: d["kept_channels"].update({"stem.0": [1, 2, 99]}),
        "channel 99 .* does not",
    ),
    "other network": (
        lambda d: d.update(model="resnet20"),
        "cannot be rebuilt from resnet20: the network has no channel group 'stem.0'",
    ),
    "other images": (lambda d: d.update(input=[1, 16, 16]), "does not take images of 1x16x16"),
    "other outputs": (lambda d: d.update(outputs=[9.0] * 5), "computes something else than when it was saved"),
    "fewer outputs": (lambda d: d.update(outputs=[]), "computes something else than when it was saved"),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_file_that_does_not_fit_is_one_sentence(file: Path, tmp_path: Path, name: str) -> None:
    change, sentence = MISMATCHES[name]
    path = rewritten(file, tmp_path / "copy.safetensors", change)
    with pytest.raises(UserError, match=sentence) as refused:
        aap_hw.load(path, trust_source=True)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_tensor_of_another_shape_does_not_fit(file: Path, tmp_path: Path) -> None:
    path = rewritten(
        file, tmp_path / "copy.safetensors", lambda _: None, lambda state: state.update({"head.bias": torch.zeros(6)})
    )
    with pytest.raises(UserError, match=r"'head\.bias' is \(6,\) in the saved network and \(5,\) in the one"):
        aap_hw.load(path, trust_source=True)


@pytest.mark.parametrize("length", [0, 4, 100, 3000, -1])
def test_truncated_file_is_one_sentence(file: Path, tmp_path: Path, length: int) -> None:
    path = tmp_path / "short.safetensors"
    path.write_bytes(file.read_bytes()[:length])
    with pytest.raises(UserError, match=r"short\.safetensors is damaged or no safetensors file"):
        aap_hw.load(path)


@pytest.mark.parametrize("where", ["model", "kept_channels", "weights of a tensor"])
def test_changed_byte_is_noticed(file: Path, tmp_path: Path, where: str) -> None:
    content = bytearray(file.read_bytes())
    place = len(content) - 9 if where == "weights of a tensor" else content.find(where.encode())
    content[place] ^= 1
    path = tmp_path / "changed.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"changed\.safetensors is damaged: it is not as it was written"):
        aap_hw.load(path)


def test_other_files_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the network .*nothing\.safetensors: .*[Nn]o such file"):
        aap_hw.load(tmp_path / "nothing.safetensors")
    safetensors.torch.save_file({"a": torch.zeros(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="holds weights only and not what they belong to"):
        aap_hw.load(tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="cannot read the network"):
        aap_hw.load(tmp_path)


def test_code_that_computes_something_else_now_is_found_out_and_a_comment_is_not(
    folder: Path, cut: nn.Module, keep: dict[str, list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(NET)
    aap_hw.save(cut, keep, "m.safetensors", source="mine.py:Net", input_shape=(3, 16, 16))
    (tmp_path / "mine.py").write_text("# of mine\n" + NET)
    assert torch.equal(output(aap_hw.load("m.safetensors", trust_source=True)), output(cut))
    (tmp_path / "mine.py").write_text(NET.replace("torch.relu(self.wide(", "torch.tanh(self.wide("))
    with pytest.raises(UserError, match=r"something else than when it was saved .*mine\.py:Net makes another network"):
        aap_hw.load("m.safetensors", trust_source=True)


def test_what_could_not_be_loaded_again_is_not_saved(
    folder: Path, cut: nn.Module, keep: dict[str, list[int]], tmp_path: Path
) -> None:
    path, source = tmp_path / "not.safetensors", f"{folder}/net.py:Net"
    with pytest.raises(UserError, match=r"cannot be rebuilt from .*net\.py:Net: .*\(3,\) in .*say what makes"):
        aap_hw.save(cut, {"stem.0": [1]}, path, source=source, input_shape=(3, 16, 16))

    class Mine(nn.Conv2d):
        pass

    for network in (cut, Mine(3, 4, 3)):
        with pytest.raises(UserError, match=r"cannot be rebuilt from .*:.*; say what makes"):
            aap_hw.save(network, {}, path, input_shape=(3, 16, 16))
    (tmp_path / "other.py").write_text(NET.replace("torch.relu(self.wide(", "torch.tanh(self.wide("))
    with pytest.raises(UserError, match="computes something else than the one to save"):
        aap_hw.save(cut, keep, path, source=f"{tmp_path}/other.py:Net", input_shape=(3, 16, 16))
    with pytest.raises(UserError, match="has no usual image size"):
        aap_hw.save(cut, keep, path, source=source)
    assert not path.exists()


def test_a_network_without_some_heads_is_rebuilt_by_its_plan_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    dense, rows = Fused().eval(), torch.randn(2, 5, DIM)
    keep = {"qkv:heads": [0, 2]}
    smaller = ChannelGraph.trace(dense, (rows,), heads=True).cut(dense, keep)
    aap_hw.save(smaller, keep, tmp_path / "a.safetensors", input_shape=(5, DIM))
    loaded = aap_hw.load(tmp_path / "a.safetensors", trust_source=True)
    assert loaded.num_heads == 2
    with torch.no_grad():
        assert torch.equal(loaded(rows), smaller(rows))
