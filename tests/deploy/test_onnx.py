"""An exported file computes what PyTorch computes, by ONNX Runtime; what does not is a fault and is not kept."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aap_hw.deploy import onnx as exporting
from aap_hw.deploy import run_form
from aap_hw.deploy.form import form_of
from aap_hw.deploy.onnx import export_onnx
from aap_hw.deploy.onnx_file import OPSETS, Format, Session, opset_of, write
from aap_hw.deploy.reference import Reference
from aap_hw.errors import Fault, UserError
from aap_hw.prune.run import RunFolder
from tests.synthetic import few_images

onnxruntime = pytest.importorskip("onnxruntime")


class Gate(nn.Module):
    """A network of two inputs, one of them whole numbers, that returns two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.look_up, self.convolution = nn.Embedding(5, 4), nn.Conv2d(3, 4, 3)

    def forward(self, image: Tensor, word: Tensor) -> dict[str, Tensor]:
        gate = self.look_up(word).mean(1)
        maps = self.convolution(image) * gate[:, :, None, None].sigmoid()
        return {"maps": nn.functional.gelu(maps), "means": maps.flatten(1).mean(1)}


@pytest.mark.parametrize("opset", [9, *(pytest.param(opset, marks=pytest.mark.slow) for opset in (12, 17)), 23])
def test_any_number_of_samples_is_computed_at_every_opset(tmp_path: Path, opset: int) -> None:
    torch.manual_seed(0)
    module, file = Gate(), tmp_path / "gate.onnx"
    inputs = {"image": torch.randn(4, 3, 6, 7), "word": torch.randint(5, (4, 9))}
    write(module, inputs, ["maps", "means"], Format(opset, any_batch=True), file)
    assert opset_of(file) == opset
    session = Session(file)
    for count in (1, 4):
        batch = {name: each[:count] for name, each in inputs.items()}
        with torch.no_grad():
            expected = module(**batch).values()
        for actual, right in zip(session.run(batch), expected, strict=True):
            np.testing.assert_allclose(actual, right.numpy(), rtol=0, atol=1e-5)


def test_the_opsets_are_those_of_pytorch() -> None:
    from torch.onnx import _constants

    assert (OPSETS[0], OPSETS[-1]) == (_constants.ONNX_BASE_OPSET, _constants.ONNX_MAX_OPSET)


def of_inputs(function: Callable[[Tensor], Tensor]) -> nn.Module:
    class Network(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    return Network()


@pytest.mark.parametrize("opset", [13, None])
def test_an_operator_without_a_translation_is_named(tmp_path: Path, opset: int | None, capfd: Any) -> None:
    module, inputs = of_inputs(torch.linalg.svdvals), {"x": torch.randn(2, 3, 3)}
    with pytest.raises(UserError, match=r"as an ONNX file.*: it has no translation of 'linalg_svd") as refusal:
        write(module, inputs, ["values"], Format(opset), tmp_path / "x.onnx")
    assert not re.search("aten|Overload|TorchScript|torch.onnx", str(refusal.value))
    assert capfd.readouterr().out == ""


def test_a_network_that_fixes_the_batch_in_its_code_is_told_so(tmp_path: Path) -> None:
    module, inputs = of_inputs(lambda x: torch.stack(list(x))), {"x": torch.randn(2, 3)}
    with pytest.raises(UserError, match=r"cannot be written for any number of samples: its code fixes .*x\.shape\[0\]"):
        write(module, inputs, ["y"], Format(any_batch=True), tmp_path / "x.onnx")


class Small(nn.Module):
    """A network whose code turns the batch size into a number, and one that enlarges maps as old opsets do not."""

    def __init__(self, is_baked: bool) -> None:
        super().__init__()
        self.is_baked = is_baked

    def forward(self, x: Tensor) -> Tensor:
        if self.is_baked:
            return x.reshape(int(x.shape[0]), -1)
        return nn.functional.interpolate(x, scale_factor=2, mode="bilinear")


@pytest.mark.parametrize(
    ("is_baked", "sentence"),
    [
        (True, "any number of samples: its code turns the batch size into a number, which opsets below 18 keep"),
        (False, "of opset 10 does not compute what this network does, .*; give a higher --opset"),
    ],
)
def test_what_an_old_opset_cannot_express_is_the_users_to_change(tmp_path: Path, is_baked: bool, sentence: str) -> None:
    module, images, form = Small(is_baked), torch.randn(4, 3, 5, 5), Format(10, any_batch=True)
    with pytest.raises(UserError, match=sentence):
        exporting._written(module, {"image": images}, reference_of(module, images), form, tmp_path / "x.onnx")


def reference_of(module: nn.Module, images: Tensor) -> Reference:
    with torch.no_grad():
        return Reference((images,), {"logits": np.stack([module(each).numpy() for each in images.split(1)])})


FIXED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "one": (lambda x: x.mean((2, 3)).view(1, -1), r"its logits has the shape \(1, 3\) for one and \(1, 9\) for 3"),
    "fails": (lambda x: x.reshape(1, 3, -1).mean(2) @ torch.eye(3)[:, :2] + x.view(3, 1024)[:, :2].sum(), "fails at 3"),
    "a sum": (lambda x: x.sum(), r"its logits has the shape \(\) for one and \(\) for 3"),
}


