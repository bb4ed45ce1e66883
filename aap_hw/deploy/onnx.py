"""Export of a run as an ONNX file, checked against PyTorch by ONNX Runtime before it is kept."""

from __future__ import annotations

import importlib.util
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from aap_hw.deploy.reference import Reference, by_output
from aap_hw.errors import UserError
from aap_hw.files import require_writable_folder, write_atomic
from aap_hw.graph.outputs import output_tensors
from aap_hw.prune.run import RunFolder
from aap_hw.train.data import LabelledImages

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Exported:
    """An ONNX file that computes what PyTorch does, up to ``max_abs_diff``, on ``images`` images."""

    path: Path
    size: int
    max_abs_diff: float
    images: int


def export_onnx(run: RunFolder, data: LabelledImages, path: Path) -> Exported:
    """Write a finished run's network as ONNX: ``image`` (1, C, H, W) to ``logits``, or to outputs named as a bundle's.

    Code that makes the run's network is run again, with all your rights.

    Raises
    ------
    UserError : a package is missing, or the file cannot be written.
    Fault : ONNX Runtime computes something else than PyTorch.
    """
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"exporting takes packages that are not installed: {', '.join(missing)}; "
            "install them with: pip install 'aap-hw[onnx]'"
        )
    require_writable_folder(path.parent)
    network = run.load()
    reference = Reference.of(network, data)
    with tempfile.TemporaryDirectory(prefix="aap-hw-export-") as scratch:
        file = Path(scratch) / "model.onnx"
        torch.onnx.export(
            _Flat(network.module).eval(),
            (reference.images[:1],),
            file,
            input_names=["image"],
            output_names=list(reference.outputs),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        difference = reference.compare(_outputs(file, reference.images), "the ONNX file")
        content = file.read_bytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)
    return Exported(path, len(content), difference, len(reference.images))


class _Flat(nn.Module):
    """A network that returns its tensors and nothing else."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(output_tensors(self.network(image)))


def _outputs(file: Path, images: torch.Tensor) -> list[np.ndarray]:
    import onnxruntime  # heavy, and an extra

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return by_output([session.run(None, {"image": image.numpy()}) for image in torch.split(images, 1)])
