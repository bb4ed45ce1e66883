"""The bundle: a compiled network with everything that is needed to run it and to check that it runs right.

The library, PyTorch's outputs for some reference inputs, two programs that run it, and ``manifest.json``, which follows
``manifest.schema.json``, is written last and holds the checksums of the others. docs/bundle.md is for its readers.
A folder's other files are left alone, and so is a folder that has files of these names and is no bundle.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np

from aap_hw import __version__
from aap_hw.compile.keys.precision import FLOAT32, Scale
from aap_hw.compile.library.build import cubin_beside
from aap_hw.deploy.requirements import Requirements
from aap_hw.deploy.runners.run import SCHEMA_VERSION, rows_of
from aap_hw.errors import UserError
from aap_hw.files import make_folder, remove_temporaries, require_writable_folder, write_atomic
from aap_hw.models.weights import WeightsFile

RUNNERS = ("run.py", "run.cc")
# All files that a bundle may have. The manifest is the first to be removed and the last to be written.
NAMES = ("manifest.json", "model.so", "kernels.cubin", "reference_inputs.npy", "reference_outputs.npy", *RUNNERS)
# Tells a folder whose bundle was cut short, and may be replaced, from one that never was a bundle.
UNFINISHED = "unfinished-bundle"


@dataclass(frozen=True)
class Bundle:
    """What goes into a bundle besides the compiled library.

    Attributes
    ----------
    device : description of the device that the library was compiled for.
    inputs : reference samples, an array (n, ...) for each input under its name.
    outputs : what PyTorch makes of each, an array (n, ...) for each output under its name.
    tolerances : how far each of the library's outputs may be from these; of decisions, the share that may differ.
    decisions : the names of outputs that are decisions.
    estimate : what the network may take by an estimated table, and what that is worth; no latency.
    preprocessing : how pixels become an input: times ``scale``, minus ``mean``, over ``std``; None if it has none.
        ``in_network`` says that the network does it, and takes pixels as bytes.
    latency : predicted and measured milliseconds with their provenance; see the schema.
    trained : the checkpoint that the weights are of; None if they are the run's own.
    precision : of the network, ``fp32``, ``half``, ``int8`` or ``int8,half``.
    scales : by the names of inputs that the network stores as bytes: what these stand for.
    """

    model: str
    device: Mapping[str, Any]
    requires: Requirements
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    tolerances: Mapping[str, float]
    labels: tuple[str, ...]
    preprocessing: Mapping[str, Any] | None
    latency: Mapping[str, Any]
    trained: WeightsFile | None = None
    precision: str = "fp32"
    scales: Mapping[str, Scale | None] = field(default_factory=dict)
    decisions: Collection[str] = ()
    estimate: Mapping[str, Any] | None = None


def require_bundle_folder(folder: Path) -> None:
    """Check, without making anything, that a folder can be written to and that only an older bundle is replaced there.

    Raises
    ------
    UserError : it cannot be written to, or it is no bundle and has files with the names of a bundle's.
    """
    require_writable_folder(folder)
    taken = [name for name in NAMES if os.path.lexists(folder / name)]
    if taken and not (folder / UNFINISHED).exists() and not _is_bundle(folder):
        raise UserError(
            f"{folder} is no bundle and holds {', '.join(taken)}, which a bundle would replace; choose another folder "
            "with --out, or move these files away"
        )


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Have a folder, which is made if it is missing, to oneself while a bundle for it is on its way.

    Raises
    ------
    UserError : another process has it, or it cannot be made.
    """
    is_new = not folder.exists()
    make_folder(folder)
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            is_new = False
            raise UserError(
                f"another process is deploying to {folder}; wait for it, or choose another folder with --out"
            ) from problem
        except OSError:
            pass  # some network file systems lock no folders
        yield
    finally:
        os.close(lock)
        if is_new:
            with contextlib.suppress(OSError):  # mostly there is a bundle in it by now
                folder.rmdir()


