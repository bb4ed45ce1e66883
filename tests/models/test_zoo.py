"""Every name of the zoo gives a usable network, the same one each time; a wrong one a helpful sentence."""

import hashlib
import json
from importlib import resources

import pytest
import torch
from torch import nn

from aap_hw.errors import UserError
from aap_hw.inputs import Inputs
from aap_hw.models import zoo
from aap_hw.train.data import EMBEDDED_SHA256, load_embedded
from aap_hw.train.evaluation import evaluate

DATA = resources.files("aap_hw") / "data"


# Of torchvision's documentation, with a head of 10 classes for its two small ones; counted by hand for the others.
PARAMETERS = {
    "mobilenetv2": 3_504_872,
    "mobilenetv2_cifar": 3_504_872 - 1_281_000 + 12_810,
    "resnet18": 11_689_512,
    "resnet20": 269_722,
    "resnet50": 25_557_032,
    "resnet56": 853_018,
    "shufflenetv2_cifar": 2_278_604 - 1_025_000 + 10_250,
    "vgg16_bn": 138_365_992,
    "vgg19_cifar": 20_018_880 + 2 * 5_504 + 5_130,
}


LARGE = ("resnet50", "resnet56", "vgg16_bn", "vgg19_cifar")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in zoo.names()]
)
def test_untrained_network_has_its_documented_size_and_maps_images_to_distinct_finite_logits(name):
    model = zoo.build(name)
    assert sum(p.numel() for p in model.module.parameters()) == PARAMETERS[name]
    assert not model.module.training
    assert not any(m.training for m in model.module.modules())
    image = load_embedded().tensors("test", model.input_shape, [0, 1000])
    with torch.no_grad():
        logits = model.module(image)
    assert logits.shape == (2, model.classes)
    assert 0.1 < logits.std() < 100
    assert (logits[0] - logits[1]).abs().max() > 0.01


@pytest.mark.parametrize("name", ["mobilenetv2", "resnet20"])
def test_same_call_gives_the_same_weights_and_leaves_the_global_generator_alone(name):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = zoo.build(name).module.state_dict()
    assert torch.equal(torch.rand(3), expected)
    second = zoo.build(name).module.state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_batch_norm_is_left_as_a_new_network_has_it_apart_from_its_statistics():
    fresh = nn.BatchNorm2d(1)
    norms = [m for m in zoo.build("resnet18").module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(norm.momentum == fresh.momentum and norm.num_batches_tracked == 0 for norm in norms)
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms)
    assert all(not torch.equal(norm.running_var, torch.ones_like(norm.running_var)) for norm in norms)


def test_unknown_name_suggests_the_closest():
    with pytest.raises(UserError, match=r"mobilenet_v2.*did you mean 'mobilenetv2'"):
        zoo.build("mobilenet_v2")


def test_unknown_name_lists_what_there_is_when_nothing_is_close():
    with pytest.raises(UserError, match="resnet18, resnet20"):
        zoo.build("transformer")


def test_weights_that_do_not_exist_are_refused_by_name():
    with pytest.raises(UserError, match="resnet18 has no embedded weights; those that have: resnet20"):
        zoo.build("resnet18", weights="embedded")
    with pytest.raises(UserError, match="no weights named 'imagenet'"):
        zoo.build("resnet20", weights="imagenet")
    assert zoo.build("resnet20", "embedded", 10).classes == 10
    for refused in (zoo.entry, zoo.build):
        with pytest.raises(
            UserError, match="embedded weights of resnet20 tell 10 classes apart, not 5; leave --classes"
        ):
            refused("resnet20", "embedded", 5)


def test_embedded_resnet20_is_as_accurate_as_its_log_says():
    log = json.loads((DATA / "resnet20_fashion_mnist.json").read_text(encoding="utf-8"))
    model = zoo.build("resnet20", weights="embedded")
    accuracy = evaluate(model.module, load_embedded(), Inputs.of(model.input_shape))
    assert accuracy == pytest.approx(log["accuracy_percent"], abs=0.1)
    assert accuracy >= 91.0


def test_embedded_weights_and_data_are_those_of_the_log():
    log = json.loads((DATA / "resnet20_fashion_mnist.json").read_text(encoding="utf-8"))
    weights = (DATA / "resnet20_fashion_mnist.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == log["weights_sha256"]
    assert log["data"]["sha256"] == EMBEDDED_SHA256
    assert log["epochs"][-1]["accuracy_percent"] == log["accuracy_percent"]
    assert len(log["epochs"]) == log["settings"]["epochs"]


def test_damaged_embedded_weights_are_named(monkeypatch, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "resnet20_fashion_mnist.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    monkeypatch.setattr(zoo.resources, "files", lambda package: tmp_path)
    with pytest.raises(UserError, match=r"resnet20_fashion_mnist\.safetensors"):
        zoo.build("resnet20", weights="embedded")
