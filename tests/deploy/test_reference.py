"""An output is compared by its own measure: what is large elsewhere excuses nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aap_hw.deploy.form import Form
from aap_hw.deploy.reference import TOLERANCE, Reference, Sway
from aap_hw.errors import Fault, UserError
from aap_hw.inputs import Inputs
from tests.synthetic import few_images

BOXES = np.array([[[1e4, 2.0]], [[3.0, -2e4]]], dtype=np.float32)
SCORES = np.array([[[0.1, 0.9, 0.3]], [[0.8, 0.2, 0.4]]], dtype=np.float32)
REFERENCE = Reference((torch.zeros(2, 3, 4, 4),), {"output_boxes": BOXES, "output_scores": SCORES})


def test_rounding_is_a_share_of_each_output() -> None:
    assert REFERENCE.tolerances == {"output_boxes": pytest.approx(2.0), "output_scores": TOLERANCE}
    assert REFERENCE.compare([BOXES + 1.0, SCORES], "it") == 1.0


@pytest.mark.parametrize(
    "wrong", [SCORES + np.float32(0.01), SCORES * np.nan, SCORES[:, :, ::-1]], ids=["off", "nan", "turned"]
)
def test_small_output_that_is_wrong_is_named_beside_a_large_one(wrong: np.ndarray) -> None:
    with pytest.raises(Fault, match=r"it differs from PyTorch by .* in output_scores on 2 samples"):
        REFERENCE.compare([BOXES, wrong], "it")


def test_decisions_are_compared_by_how_many_are_others() -> None:
    """That a class has a number far from another's says nothing, and a step of 255 is no class."""
    truths = Reference((torch.zeros(2, 3, 4, 4),), {"logits": SCORES > 0.35})
    assert truths.compare([(SCORES > 0.35).astype(np.float32)], "it") == 0
    with pytest.raises(UserError, match=r"it decides differently from PyTorch in 33.33% .* 2 samples.*; return scores"):
        truths.compare([SCORES > 0.85], "it")
    classes = np.arange(1000).reshape(8, 1, 125) % 20
    in_float32 = Reference((torch.zeros(8, 3, 4, 4),), {"class": classes})
    few, many = classes.copy(), classes.copy()
    few[0, 0, :5] += 15
    many[0, 0, :50] += 1
    unmoved, moved = Sway.of(classes, classes), Sway.of(many, classes)
    in_int8, tipped = (replace(in_float32, swayed={"class": sway}, precision="int8") for sway in (unmoved, moved))
    assert in_int8.compare([few.astype(np.float32)], "it") == 0
    assert tipped.compare([many], "it") == 0
    assert (in_int8.agreement([few]), in_int8.equal([few]), in_int8.decisions) == (pytest.approx(99.5), 7, {"class"})
    assert in_int8.tolerances == {"class": 0.01}
    for reference, wrong in ((in_float32, few), (in_int8, many), (tipped, classes + 1)):
        with pytest.raises(UserError, match="it decides differently from PyTorch"):
            reference.compare([wrong], "it")


def test_output_in_a_type_that_numpy_lacks_is_named() -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"maps": x, "means": x.mean((2, 3)).bfloat16()}

    form, inputs = Form(Named(), Named(), ("x",)), Inputs.of((3, 16, 16))
    with pytest.raises(UserError, match=r"returns output_means in bfloat16, .*; return it in float32, with .float()"):
        Reference.of(form, inputs, few_images())


def test_classes_agree_only_where_the_network_scores_classes() -> None:
    alone = Reference((torch.zeros(2, 3, 4, 4),), {"logits": SCORES})
    assert alone.agreement([SCORES]) == 100.0
    assert alone.agreement([SCORES[:, :, [1, 0, 2]]]) == 0.0
    assert REFERENCE.agreement([BOXES, SCORES]) is None
    assert (
        Reference(alone.samples, {"logits": np.zeros((2, 1, 5, 4, 4))}).agreement([np.zeros((2, 1, 5, 4, 4))]) is None
    )


def test_in_int8_outputs_may_be_apart_by_a_step_but_not_all_of_them() -> None:
    """Of a hundred scores, one that is rounded to the other side is no fault; a hundred that are a little off are."""
    scores = np.linspace(-2, 2, 100, dtype=np.float32).reshape(10, 1, 10)
    plain = Reference((torch.zeros(10, 3, 4, 4),), {"logits": scores})
    in_int8 = replace(plain, swayed={"logits": Sway(largest=0.02, mean=0.001)})
    assert plain.tolerances == {"logits": pytest.approx(2e-4)}
    assert in_int8.tolerances == {"logits": pytest.approx(0.08)}
    one_off = scores.copy()
    one_off[3, 0, 4] += 0.03
    assert in_int8.compare([one_off], "it") == pytest.approx(0.03)
    assert (in_int8.equal([one_off]), in_int8.equal([scores])) == (9, 10)
    for reference, wrong in ((plain, one_off), (in_int8, scores + np.float32(0.003)), (in_int8, one_off * np.nan)):
        with pytest.raises(Fault, match="it differs from PyTorch by"):
            reference.compare([wrong], "it")


def test_outputs_that_are_no_numbers_in_pytorch_are_refused_by_name() -> None:
    class Divided(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"maps": x, "means": x.mean((2, 3)) / 0}

    form, inputs = Form(Divided(), Divided(), ("x",)), Inputs.of((3, 16, 16))
    with pytest.raises(UserError, match="PyTorch's output_means is infinite or NaN for some samples"):
        Reference.of(form, inputs, few_images())