@pytest.mark.parametrize("name", FIXED)
def test_outputs_that_do_not_grow_with_the_batch_are_named(name: str) -> None:
    function, sentence = FIXED[name]
    inputs = {"image": torch.rand(3, 3, 32, 32)}
    module = of_inputs(function)
    with pytest.raises(UserError, match=sentence):
        exporting._of_batch(module, reference_of(module, inputs["image"]), inputs)


def test_weights_of_a_script_are_exported_for_any_number_of_images(
    aap_hw: Callable[..., Any], finished: Path, tmp_path: Path
) -> None:
    module = RunFolder(finished).load().module
    state = {name: value * 1.5 if name == "linear.bias" else value for name, value in module.state_dict().items()}
    torch.save({"model": module.state_dict(), "model_ema": {**state, "loss.scale": torch.ones(1)}}, tmp_path / "c.pth")
    file = tmp_path / "net.onnx"
    asked = ("--onnx", str(file), "--weights", str(tmp_path / "c.pth"), "--opset", "13", "--dynamic-batch")
    outcome = aap_hw("export", str(finished), *asked)
    assert outcome.code == 0, outcome.err
    assert re.search(
        r"MB, opset 13, any number of samples at once; .* on 8 samples, alone and 3 at once\n", outcome.out
    )
    taken, left_out = outcome.err.splitlines()
    assert re.fullmatch(r"aap-hw: .*c\.pth: the weights under 'model_ema' are taken .* 'model', which fit too", taken)
    assert re.fullmatch(
        r"aap-hw: .*c\.pth: 'loss\.scale' left out, as the cut network of .* has no such tensors", left_out
    )
    images = torch.randn(5, 3, 32, 32)
    module.load_state_dict(state)
    with torch.no_grad():
        expected = module(images).numpy()
    (actual,) = onnxruntime.InferenceSession(file).run(["logits"], {"image": images.numpy()})
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


def test_onnx_file_computes_what_pytorch_does(finished: Path, tmp_path: Path) -> None:
    result = export_onnx(RunFolder(finished), few_images(), tmp_path / "new" / "net.onnx")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["net.onnx"]
    assert result.size == result.path.stat().st_size
    session = onnxruntime.InferenceSession(result.path, providers=["CPUExecutionProvider"])
    image = torch.randn(1, 3, 32, 32)
    (actual,) = session.run(["logits"], {"image": image.numpy()})
    with torch.no_grad():
        expected = RunFolder(finished).load().module(image).numpy()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)
    assert np.ptp(expected) > 0.1
    assert result.max_abs_diff <= 1e-4


@pytest.mark.slow
def test_file_in_int8_holds_bytes_and_gives_the_same_classes(
    aap_hw: Callable[..., Any], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    monkeypatch.setattr(run_form, "CALIBRATION_IMAGES", 16)
    asked = ("export", str(finished), "--onnx", str(tmp_path / "net.onnx"), "--precision", "int8", "--data", "embedded")
    outcome = aap_hw(*asked)
    assert outcome.code == 0, outcome.err
    assert re.search(
        r"ONNX Runtime differs from PyTorch's quantised network by at most \S+ on 8 samples, and its int8 kernels give "
        r"the same class for 100\.0 %\n",
        outcome.out,
    )
    graph = onnx.load(tmp_path / "net.onnx").graph
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in graph.node}
    assert sum(each.data_type == onnx.TensorProto.INT8 for each in graph.initializer if len(each.dims) > 1) == 20
    assert not any(each.data_type == onnx.TensorProto.FLOAT for each in graph.initializer if len(each.dims) > 1)
    refused = aap_hw(*asked, "--dynamic-batch")
    assert "in int8 is written for one sample and opset 18 or more; leave --dynamic-batch out" in refused.err


def test_file_that_computes_something_else_is_not_kept(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = RunFolder(finished).load()
    form = form_of(network.module, network.origin.inputs.names)
    (expected,) = Reference.of(form, network.origin.inputs, few_images()).outputs.values()
    answers = iter(expected + np.float32(0.01))
    monkeypatch.setattr(exporting, "write", lambda module, inputs, outputs, form, file: file.write_bytes(b"a network"))
    monkeypatch.setattr(exporting, "Session", lambda file, **how: SimpleNamespace(run=lambda inputs: [next(answers)]))
    with pytest.raises(Fault, match=r"the ONNX file differs from PyTorch by 0\.01"):
        export_onnx(RunFolder(finished), few_images(), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_missing_package_is_named_with_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else real(name))
    with pytest.raises(UserError, match=r"not installed: onnxscript; .* pip install 'aap-hw\[onnx\]'"):
        export_onnx(RunFolder(tmp_path / "none"), few_images(), tmp_path / "net.onnx")
