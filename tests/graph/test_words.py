"""What cannot be traced is refused in words that the user knows: his own code's, and never those of a library's makers.

Each network is refused with one sentence that says what is wrong, and where in this file.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.graph.check.self_check import checked_cut
from aap_hw.graph.program.outputs import output_names, output_tensors
from aap_hw.graph.program.source import op_name

IMAGE = torch.rand(1, 3, 8, 8)
FOR_DEVELOPERS = re.compile(
    r"aten|guard|Guard|pytree|FakeTensor|torch\._|torch\.export|TS2EP|c10|INTERNAL|TORCH_LOGS|\bu0\b|subclass|http"
)


class Net(nn.Module):
    """Two convolutions, between which a function is called."""

    def __init__(self, between: Callable[[Tensor], Any], pack: Callable[[Tensor], Any] = lambda x: x) -> None:
        super().__init__()
        self.first, self.last, self.between, self.pack = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), between, pack

    def forward(self, x: Tensor) -> Any:
        return self.pack(self.last(self.between(self.first(x))))


def halves_until_small(x: Tensor) -> Tensor:
    while x.abs().max() > 1:
        x = x / 2
    return x


def clipped_by_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(np.clip(x.detach().numpy(), 0, 1))


def wants_two(x: Tensor) -> Tensor:
    raise ValueError("at least two images are needed\nand no less")


def too_wide(x: Tensor) -> Tensor:
    return F.linear(x, torch.zeros(5, 7))


def refused_by_assertion(x: Tensor) -> Tensor:
    assert x.isfinite().all(), "not finite"
    return x


class OneOfTwo(nn.Module):
    """What it does is chosen by a tensor of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.tensor([0, 1]))

    def forward(self, x: Tensor) -> Tensor:
        return x.relu() if self.codes[1] else x


def crop_to_largest(x: Tensor) -> Tensor:
    return x[:, :, : int(x.argmax())]


IN_CODE: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "branch": (lambda x: x if x.mean() > 0 else -x, r"depends on the values of a tensor \(test_words.py:\d+: .*mean"),
    "branch on a buffer": (
        OneOfTwo(),
        r"depends on the values of a tensor \(test_words.py:\d+: .*codes.* __init__ if the tensor is the model's own$",
    ),
    "loop": (halves_until_small, r"depends on the values .*while x.abs\(\).max\(\) > 1:\)"),
    "assertion": (refused_by_assertion, r"depends on the values .*assert x.isfinite\(\).all\(\)"),
    "size by value": (crop_to_largest, r"depends on the values .*int\(x.argmax\(\)\)"),
    "NumPy": (
        clipped_by_numpy,
        r"passes the values of a tensor to code outside PyTorch \(test_words.py:\d+: .*np.clip",
    ),
    "own error": (
        wants_two,
        r"its code raised ValueError: at least two images are needed \(test_words.py:\d+: raise ValueError",
    ),
    "missing key": (lambda x: {}["width"], r"its code raised KeyError: 'width' \(test_words.py:\d+: "),
    "wrong shape": (too_wide, r"does not run on this input: RuntimeError: mat1 and mat2 .*: return F.linear\(x, "),
}


@pytest.mark.parametrize("name", IN_CODE)
def test_code_that_cannot_be_followed_is_named_by_its_line(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    between, sentence = IN_CODE[name]
    model = Net(between)
    with pytest.raises(UserError, match=f"^cannot trace this Net: .*{sentence}") as refusal:
        ChannelGraph.trace(model, (IMAGE,))
    assert_for_users(refusal.value)
    assert model.training
    assert not model._forward_hooks
    assert capfd.readouterr().err == ""


def test_nothing_is_said_of_a_trial_cut_in_which_a_program_fails(capfd: pytest.CaptureFixture[str]) -> None:
    program = torch.export.export(Net(lambda x: torch.cat(x.split(2, 1)[::-1], 1)).eval(), (IMAGE,)).module()
    graph = ChannelGraph.trace(program, (IMAGE,))
    assert any("split" in (group.frozen or "") for group in graph.groups)
    assert capfd.readouterr().err == ""


def assert_for_users(refusal: UserError) -> None:
    text = re.sub(r"\(test_words.py:\d+: .*\)", "", str(refusal))
    assert not FOR_DEVELOPERS.search(text)
    assert "\n" not in text


def small(*more: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1), *more).eval()


def prepared(model: nn.Module) -> nn.Module:
    import torch.ao.quantization as quantization

    model.qconfig = quantization.get_default_qat_qconfig("x86")
    return quantization.prepare_qat(model.train()).eval()


def quantized(model: nn.Module) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear})


def with_sparse_weights() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    model[1].weight = nn.Parameter(model[1].weight.detach().to_sparse())
    return model


