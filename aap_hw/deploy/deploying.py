"""Deploying a run: compile it for a device, check it there against PyTorch on real images, time it, bundle it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from aap_hw.compile.lowering import compile_network
from aap_hw.deploy.bundle import Bundle, write_bundle
from aap_hw.device.connection import Device, LoadedLibrary
from aap_hw.device.timing import Timing, time_in_turn
from aap_hw.errors import UserError
from aap_hw.files import require_writable_folder
from aap_hw.policy import LATENCY, Budget
from aap_hw.prune.run import RunFolder
from aap_hw.train.data import LabelledImages

# Outputs may differ from PyTorch's by rounding only: relative to the largest output of the network.
TOLERANCE = 1e-4
REFERENCE_VECTORS = 8
# Checking stops at about this many pixels: all embedded test images at 32 x 32, a few dozen at 224 x 224.
CHECKED_PIXELS = 2_200_000


@dataclass(frozen=True)
class Deployment:
    """What deploying showed.

    Attributes
    ----------
    dense, pruned : latencies, timed in turn on the device.
    max_abs_diff : largest difference of any output from PyTorch's, over ``images`` images.
    agreement : share of the images whose predicted class is PyTorch's, in percent.
    summary : the run's figures, with those of this deployment.
    """

    bundle: Path
    dense: Timing
    pruned: Timing
    max_abs_diff: float
    agreement: float
    images: int
    summary: dict[str, Any]


def deploy(run: RunFolder, device: Device, data: LabelledImages, folder: Path | None = None) -> Deployment:
    """Deploy a finished run to a device and write its bundle, by default inside the run folder.

    Raises
    ------
    UserError : the run was pruned for another device, or the compiled network does not compute what PyTorch does.
    """
    network = run.load()
    description = device.describe()
    if network.device != description.name:
        raise UserError(
            f"{run.path} was pruned with the latency table of {network.device}, and its widths mean nothing on "
            f"{description.name}; deploy it with --device {network.device}, or prune with a table of {description.name}"
        )
    folder = folder or run.path / f"bundle-{description.name}"
    require_writable_folder(folder)
    shape = network.origin.input_shape
    count = max(REFERENCE_VECTORS, CHECKED_PIXELS // (shape[1] * shape[2]))
    images = data.tensors("test", shape, data.spread("test", count))
    with tempfile.TemporaryDirectory(prefix="aap-hw-deploy-") as scratch:
        paths = {name: Path(scratch) / f"{name}.so" for name in ("dense", "pruned")}
        compile_network(network.origin.build(), images[:1], device.target, paths["dense"])
        compile_network(network.module, images[:1], device.target, paths["pruned"])
        libraries = {name: device.load(path) for name, path in paths.items()}
        expected = _expected(network.module, images)
        actual = _outputs(libraries["pruned"], images)
        difference = float(np.abs(actual - expected).max())
        if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
            raise UserError(
                f"the compiled network differs from PyTorch by {difference:.3g} on {len(images)} images; "
                "nothing was deployed; this is a fault of aap-hw, please report it with the run folder"
            )
        timings = time_in_turn(libraries, "main", [images[:1].numpy()], device.profile.measure)
        dense_ms, pruned_ms = (timings[name].latency_us / 1e3 for name in ("dense", "pruned"))
        mean, std = data.mean_and_std
        write_bundle(
            folder,
            paths["pruned"],
            Bundle(
                network.origin.model,
                description,
                images[:REFERENCE_VECTORS].numpy(),
                expected[:REFERENCE_VECTORS],
                data.class_names if expected.shape[1] == data.classes else (),
                {"scale": 1 / 255, "mean": mean.flatten().tolist(), "std": std.flatten().tolist()},
                {"unpruned_ms": dense_ms, "measured_ms": pruned_ms, "provenance": "measured"},
            ),
        )
    agreement = 100.0 * float(np.mean(actual.argmax(1) == expected.argmax(1)))
    budget = network.record["budgets"].get(LATENCY.name)
    figures = {
        "dense_ms": dense_ms,
        "budget_ms": None if budget is None else Budget.parse(budget).of(dense_ms),
        "pruned_ms": pruned_ms,
        "dense_is_measured": True,
        "max_abs_diff": difference,
        "images_checked": len(images),
    }
    summary = run.update_summary(figures)
    return Deployment(folder, timings["dense"], timings["pruned"], difference, agreement, len(images), summary)


@torch.no_grad()
def _expected(module: nn.Module, images: torch.Tensor) -> np.ndarray:
    return np.concatenate([module(batch).numpy() for batch in torch.split(images, 100)])


def _outputs(library: LoadedLibrary, images: torch.Tensor) -> np.ndarray:
    outputs = []
    for image in torch.split(images, 1):
        library.set_inputs("main", [image.numpy()])
        outputs.append(library.run("main"))
    return np.concatenate(outputs)
