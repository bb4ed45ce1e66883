"""A checkpoint of the user's ends up in the network it is of, in whatever form it was saved, or is refused by name."""

import pickle

import pytest
import safetensors.torch
import torch
from torch import nn

from aap_hw.errors import UserError
from aap_hw.models import zoo
from aap_hw.models.origin import Origin
from aap_hw.models.weights import WeightsFile, load_weights


def network(classes=3):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, classes))


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(5)
    return {name: torch.rand_like(t) if t.is_floating_point() else t for name, t in network().state_dict().items()}


def loaded(path):
    module = network()
    load_weights(module, WeightsFile.at(path), "mynet")
    return module.state_dict()


def renamed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 7, "best": 91.5},
        lambda state: {"epoch": 7, "model": renamed(state, "module.")},
        lambda state: renamed(renamed(state, "module."), "_orig_mod."),
        lambda state: {"state_dict": {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}},
    ],
    ids=["plain", "nested", "nested and parallel", "parallel and compiled", "without counters"],
)
def test_a_state_dict_is_found_however_a_script_saved_it(trained, tmp_path, wrap):
    torch.save(wrap(trained), tmp_path / "c.pth")
    found = loaded(tmp_path / "c.pth")
    assert all(torch.equal(found[name], tensor) for name, tensor in trained.items())


def test_safetensors_are_read(trained, tmp_path):
    safetensors.torch.save_file(trained, tmp_path / "c.safetensors")
    found = loaded(tmp_path / "c.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in trained.items())


def test_half_precision_becomes_single(trained, tmp_path):
    torch.save({name: t.half() if t.is_floating_point() else t for name, t in trained.items()}, tmp_path / "c.pth")
    found = loaded(tmp_path / "c.pth")["0.weight"]
    assert found.dtype == torch.float32
    assert torch.equal(found, trained["0.weight"].half().float())


def without(state, *names):
    return {name: tensor for name, tensor in state.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: without(s, "0.weight"), r"are not of mynet: it lacks '0.weight' of 9 tensors"),
        (lambda s: {**s, "4.bias": torch.zeros(2)}, r"mynet has no '4.bias'"),
        (lambda s: {**s, "3.weight": torch.zeros(10, 16)}, r"'3.weight' differ in shape: .*\(10, 16\).*\(3, 16\)"),
        (lambda s: {**s, "3.bias": torch.zeros(3, dtype=torch.int8)}, r"'3.bias' are of another type: .*int8"),
        (lambda s: {**s, "3.bias": torch.tensor([0, float("nan"), 1])}, r"not all finite numbers \('3.bias'\)"),
        (lambda s: {"epoch": 3, "optimizer": {}}, r"holds a dict with the keys epoch, optimizer and no weights"),
        (lambda s: [1, 2], r"holds a list and no weights"),
    ],
)
def test_what_differs_is_named(trained, tmp_path, change, sentence):
    torch.save(change(trained), tmp_path / "c.pth")
    with pytest.raises(UserError, match=sentence):
        loaded(tmp_path / "c.pth")


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (self.mark, "w"))


def test_a_checkpoint_that_runs_code_is_refused_and_does_not_run_it(tmp_path):
    mark = tmp_path / "was-run"
    torch.save({"state_dict": Evil(str(mark))}, tmp_path / "c.pth")
    with pytest.raises(UserError, match="could run code"):
        loaded(tmp_path / "c.pth")
    (tmp_path / "d.pth").write_bytes(pickle.dumps(Evil(str(mark))))
    with pytest.raises(UserError):
        loaded(tmp_path / "d.pth")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["c.pth", "c.safetensors"])
def test_a_truncated_file_is_refused_by_its_path(trained, tmp_path, name):
    save = safetensors.torch.save_file if name.endswith("safetensors") else torch.save
    save(trained, tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-200])
    with pytest.raises(UserError, match=name):
        loaded(tmp_path / name)


@pytest.mark.parametrize("content", [b"epoch,loss\n1,2.3\n", b"<!DOCTYPE html>", safetensors.torch.save({})])
def test_a_file_of_something_else_is_refused_and_not_taken_for_code(tmp_path, content):
    (tmp_path / "c.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"c\.pth are no file of torch\.save"):
        loaded(tmp_path / "c.pth")


def test_a_file_that_changed_since_the_run_began_is_refused(trained, tmp_path):
    torch.save(trained, tmp_path / "c.pth")
    file = WeightsFile.at(tmp_path / "c.pth")
    torch.save(without(trained, "0.bias"), tmp_path / "c.pth")
    with pytest.raises(UserError, match="has changed"):
        load_weights(network(), file, "mynet")


def test_a_network_with_a_name_takes_a_checkpoint_and_another_number_of_classes(tmp_path):
    torch.save(zoo.build("resnet20", classes=7).module.state_dict(), tmp_path / "c.pth")
    file = WeightsFile.at(tmp_path / "c.pth")
    origin = Origin.of("resnet20", weights=file, outputs=7)
    assert origin.classes == 7
    assert torch.equal(origin.build().linear.weight, torch.load(file.path)["linear.weight"])
    with pytest.raises(UserError, match=r"'linear.weight', 'linear.bias' differ in shape"):
        Origin.of("resnet20", weights=file).build()


def test_a_skeleton_does_not_need_the_checkpoint(tmp_path):
    gone = WeightsFile(str(tmp_path / "gone.pth"), "0" * 64)
    assert Origin("resnet20", gone, (3, 32, 32)).skeleton().linear.out_features == 10


def test_a_network_of_a_file_decides_itself_how_many_classes_it_has():
    with pytest.raises(UserError, match="decides itself how many classes"):
        Origin.of("examples/user_net.py:make", (3, 96, 96), outputs=7)
    assert Origin.of("torchvision:squeezenet1_1", outputs=7).build().classifier[1].out_channels == 7
