"""A bundle of a network so small that it compiles in a second, and one that gives itself away when it is loaded."""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aap_hw.compile.keys.target import DeviceTarget
from aap_hw.compile.library.lowering import compile_network
from aap_hw.deploy.bundle import Bundle, write_bundle
from aap_hw.deploy.form import in_int8, taking_pixels
from aap_hw.deploy.pixels import Preprocessing
from aap_hw.deploy.reference import by_output
from aap_hw.deploy.requirements import Requirements
from aap_hw.graph.program.inputs import in_batches
from aap_hw.graph.program.outputs import output_names, output_tensors
from aap_hw.inputs import Inputs
from tests.synthetic import this_device

# Its constructor runs when the dynamic linker maps it, before anybody can look at what it holds.
TELLTALE = r"""
#include <cstdlib>
#include <fstream>
__attribute__((constructor)) static void loaded() { std::ofstream(std::getenv("LOADED_MARKER")) << "loaded"; }
"""


def network() -> nn.Module:
    torch.manual_seed(3)
    layers = nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    return nn.Sequential(*layers).eval()


class Several(nn.Module):
    """The network with its first map beside its scores, once more and twice as large."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        first = self.layers[:2](x)
        return {"first": first, "scores": self.layers[2:](first), "again": first * 2}


class SeveralInputs(nn.Module):
    """An image and a caption of words, some of which are masked."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.image, self.words, self.scores = nn.Conv2d(3, 8, 3), nn.Embedding(20, 8), nn.Linear(8, 5)

    def forward(self, image: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        words = self.words(ids) * mask.unsqueeze(-1)
        return self.scores(self.image(image).relu().mean((2, 3)) + words.sum(1))  # type: ignore[no-any-return]


def images() -> dict[str, Tensor]:
    """Three samples for `network` and `Several`."""
    return {"image": 3 * torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(4))}


def captioned() -> dict[str, Tensor]:
    """Three samples for `SeveralInputs`."""
    generator = torch.Generator().manual_seed(6)
    ids = torch.randint(20, (3, 7), generator=generator)
    return {**images(), "ids": ids, "mask": torch.rand(3, 7, generator=generator) < 0.6}


def make_bundle(
    folder: Path,
    target: DeviceTarget | None = None,
    module: nn.Module | None = None,
    samples: dict[str, Tensor] | None = None,
) -> np.ndarray:
    """Write a bundle of three reference samples, by default for this machine; returns all of PyTorch's outputs."""
    samples, module = samples or images(), network() if module is None else module
    batches = list(in_batches(tuple(samples.values())))
    with torch.no_grad():
        answers = [module.eval()(*batch) for batch in batches]
    arrays = by_output([[output.numpy() for output in output_tensors(answer)] for answer in answers])
    outputs = dict(zip(output_names(answers[0]), arrays, strict=True))
    device = this_device()
    with tempfile.TemporaryDirectory() as scratch:
        library = Path(scratch) / "tiny.so"
        compile_network(module, batches[0], target or device.target, library)
        requires = Requirements.of(library, target or device.target)
        how = {"scale": 1 / 255, "mean": [0.5] * 3, "std": [0.25] * 3, "in_network": False}
        latency = {"predicted": None, "measured": None}
        labels = tuple("abcde")
        facts = device.describe().as_json()
        tolerances = dict.fromkeys(outputs, 1e-5)
        inputs = {name: each.numpy() for name, each in samples.items()}
        bundle = Bundle("tiny", facts, requires, inputs, outputs, tolerances, labels, how, latency)
        write_bundle(folder, library, bundle)
    return np.concatenate([output.reshape(len(batches), -1) for output in outputs.values()], axis=1)


def int8_network() -> nn.Module:
    """A first layer, a depthwise and a pointwise one, a mean of 25 numbers, which never ends halfway, and scores."""
    torch.manual_seed(3)
    layers = nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU6(), nn.Conv2d(8, 12, 1)
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)).eval()


def make_int8_bundle(
    folder: Path, *, pixels: bool = False, target: DeviceTarget | None = None, floats: tuple[str, ...] = ()
) -> np.ndarray:
    """Write a bundle of `int8_network`, which may take pixels and have layers in float32; returns PyTorch's outputs."""
    form = in_int8(int8_network(), (None,), images()["image"].split(1), floats)
    if pixels:
        form = taking_pixels(form, Inputs.of((3, 12, 12)), Preprocessing(1 / 255, (0.5,) * 3, (0.25, 0.3, 0.35)))
    samples = form.taken((images()["image"],))
    device = this_device()
    with torch.no_grad():
        outputs = np.stack([form.call(sample).numpy() for sample in in_batches(samples)])
    with tempfile.TemporaryDirectory() as scratch:
        library = Path(scratch) / "tiny.so"
        sample = next(in_batches(samples))
        compile_network(
            form.compiled, sample, target or device.target, library, form.names, form.quantisation, takes_bytes=pixels
        )
        bundle = Bundle(
            "tiny",
            device.describe().as_json(),
            Requirements.of(library, target or device.target),
            {"image": form.passed(samples)[0]},
            {"logits": outputs},
            {"logits": 1e-5},
            (),
            {"scale": 1 / 255, "mean": [0.5], "std": [0.25], "in_network": pixels},
            {"predicted": None, "measured": None},
            None,
            form.precision,
            {"image": form.input_scales()[0]},
        )
        write_bundle(folder, library, bundle)
    return outputs.reshape(3, -1)


@functools.cache
def telltale_library() -> bytes:
    """A library that writes the file ``$LOADED_MARKER`` when it is loaded."""
    with tempfile.TemporaryDirectory() as scratch:
        source, library = Path(scratch) / "telltale.cc", Path(scratch) / "telltale.so"
        source.write_text(TELLTALE)
        subprocess.run(["g++", "-shared", "-fPIC", "-o", library, source], check=True)
        return library.read_bytes()


def replace_file(bundle: Path, name: str, content: bytes) -> None:
    """Change a file together with its checksum: a change that only what is in the file can give away."""
    (bundle / name).write_bytes(content)
    edit_manifest(bundle, lambda manifest: manifest["sha256"].update({name: hashlib.sha256(content).hexdigest()}))


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