def write_bundle(folder: Path, library: Path, bundle: Bundle) -> None:
    """Write a bundle; an older one in the same folder is replaced, never mixed with.

    For a GPU, its machine code is expected beside the library.

    Raises
    ------
    UserError : the folder cannot be written, or holds other files with the names of a bundle's.
    """
    require_bundle_folder(folder)
    runners = resources.files("aap_hw.deploy.runners")
    files = {
        "model.so": library.read_bytes(),
        "reference_inputs.npy": _npy(_together(bundle.inputs)),
        "reference_outputs.npy": _npy(rows_of(list(bundle.outputs.values()))),
        **({"kernels.cubin": cubin_beside(library).read_bytes()} if bundle.requires.accelerator == "cuda" else {}),
        **{name: runners.joinpath(name).read_bytes() for name in RUNNERS},
    }
    manifest = _manifest(bundle, {name: hashlib.sha256(content).hexdigest() for name, content in files.items()})
    make_folder(folder)
    if (folder / UNFINISHED).exists():
        remove_temporaries(folder)
    write_atomic(folder / UNFINISHED, "aap-hw has not finished writing this bundle; deploy to this folder again\n")
    try:
        # Without its manifest the folder is no bundle: that is the state that a crash may leave behind.
        for name in NAMES:
            if name not in files:
                (folder / name).unlink(missing_ok=True)
        for name, content in files.items():
            write_atomic(folder / name, content)
        write_atomic(folder / "manifest.json", json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        (folder / UNFINISHED).unlink()
    except OSError as problem:
        raise UserError(f"cannot write the bundle to {folder}: {problem.strerror}; choose another folder") from problem


def _is_bundle(folder: Path) -> bool:
    """Whether a folder has the manifest of a bundle, of this version or another."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and {"aap_hw", "schema_version"} <= manifest.keys()


def manifest_schema() -> dict[str, Any]:
    """The JSON Schema of a manifest."""
    schema: dict[str, Any] = json.loads(resources.files("aap_hw.deploy").joinpath("manifest.schema.json").read_text())
    return schema


def _manifest(bundle: Bundle, sha256: Mapping[str, str]) -> dict[str, Any]:
    requires = asdict(bundle.requires)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "aap_hw": __version__,
        "model": bundle.model,
        "precision": bundle.precision,
        "trained": bundle.trained and asdict(bundle.trained),
        "device": dict(bundle.device),
        "requires": {**requires, "cpu_features": list(bundle.requires.cpu_features)},
        "inputs": [
            {
                "name": name,
                "shape": [1, *samples.shape[1:]],
                "dtype": samples.dtype.name,
                "passed_as": "uint8" if (bundle.preprocessing or {}).get("in_network") else FLOAT32,
                "quantisation": asdict(scale) if (scale := bundle.scales.get(name)) is not None else None,
            }
            for name, samples in bundle.inputs.items()
        ],
        "outputs": [
            {
                "name": name,
                "shape": list(output.shape[1:]),
                "dtype": "float32",
                "decides": name in bundle.decisions,
                "tolerance": bundle.tolerances[name],
            }
            for name, output in bundle.outputs.items()
        ],
        "labels": list(bundle.labels),
        "preprocessing": bundle.preprocessing and dict(bundle.preprocessing),
        "reference": {
            "inputs": "reference_inputs.npy",
            "outputs": "reference_outputs.npy",
            "count": len(next(iter(bundle.inputs.values()))),
        },
        "latency": dict(bundle.latency),
        **({} if bundle.estimate is None else {"estimate": dict(bundle.estimate)}),
        "sha256": dict(sha256),
    }
    jsonschema.validate(manifest, manifest_schema())
    return manifest


def _together(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """One input as it is, (n, ...); of several a row for each sample, with all their values."""
    arrays = list(inputs.values())
    return arrays[0] if len(arrays) == 1 else rows_of([array.astype(np.float32) for array in arrays])


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array, dtype="<f4"), allow_pickle=False)
    return stream.getvalue()
