"""The bundle: a compiled network with everything that is needed to run it and to check that it runs right.

``model.so``, ``reference.safetensors`` (inputs and PyTorch's outputs) and ``manifest.json``, which is written last and
holds the checksums of the others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from aap_hw.device.connection import DeviceDescription
from aap_hw.errors import UserError
from aap_hw.files import sha256_of, write_atomic

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Bundle:
    """What goes into a bundle besides the compiled library.

    Attributes
    ----------
    inputs, outputs : reference vectors, (n, C, H, W) and (n, classes), float32.
    latency : measured and predicted milliseconds with their provenance.
    """

    model: str
    device: DeviceDescription
    inputs: np.ndarray
    outputs: np.ndarray
    labels: tuple[str, ...]
    preprocessing: Mapping[str, Any]
    latency: Mapping[str, Any]


def write_bundle(folder: Path, library: Path, bundle: Bundle) -> None:
    """Write a bundle; an older one in the same folder is replaced, never mixed with.

    Raises
    ------
    UserError : the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Without its manifest the folder is no bundle: that is the state that a crash may leave behind.
        (folder / "manifest.json").unlink(missing_ok=True)
    except OSError as problem:
        raise UserError(f"cannot write the bundle to {folder}: {problem.strerror}; choose another folder") from problem
    write_atomic(folder / "model.so", library.read_bytes())
    vectors = {"inputs": bundle.inputs, "outputs": bundle.outputs}
    write_atomic(folder / "reference.safetensors", safetensors.numpy.save(vectors))
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "model": bundle.model,
        "device": bundle.device.as_json(),
        "inputs": [{"name": "image", "shape": [1, *bundle.inputs.shape[1:]], "dtype": "float32", "layout": "NCHW"}],
        "outputs": [{"name": "logits", "shape": [1, *bundle.outputs.shape[1:]], "dtype": "float32"}],
        "labels": list(bundle.labels),
        "preprocessing": dict(bundle.preprocessing),
        "latency": dict(bundle.latency),
        "sha256": {name: sha256_of(folder / name) for name in ("model.so", "reference.safetensors")},
    }
    write_atomic(folder / "manifest.json", json.dumps(manifest, indent=1, sort_keys=True) + "\n")
