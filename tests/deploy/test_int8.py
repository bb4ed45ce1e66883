"""A network in int8 is deployed if it computes what its quantised form does in PyTorch, with what its bytes stand for.

PyTorch adds up in float32 what kernels add up in whole numbers. Where a value lies halfway between two steps, they may
round it to different ones, and what is computed of it differs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aap_hw.compile.library.lowering import compile_network
from aap_hw.deploy import deploying
from aap_hw.deploy.form import in_int8, taking_pixels
from aap_hw.deploy.pixels import Preprocessing, preprocessing_of
from aap_hw.deploy.run_form import form_of_run
from aap_hw.device import load_profile
from aap_hw.errors import Fault, UserError
from aap_hw.inputs import Inputs
from aap_hw.prune.samples import samples_for
from aap_hw.train.arrays import MadeSamples
from tests.quantize.saved import quantised_program
from tests.synthetic import few_images, half_pruned, this_device

pytestmark = pytest.mark.usefixtures("folder")


@pytest.mark.parametrize("pixels", [False, True])
def test_a_network_is_quantised_and_deployed(aap_hw: Callable[..., Any], folder: Path, pixels: bool) -> None:
    network = ("--model", "net.py:make", "--input", "3x16x16", "--data", "embedded", "--precision", "int8")
    done = aap_hw("deploy", *network, "--device", "x86", *(["--pixels"] if pixels else []), "--out", "bundle", "--json")
    assert done.code == 0, done.err
    assert "ms a call, measured, in int8" in done.err
    figures, manifest = json.loads(done.out), json.loads((folder / "bundle" / "manifest.json").read_text())
    assert figures["deployed_precision"] == manifest["precision"] == "int8"
    assert figures["images_checked"] == 40
    assert figures["ms"] == manifest["latency"]["measured"]["ms"]
    assert manifest["latency"]["measured"]["unpruned_ms"] is None
    (taken,) = manifest["inputs"]
    samples = np.load(folder / "bundle" / "reference_inputs.npy")
    assert list(samples.shape[1:]) == taken["shape"][1:] == ([16, 16, 3] if pixels else [3, 16, 16])
    assert manifest["preprocessing"]["in_network"] is pixels
    if pixels:
        assert (taken["dtype"], taken["passed_as"]) == ("uint8", "uint8")
        assert taken["quantisation"] == {"scale": 1.0, "zero_point": 0}
        assert np.array_equal(samples, samples.astype(np.uint8))
    else:
        assert (taken["dtype"], taken["passed_as"]) == ("float32", "float32")
        steps = samples / taken["quantisation"]["scale"] + taken["quantisation"]["zero_point"]
        assert -1 < steps.min() < 5, "all numbers of a byte are in use"
        assert 240 < steps.max() < 256


def test_a_quantised_program_is_deployed_as_it_is(aap_hw: Callable[..., Any], folder: Path) -> None:
    torch.export.save(quantised_program(), folder / "q.pt2")
    done = aap_hw("deploy", "--model", "q.pt2", "--device", "x86", "--data", "embedded", "--out", "bundle")
    assert done.code == 0, done.err
    assert "checked on 40 samples: largest difference from PyTorch's quantised network" in done.out
    assert json.loads((folder / "bundle" / "manifest.json").read_text())["precision"] == "int8"
    for wrong, sentence in (
        (("deploy", "--pixels"), "the network normalises its image as those of --data are; give --data"),
        (("deploy", "--precision", "fp32"), "q.pt2 is quantised in int8 already; leave --precision out"),
        (("profile",), "q.pt2 is quantised already, and can only be compiled and deployed as it is; to prune it, give"),
    ):
        refused = aap_hw(wrong[0], "--model", "q.pt2", "--device", "x86", *wrong[1:])
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert sentence in refused.err


def test_a_network_with_other_scales_is_a_fault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a scale cuts off large values."""
    from aap_hw.models.origin import Origin

    def with_other_scales(*given: Any) -> Any:
        *others, quantisation, precision, takes_bytes = given
        values = dict(quantisation.values)
        name = next(name for name in values if name.startswith("relu"))
        values[name] = replace(values[name], scale=values[name].scale * 0.5)
        return compile_network(*others, replace(quantisation, values=values), precision, takes_bytes)

    monkeypatch.setattr(deploying, "compile_network", with_other_scales)
    origin = Origin.of("net.py:make", (3, 16, 16))
    with pytest.raises(Fault, match="the compiled network differs from PyTorch by"):
        deploying.deploy_model(origin, this_device(), few_images(), folder / "bundle", "int8")
    assert not (folder / "bundle").exists()


def test_no_run_is_deployed_in_another_precision_than_it_says_or_by_scales_of_made_up_samples() -> None:
    network = half_pruned()
    x86 = load_profile("x86")
    with pytest.raises(UserError, match="a network in int9 cannot be deployed; give --precision fp32, half or int8"):
        form_of_run(network, few_images(), "int9", x86)
    sentence = (
        r"only a run that was pruned with --precision mixed:int8,half is deployed in int8,half; give --precision f"
    )
    with pytest.raises(UserError, match=sentence):
        form_of_run(network, few_images(), "int8,half", x86)
    with pytest.raises(UserError, match=sentence):
        deploying.bundle_model_unseen(network.origin, x86, few_images(), Path("bundle"), "int8,half")
    made_up = MadeSamples(network.origin.inputs)
    for stand_in in (made_up, samples_for(network.origin, None)):
        with pytest.raises(UserError, match=r"the run has no samples of what the network will see.*; give --data"):
            form_of_run(network, stand_in, "int8", x86)
    with pytest.raises(UserError, match="normalises its image as those of --data are; give --data"):
        preprocessing_of(samples_for(network.origin, None))


def test_pixels_are_what_the_float_image_is_of() -> None:
    how = Preprocessing(1 / 255, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    pixels = torch.arange(256.0).expand(1, 3, 1, 256)
    mean, std = (torch.tensor(each).reshape(3, 1, 1) for each in (how.mean, how.std))
    assert torch.equal(how.undone((pixels * how.scale - mean) / std), pixels)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Flatten()).eval()
    images = [torch.randn(1, 3, 5, 6) for _ in range(3)]
    form = in_int8(module, (None,), images)
    behind = taking_pixels(form, Inputs.of((3, 5, 6)), how)
    some = torch.randint(256, (1, 3, 5, 6), generator=torch.Generator().manual_seed(1)).float()
    apart = (behind.call((some,)) - form.call(((some * how.scale - mean) / std,))).abs()
    assert apart.median() == 0
    (passed,) = behind.passed((some,))
    assert (passed.shape, passed.dtype) == ((1, 5, 6, 3), np.uint8)
    assert np.array_equal(passed[0, 2, 4], some[0, :, 2, 4])
