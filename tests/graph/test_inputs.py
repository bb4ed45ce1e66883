"""What a network takes is one record with one text, and a network is called with it as its ``forward`` wants to be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from aap_hw import ChannelGraph
from aap_hw.errors import UserError
from aap_hw.graph.program.calling import called, check_call, input_names
from aap_hw.graph.program.inputs import in_batches
from aap_hw.inputs import Inputs
from tests.inputs import inputs_of_all_kinds


@given(inputs_of_all_kinds())
def test_text_and_json_give_the_same_inputs_back(inputs: Inputs) -> None:
    assert Inputs.parse(inputs.text) == inputs
    assert Inputs.from_json(inputs.as_json()) == inputs


@given(inputs_of_all_kinds(), st.integers(1, 3))
def test_batches_are_of_these_shapes_and_types_and_made_ones_are_the_same_again(inputs: Inputs, batch: int) -> None:
    for tensors in (inputs.zeros(batch), inputs.random(batch, seed=1)):
        described = [(tuple(each.shape), each.dtype) for each in tensors]
        assert described == [((batch, *one.shape), getattr(torch, one.dtype)) for one in inputs.each]
    again = inputs.random(batch, seed=1)
    assert all(torch.equal(one, other) for one, other in zip(inputs.random(batch, seed=1), again, strict=True))
    assert len(list(in_batches(again))) == batch


@pytest.mark.parametrize(
    ("text", "shapes", "json"),
    [
        ("3x224x224", [(3, 224, 224)], [3, 224, 224]),
        ("40", [(40,)], [40]),
        ("ids:int64:128", [(128,)], "ids:int64:128"),
        ("bool:7", [(7,)], "bool:7"),
        ("wave:1x16000", [(1, 16000)], "wave:1x16000"),
        ("3x8x8, 3x8x8", [(3, 8, 8)] * 2, "3x8x8,3x8x8"),
        ("3x8x8,step:int64:scalar", [(3, 8, 8), ()], "3x8x8,step:int64:scalar"),
    ],
)
def test_what_a_person_types_is_understood(text: str, shapes: list[tuple[int, ...]], json: object) -> None:
    assert [one.shape for one in Inputs.parse(text).each] == shapes
    assert Inputs.parse(text).as_json() == json


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "'' is not an input: write the shape of one sample"),
        ("3x0x8", "'3x0x8' is not an input"),
        ("3,", "'3,' is not an input"),
        ("3x8,t:float32:", "or scalar for one number"),
        ("3x8X8", "'3x8X8' is not an input"),
        ("a:b:3", "'a:b:3' is not an input"),
        ("ids:int64", "'ids:int64' is not an input"),
        ("float16:3x8x8", "an input cannot be float16: give one of float32, int64"),
        ("ids:long:8", "an input cannot be long"),
        ("a b:8", "'a b' cannot be the name of an input"),
        ("x:8,8", "inputs without a name come first"),
        ("x:8,x:8", "the input 'x' is given twice"),
        ("9999999x99999", "cannot have the shape"),
    ],
)
def test_what_means_nothing_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Inputs.parse(text)


def test_what_a_sample_costs_grows_with_the_positions_of_its_channels() -> None:
    texts = ("3x224x224", "1x16000", "40x101", "3x8x56x56", "int64:128", "scalar", "3x8x8,3x8x8")
    assert [Inputs.parse(text).positions for text in texts] == [50176, 16000, 101, 25088, 128, 1, 128]


class Mixed(nn.Module):
    """Takes one input by place, one by name only, and one that may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner, self.head = nn.Embedding(9, 6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor, scale: Tensor | None = None, *, mask: Tensor) -> Tensor:
        rows = self.inner(self.table(ids)).relu() * mask[..., None]
        return self.head(rows.sum(1) if scale is None else rows.sum(1) * scale[:, None])  # type: ignore[no-any-return]


@pytest.mark.parametrize("text", ["int64:5,mask:5", "mask:5,ids:int64:5", "int64:5,scalar,mask:5"])
def test_names_reach_the_parameters_of_forward_and_a_trace_follows(text: str) -> None:
    inputs, model = Inputs.parse(text), Mixed().eval()
    check_call(model, inputs, "Mixed")
    samples = inputs.random(1, seed=0)
    by_name = dict(zip(input_names(model, inputs), samples, strict=True))
    assert list(by_name) == {3: ["ids", "scale", "mask"]}.get(len(samples), [one or "ids" for one in inputs.names])
    torch.testing.assert_close(called(model, samples, inputs.names), model(**by_name))
    graph = ChannelGraph.trace(model, samples, inputs.names)
    assert [group.name for group in graph.groups if group.frozen is None] == ["table", "inner"]
    smaller = graph.cut(model, {"inner": [0, 3, 5]})
    assert smaller.inner.out_features == 3  # type: ignore[union-attr]
    assert graph.call(smaller, samples).shape == (1, 3)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "int64:5",
            r"net cannot be called with 1 input \(int64:5\): its forward takes ids, scale \(which has a default\)",
        ),
        ("int64:5,5,5,mask:5", "net cannot be called with 4 inputs .*: its forward takes ids, scale .* and mask; give"),
        ("int64:5,msak:5", r"net has no input 'msak': its forward takes ids, .* and mask; did you mean 'mask'\?"),
        ("int64:5,ids:int64:5,mask:5", "net cannot be called with 3 inputs"),
    ],
)
def test_inputs_that_forward_does_not_take_are_refused_with_what_it_takes(text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_call(Mixed(), Inputs.parse(text), "net")


def test_code_that_takes_anything_is_asked_by_calling_it() -> None:
    class Anything(nn.Module):
        def forward(self, *values: Tensor, **named: Tensor) -> Tensor:
            return sum((*values, *named.values()), torch.zeros(1))  # type: ignore[return-value]

    inputs = Inputs.parse("3,3,other:3")
    check_call(Anything(), inputs, "net")
    assert input_names(Anything(), inputs) == ["input_0", "input_1", "other"]
    assert input_names(nn.Identity(), Inputs.parse("3x4x4")) == ["image"]
    assert input_names(nn.Identity(), Inputs.parse("wave:1x40")) == ["wave"]
