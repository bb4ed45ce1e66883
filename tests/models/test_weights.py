"""A checkpoint of the user's ends up in the network it is of, wherever a script kept it, or is refused by name.

Which tensors are taken where several fit is said, and what is left out. What files hold is in `checkpoints/`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint
from torch import nn

from aap_hw.errors import UserError
from aap_hw.given import weights_of
from aap_hw.inputs import Inputs
from aap_hw.models import zoo
from aap_hw.models.origin import Origin
from aap_hw.models.weights import WeightsFile, load_weights
from tests.models.checkpoints.networks import State, are_equal, loaded, network, renamed, weights

ROOT = Path(__file__).parents[2]
TRAINED, OTHER = weights(5), weights(6)


def average(state: State) -> State:
    """As PyTorch's own averaging saves it."""
    module = network()
    module.load_state_dict(state)
    return torch.optim.swa_utils.AveragedModel(module).state_dict()


def without(state: State, *names: str) -> State:
    return {name: tensor for name, tensor in state.items() if name not in names}


def without_counters(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


WRAPPED: dict[str, Any] = {
    "plain": TRAINED,
    "nested": {"state_dict": TRAINED, "epoch": 7, "best": 91.5},
    "nested and parallel": {"epoch": 7, "model": renamed(TRAINED, "module.")},
    "parallel and compiled": renamed(renamed(TRAINED, "module."), "_orig_mod."),
    "compiled and parallel": renamed(TRAINED, "module._orig_mod."),
    "without counters": {"state_dict": without_counters(TRAINED)},
    "counters as floats": {"ema": {name: tensor.float() for name, tensor in TRAINED.items()}},
    "an average": average(TRAINED),
    "an average below a key": {"ema": {"module": TRAINED, "updates": torch.tensor(100)}},
    "timm's average alone": {"state_dict_ema": TRAINED, "arch": "resnet18"},
    "a teacher": {"teacher": renamed(TRAINED, "module.backbone."), "epoch": torch.tensor(3)},
    "an unknown prefix": {"state_dict": renamed(TRAINED, "classifier_net.")},
    "keys that nobody else uses": {"stuff": {"weights after epoch 3": renamed(TRAINED, "a.b.")}},
    "parts of dictionaries": {"model": {"0": {"weight": TRAINED["0.weight"]}, **without(TRAINED, "0.weight")}},
    "a list": [TRAINED, {"lr": 0.1}],
    "a whole training": {"optimizer": torch.optim.AdamW(network().parameters()).state_dict(), "model": TRAINED},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_weights_are_found_however_a_script_saved_them(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(WRAPPED[name], tmp_path / "c.pth")
    assert are_equal(without_counters(loaded(tmp_path / "c.pth")), without_counters(TRAINED))
    assert not caplog.messages


CHOICES: dict[str, tuple[Any, str]] = {
    "torchvision's": (
        {"model": OTHER, "model_ema": average(TRAINED)},
        r"the weights under 'model_ema' are taken \(the average over training\) and not those under 'model', which fit",
    ),
    "timm's": ({"state_dict": OTHER, "state_dict_ema": TRAINED}, "the weights under 'state_dict_ema' are taken"),
    "ultralytics'": (
        {"model": renamed(OTHER, "module."), "ema": {"module": TRAINED, "updates": 9}},
        "the weights under 'ema.module' are taken .* and not those under 'model'",
    ),
    "DINO's": ({"student": OTHER, "teacher": TRAINED}, "the weights under 'teacher' are taken"),
    "stochastic weight averaging": ({"net": OTHER, "swa_model": average(TRAINED)}, "under 'swa_model' are taken"),
    "an average under any key": ({"model": OTHER, "other": average(TRAINED)}, "under 'other' are taken"),
    "an average among the names": (
        {"state_dict": {**renamed(OTHER, "model."), **renamed(TRAINED, "ema_model.")}},
        r"the weights named 'ema_model\.\*' are taken .* and not those named 'model\.\*'",
    ),
    "distillation": (
        {"state_dict": {**renamed(OTHER, "teacher."), **renamed(TRAINED, "student.")}},
        r"the weights named 'student\.\*' are taken \(the usual place\) and not those named 'teacher\.\*'",
    ),
    "Lightning's average": (
        {"current_model_state": renamed(OTHER, "net."), "state_dict": renamed(TRAINED, "net.")},
        r"the weights under 'state_dict' are taken \(the usual place\) and not those under 'current_model_state'",
    ),
    "MMEngine's average, which is saved as the model": (
        {
            "message_hub": {"log": {"loss": torch.ones(3)}},
            "state_dict": TRAINED,
            "ema_state_dict": {**renamed(OTHER, "module."), "steps": torch.tensor(9)},
        },
        r"the weights under 'state_dict' are taken \(the average over training\) and not those under 'ema_state_dict'",
    ),
    "best and last": (
        {"best": TRAINED, "last": OTHER},
        r"the weights under 'best' are taken \(the first\) and not those under 'last'",
    ),
    "only the average fits": (
        {"model": network(7).state_dict(), "model_ema": TRAINED},
        "the weights under 'model_ema' are taken, as those under 'model' do not fit",
    ),
    "only the model fits": (
        {"model": TRAINED, "model_ema": without(OTHER, "3.bias")},
        "the weights under 'model' are taken, as those under 'model_ema' do not fit",
    ),
    "beside a loss": (
        {"state_dict": {**renamed(TRAINED, "model."), "criterion.pos_weight": torch.tensor(3.2)}},
        "'criterion.pos_weight' left out, as mynet has no such tensors",
    ),
    "more than the network": (
        {**TRAINED, "4.bias": torch.zeros(2), "head.weight": torch.zeros(2, 2)},
        "'4.bias', 'head.weight' left out, as mynet has no such tensors",
    ),
    "another teacher": (
        {"state_dict": {**renamed(TRAINED, "net."), "teacher.a": torch.ones(2), "teacher.b": torch.ones(1)}},
        "'teacher.a', 'teacher.b' left out",
    ),
}


@pytest.mark.parametrize("name", CHOICES)
def test_what_was_chosen_and_left_out_is_said(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    content, sentence = CHOICES[name]
    torch.save(content, tmp_path / "c.pth")
    assert are_equal(loaded(tmp_path / "c.pth"), TRAINED)
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path / 'c.pth'}: ")
    assert re.search(sentence, message), message


DIFFERENT: dict[str, tuple[Callable[[State], Any], str]] = {
    "one is missing": (lambda s: without(s, "0.weight"), r"do not fit mynet: they lack '0.weight' of 9 tensors"),
    "one has another name": (
        lambda s: {**without(s, "0.weight"), "0.wieght": s["0.weight"]},
        "they lack '0.weight' of 9 tensors; did you mean '0.wieght'",
    ),
    "below a key": (lambda s: {"model": without(s, "0.bias")}, r"c.pth, under 'model', do not fit mynet: they lack"),
    "all have other names": (
        lambda s: {name + "x": tensor for name, tensor in s.items()},
        r"they lack '0.weight', '0.bias', '1.weight' and 5 more of 9 tensors; did you mean '0.weightx'",
    ),
    "prefixes of parts": (
        lambda s: {("a." if name[0] == "0" else "b.") + name: tensor for name, tensor in s.items()},
        r"they lack '0.weight', '0.bias' of 9 tensors",
    ),
    "shape": (lambda s: {**s, "3.weight": torch.zeros(10, 16)}, r"'3.weight' differ in shape: .*\(10, 16\).*\(3, 16\)"),
    "type": (
        lambda s: {**s, "3.bias": torch.zeros(3, dtype=torch.int8)},
        r"'3.bias' are of another type: 3.bias is int8",
    ),
    "NaN": (lambda s: {**s, "3.bias": torch.tensor([0, float("nan"), 1])}, r"not all finite numbers \('3.bias'\)"),
    "too large": (lambda s: {**s, "3.bias": torch.full((3,), 1e300, dtype=torch.double)}, r"not all finite numbers"),
    "no weights": (
        lambda s: {"epoch": 3, "optimizer": {}},
        r"holds a dict with the keys epoch, optimizer and no weights; save the network's state_dict\(\)",
    ),
    "a list": (lambda s: [1, 2], r"holds a list and no weights"),
    "one tensor": (lambda s: torch.zeros(3), "holds a tensor and no weights; save the network's state_dict"),
    "parametrized": (
        lambda s: {**without(s, "3.weight"), "3.parametrizations.weight.original0": torch.zeros(3)},
        "saved with parametrizations; take them off with .*remove_parametrizations and save it again",
    ),
    "masked": (
        lambda s: {**without(s, "3.weight"), "3.weight_orig": torch.zeros(3), "3.weight_mask": torch.zeros(3)},
        "saved with pruning masks; make them permanent with torch.nn.utils.prune.remove",
    ),
    "weight norm": (
        lambda s: {**without(s, "3.weight"), "3.weight_g": torch.zeros(3), "3.weight_v": torch.zeros(3)},
        "saved with weight norms",
    ),
    "quantized": (
        lambda s: {**without(s, "0.bias"), "0.scale": torch.tensor(1.0), "0.zero_point": torch.tensor(0)},
        "saved with quantized layers; give the weights that it was quantized from",
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_differs_is_named(tmp_path: Path, name: str) -> None:
    change, sentence = DIFFERENT[name]
    torch.save(change(TRAINED), tmp_path / "c.pth")
    before = network()
    kept = copy.deepcopy(before.state_dict())
    with pytest.raises(UserError, match=sentence):
        loaded(tmp_path / "c.pth", before)
    assert are_equal(before.state_dict(), kept)


class Tied(nn.Module):
    """Its two layers share their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.last.weight = self.first.weight


@pytest.mark.parametrize("kept", ["first", "last"])
def test_names_of_one_tensor_need_only_be_there_once(tmp_path: Path, kept: str) -> None:
    module = Tied()
    left_out = {"first": "last", "last": "first"}[kept]
    safetensors.torch.save_file(without(module.state_dict(), f"{left_out}.weight"), tmp_path / "c.safetensors")
    again = Tied()
    assert are_equal(loaded(tmp_path / "c.safetensors", again), module.state_dict())
    assert again.first.weight is again.last.weight


def test_one_tensor_cannot_have_two_values(tmp_path: Path) -> None:
    torch.save({**Tied().state_dict(), "last.weight": torch.zeros(4, 4)}, tmp_path / "c.pth")
    with pytest.raises(
        UserError, match=r"different numbers for 'first.weight' and 'last.weight', which are one tensor"
    ):
        loaded(tmp_path / "c.pth", Tied())


def test_names_of_a_parametrized_network_are_its_own(tmp_path: Path) -> None:
    def parametrized() -> nn.Module:
        module = network()
        torch.nn.utils.parametrizations.weight_norm(module[3])
        return module

    module = parametrized()
    torch.save(module.state_dict(), tmp_path / "c.pth")
    assert are_equal(loaded(tmp_path / "c.pth", parametrized()), module.state_dict())


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return open, (self.mark, "w")


def test_a_checkpoint_that_runs_code_is_refused_and_does_not_run_it(tmp_path: Path) -> None:
    mark = tmp_path / "was-run"
    torch.save({"state_dict": Evil(str(mark))}, tmp_path / "c.pth")
    with pytest.raises(UserError, match="could run code"):
        loaded(tmp_path / "c.pth")
    torch.save(Evil(str(mark)), tmp_path / "d.pth")
    with pytest.raises(UserError, match="could run code"):
        loaded(tmp_path / "d.pth")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["c.pth", "c.safetensors"])
def test_a_truncated_file_is_refused_by_its_path(tmp_path: Path, name: str) -> None:
    save = safetensors.torch.save_file if name.endswith("safetensors") else torch.save
    save(TRAINED, tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-200])
    with pytest.raises(UserError, match=f"{name}: the file is damaged or cut short; copy or download it again"):
        loaded(tmp_path / name)


@pytest.mark.parametrize("content", [b"epoch,loss\n1,2.3\n", b"<!DOCTYPE html>", safetensors.torch.save({})])
def test_a_file_of_something_else_is_refused_and_not_taken_for_code(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"c\.pth were not written by torch\.save"):
        loaded(tmp_path / "c.pth")


def test_a_file_that_changed_since_the_run_began_is_refused(tmp_path: Path) -> None:
    torch.save(TRAINED, tmp_path / "c.pth")
    file = WeightsFile.at(tmp_path / "c.pth")
    torch.save(without(TRAINED, "0.bias"), tmp_path / "c.pth")
    with pytest.raises(UserError, match="has changed"):
        load_weights(network(), file, "mynet")


def test_a_part_that_changed_since_the_run_began_is_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file(TRAINED, tmp_path / "part.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"0.weight": "part.safetensors"}}')
    file = WeightsFile.at(index)
    load_weights(network(), file, "mynet")
    safetensors.torch.save_file(OTHER, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match="has changed"):
        load_weights(network(), file, "mynet")


@pytest.mark.filterwarnings("ignore:torch.distributed")
def test_a_folder_is_not_taken_for_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="are a folder; give the file in it that holds the weights"):
        weights_of(str(tmp_path), "resnet20")
    torch.distributed.checkpoint.save({"model": TRAINED}, checkpoint_id=tmp_path, no_dist=True)
    for given in (tmp_path, tmp_path / "__0_0.distcp"):
        with pytest.raises(UserError, match=rf"{tmp_path} is a checkpoint of several processes; make one file of it: "):
            loaded_as_given(given)


def loaded_as_given(path: Path) -> State:
    file = weights_of(str(path), "resnet20")
    assert isinstance(file, WeightsFile)
    return loaded(Path(file.path))


def test_a_network_with_a_name_takes_a_checkpoint_and_another_number_of_classes(tmp_path: Path) -> None:
    torch.save(zoo.build("resnet20", classes=7).module.state_dict(), tmp_path / "c.pth")
    file = WeightsFile.at(tmp_path / "c.pth")
    origin = Origin.of("resnet20", weights=file, outputs=7)
    assert origin.classes == 7
    assert torch.equal(origin.build().linear.weight, torch.load(file.path)["linear.weight"])
    with pytest.raises(UserError, match=r"'linear.weight', 'linear.bias' differ in shape"):
        Origin.of("resnet20", weights=file).build()


def test_a_skeleton_does_not_need_the_checkpoint(tmp_path: Path) -> None:
    gone = WeightsFile(str(tmp_path / "gone.pth"), "0" * 64)
    assert Origin("resnet20", gone, Inputs.of((3, 32, 32))).skeleton().linear.out_features == 10


def test_a_network_of_a_file_decides_itself_how_many_classes_it_has() -> None:
    with pytest.raises(UserError, match="decides itself how many classes"):
        Origin.of(f"{ROOT}/examples/user_net.py:make", (3, 96, 96), outputs=7)
    assert Origin.of("torchvision:squeezenet1_1", outputs=7).build().classifier[1].out_channels == 7
