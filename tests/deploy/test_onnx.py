"""An exported file computes what PyTorch computes, by ONNX Runtime; what does not is a fault and is not kept."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from aap_hw.deploy import onnx as exporting
from aap_hw.deploy.onnx import export_onnx
from aap_hw.deploy.reference import Reference
from aap_hw.errors import Fault, UserError
from aap_hw.prune.run import RunFolder
from tests.synthetic import few_images

onnxruntime = pytest.importorskip("onnxruntime")


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


def test_file_that_computes_something_else_is_not_kept(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (expected,) = Reference.of(RunFolder(finished).load(), few_images()).outputs.values()
    monkeypatch.setattr(torch.onnx, "export", lambda module, inputs, file, **how: file.write_bytes(b"a network"))
    monkeypatch.setattr(exporting, "_outputs", lambda file, images: [expected + np.float32(0.01)])
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
