"""A network in half precision is deployed if it is as far from PyTorch in float32 as its roundings explain."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from aap_hw.compile.keys.precision import HALF
from aap_hw.compile.keys.target import device_target
from aap_hw.compile.library.lowering import compile_network
from aap_hw.deploy import deploying
from aap_hw.deploy.form import form_of, in_half, in_half_for_timing, in_int8_for_timing
from aap_hw.deploy.reference import Reference
from aap_hw.deploy.run_form import form_of_run, unpruned_form
from aap_hw.device import load_profile
from aap_hw.errors import Fault, UserError
from aap_hw.graph.program.inputs import in_batches
from aap_hw.graph.program.outputs import output_tensors
from aap_hw.inputs import Inputs
from aap_hw.models.origin import Origin
from aap_hw.prune.run import PrunedNetwork
from aap_hw.quantize.halved import halved
from tests.compile.half import Net
from tests.compile.running import needs_bfloat16, randomise
from tests.synthetic import few_images, half_pruned, this_device

INPUTS = Inputs.of((3, 16, 16))


pytestmark = pytest.mark.usefixtures("folder")


@pytest.mark.slow
@needs_bfloat16
def test_a_network_is_deployed_and_its_bundle_agrees_within_what_roundings_explain(
    aap_hw: Callable[..., Any], folder: Path
) -> None:
    network = ("--model", "net.py:make", "--input", "3x16x16", "--data", "embedded", "--precision", "half")
    done = aap_hw("deploy", *network, "--device", "x86", "--out", "bundle", "--json")
    assert done.code == 0, done.err
    assert "ms a call, measured, in half" in done.err
    figures, manifest = json.loads(done.out), json.loads((folder / "bundle" / "manifest.json").read_text())
    assert figures["deployed_precision"] == manifest["precision"] == "half"
    assert "avx512_bf16" in manifest["requires"]["cpu_features"]
    (output,) = manifest["outputs"]
    # A library in float32 would be as near as 1e-4; a tolerance of 1 would say nothing of scores as small as these.
    assert 1e-4 < figures["max_abs_diff"] < output["tolerance"] < 0.1
    assert (manifest["inputs"][0]["passed_as"], manifest["inputs"][0]["quantisation"]) == ("float32", None)
    ran = subprocess.run([sys.executable, folder / "bundle" / "run.py"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "8 reference inputs: largest difference from PyTorch" in ran.stdout


@needs_bfloat16
def test_a_network_with_other_weights_is_a_fault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_other_weights(model: nn.Module, *others: Any) -> Any:
        other = copy.deepcopy(model)
        with torch.no_grad():
            other[2].weight[0] *= 0.5
        return compile_network(other, *others)

    monkeypatch.setattr(deploying, "compile_network", with_other_weights)
    with pytest.raises(Fault, match="the compiled network differs from PyTorch by"):
        deploying.deploy_model(
            Origin.of("net.py:make", INPUTS), this_device(), few_images(), folder / "bundle", precision="half"
        )
    assert not (folder / "bundle").exists()


@needs_bfloat16
def test_pytorch_rounds_where_the_library_does(tmp_path: Path) -> None:
    """The two are nearer to each other than either is to float32: all that is left is sums in another order."""
    torch.manual_seed(0)
    model, inputs = randomise(Net()), Inputs.of((3, 32, 32))
    compile_network(model, inputs.zeros(), this_device().target, tmp_path / "half.so", precision=HALF)
    loaded, program = this_device().load(tmp_path / "half.so"), halved(model, inputs, this_device().target)
    apart, moved = torch.zeros(2), torch.zeros(2)
    for image in torch.randn(8, 1, 3, 32, 32):
        loaded.set_inputs("main", [image.numpy()])
        made = [torch.from_numpy(each.copy()) for each in loaded.run("main")]
        with torch.no_grad():
            rounded, exact = output_tensors(program(image)), output_tensors(model(image))
        pairs = list(zip(made, rounded, exact, strict=True))
        apart += torch.stack([(one - other).square().mean() for one, other, _ in pairs])
        moved += torch.stack([(other - right).square().mean() for _, other, right in pairs])
    assert (apart.sqrt() < 0.5 * moved.sqrt()).all(), (apart / moved).sqrt()


def test_several_samples_at_once_are_rounded_as_one_alone() -> None:
    machine = device_target({"kind": "llvm", "mcpu": "znver4"}, 1)
    model = randomise(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)))
    images = torch.randn(3, 3, 16, 16)
    one, three = (halved(model, INPUTS, machine, batch) for batch in (1, 3))
    with torch.no_grad():
        alone = torch.cat([one(image) for (image,) in in_batches((images,))])
        assert (three(images) - alone).abs().max() < 1e-6
        assert (model(images) - alone).abs().max() > 1e-4


def test_values_that_float16_does_not_hold_are_refused() -> None:
    board = device_target({"kind": "llvm", "mcpu": "cortex-a76", "mtriple": "aarch64-linux-gnu"}, 1)
    layers = nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten()
    model = nn.Sequential(*layers).eval()
    with torch.no_grad():
        model[0].weight.fill_(1e5)
    with pytest.raises(UserError, match=r"too large for half precision.*; deploy it with --precision fp32"):
        Reference.of(in_half(model, INPUTS, board), INPUTS, few_images())


def test_a_run_in_half_is_deployed_in_half_where_the_device_can() -> None:
    network = half_pruned()
    in_half_too = replace(network, record={**network.record, "precision": "half"})
    for run, asked in ((in_half_too, None), (network, "half")):
        with pytest.raises(UserError, match="has no instructions for half precision"):
            form_of_run(run, few_images(), asked, load_profile("rpi4"))
        with pytest.raises(UserError, match="a network in half cannot be exported; give --precision fp32 or int8"):
            form_of_run(run, few_images(), asked, None)
    assert form_of_run(in_half_too, few_images(), "fp32", load_profile("rpi4")).precision == "fp32"
    assert form_of_run(in_half_too, few_images(), None, load_profile("jetson-orin")).precision == "half"


def test_the_unpruned_network_is_timed_in_the_precision_of_what_is_deployed() -> None:
    origin = Origin.of("net.py:make", INPUTS)
    module = origin.build()
    forms = form_of(module, ()), in_half_for_timing(module, INPUTS), in_int8_for_timing(module, INPUTS, ())
    run = PrunedNetwork(origin, {}, "x86", module, {})
    unpruned = [unpruned_form(run, few_images(), form) for form in forms]
    assert [form.precision for form in unpruned] == ["fp32", "half", "int8"]
    assert [form.quantisation is not None for form in unpruned] == [False, False, True]
    of_a_mixture = unpruned_form(replace(run, record={"precision": "mixed:int8,half"}), few_images(), forms[2])
    assert (of_a_mixture.precision, of_a_mixture.quantisation) == ("half", None)