OF_KIND: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "scripted": (
        lambda: torch.jit.script(small()),
        "this RecursiveScriptModule is TorchScript, .*the Python model",
    ),
    "scripted part": (
        lambda: small(torch.jit.trace(nn.Tanh(), IMAGE)),
        "the part '3' of this .* is TorchScript",
    ),
    "prepared": (
        lambda: prepared(small()),
        "'0.weight_fake_quant' .* is prepared for quantization, .*cut the",
    ),
    "quantized": (lambda: quantized(small(nn.Flatten(), nn.Linear(256, 2))), "the part '4' .*is quantized, .*cut the"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(4, 1)), "weights '0.weight' have no shape yet; call the model once"),
    "meta": (lambda: small().to("meta"), "weights '0.weight' are on the meta device, where they have no values"),
    "half": (lambda: small().half(), r"'0.weight' are float16 and the input is float32; .*\.to\(torch.float32\)"),
    "brain": (lambda: small().bfloat16(), "'0.weight' are bfloat16 and the input is float32"),
    "complex": (lambda: small().to(torch.complex64), "'0.weight' are complex numbers, and only real ones can be cut"),
    "sparse": (with_sparse_weights, r"'1.weight' are sparse, which cannot be cut; make them dense with .to_dense\(\)"),
}


@pytest.mark.parametrize("name", OF_KIND)
def test_model_that_no_trace_can_follow_is_refused_by_its_kind(name: str) -> None:
    make, sentence = OF_KIND[name]
    with warnings.catch_warnings(action="ignore"):
        model = make()
    with pytest.raises(UserError, match=sentence) as refusal:
        ChannelGraph.trace(model, (IMAGE,))
    assert_for_users(refusal.value)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda net: torch.compile(nn.DataParallel(net))])
def test_what_training_wrapped_around_a_model_comes_off(wrap: Callable[[nn.Module], nn.Module]) -> None:
    wrapped = wrap(small())
    graph = ChannelGraph.trace(wrapped, (IMAGE,))
    assert [group.name for group in graph.groups] == ["0", "2"]
    assert type(checked_cut(graph, wrapped, {"0": [1, 4]}, IMAGE)) is nn.Sequential


@dataclass
class Scores:
    scores: Tensor
    maps: list[Tensor]
    note: str = "of one image"


class Pair(NamedTuple):
    scores: Tensor
    maps: list[Tensor]


class Bunch(dict[str, Any]):
    def __getattr__(self, name: str) -> Any:
        return self[name]


PACKED: dict[str, tuple[Callable[[Tensor], Any], list[str]]] = {
    "dataclass": (lambda x: Scores(x[:, 0], [x, x * 2]), ["scores", "maps_0", "maps_1"]),
    "in a list": (lambda x: [Scores(x, []), {"more": x[:, 1]}], ["0_scores", "1_more"]),
    "named tuple": (lambda x: Pair(x, [x * 2]), ["scores", "maps_0"]),
    "own dictionary": (lambda x: Bunch(scores=x, maps=Pair(x * 2, [])), ["scores", "maps_scores"]),
}


@pytest.mark.parametrize("name", PACKED)
def test_outputs_packed_by_types_of_the_users_own_are_cut_like_any_others(name: str) -> None:
    pack, names = PACKED[name]
    model = Net(torch.relu, pack).eval()
    returned = model(IMAGE)
    assert output_names(returned) == [f"output_{each}" for each in names]
    smaller = checked_cut(ChannelGraph.trace(model, (IMAGE,)), model, {"first": [0, 2, 5]}, IMAGE)
    assert type(smaller(IMAGE)) is type(returned)
    assert [each.shape for each in output_tensors(smaller(IMAGE))] == [each.shape for each in output_tensors(returned)]


@pytest.mark.parametrize("pack", [lambda x: {x}, lambda x: iter([x]), lambda x: (x, Hidden(x))])
def test_object_that_may_hide_tensors_is_refused_by_its_type(pack: Callable[[Tensor], Any]) -> None:
    with pytest.raises(UserError, match=r"returns an object of type (set|list_iterator|Hidden); return a tensor, or"):
        ChannelGraph.trace(Net(torch.relu, pack), (IMAGE,))


class Hidden:
    def __init__(self, x: Tensor) -> None:
        self.x = x


class Written(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.up, self.conv = nn.LSTM(8, 4), nn.Upsample(scale_factor=2), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.conv(x))
        x = nn.functional.interpolate(x, size=(8, 8))
        x = torch.roll(x, 1, 2).type_as(x)
        x = x[:, 0]
        x = self.rnn(x)[0]
        x = x - x.cumsum(1)
        return torch.linalg.vector_norm(x, dim=1)


def test_calls_are_named_as_the_code_writes_them() -> None:
    graph = ChannelGraph.trace(Written(), (IMAGE,))
    names = [op_name(node) for node in graph.program.graph.nodes if node.op == "call_function"]
    assert list(dict.fromkeys(names)) == [
        "nn.Conv2d 'conv'",
        "nn.Upsample 'up'",
        "nn.functional.interpolate",
        "torch.roll",
        "x.type_as",
        "indexing x[...]",
        "nn.LSTM 'rnn'",
        "x.cumsum",
        "'-'",
        "torch.linalg.vector_norm",
    ]
