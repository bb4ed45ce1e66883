"""A pack on the machine that compiles: written as a folder, and read again with the results that came back.

The form of both documents is ``pack.schema.json``. Nothing of what comes back is run, and all of it is checked.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import tvm

from aap_hw.compile.keys.features import cpu_features_of
from aap_hw.compile.keys.target import DeviceTarget, GpuTarget
from aap_hw.compile.library.build import cubin_beside
from aap_hw.compile.library.linking import triple_of
from aap_hw.device.conditions import Conditions
from aap_hw.device.profile import DeviceProfile
from aap_hw.errors import UserError
from aap_hw.files import make_folder, require_writable_folder, write_atomic
from aap_hw.lut.compiling import CompiledBatch
from aap_hw.pack.run import MACHINES, PACK, RESULTS, SCHEMA_VERSION, Refused, digest_of, read_document, read_pack

# What the program of a pack imports of this package, which goes with it.
BROUGHT_ALONG = (
    "activity.py",
    "device/conditions.py",
    "device/facts.py",
    "device/machine.py",
    "device/timing.py",
    "device/visiting.py",
    "pack/beside.py",
    "pack/run.py",
    "pack/timing.py",
)
PACKAGES = ("", "device/", "pack/")
# Whatever Python there is reads this.
PROGRAM = """#!/usr/bin/env python3
import sys


def refuse(why):
    sys.stderr.write("refused: %s\\n" % why)
    sys.exit(2)


if sys.version_info < (3, 10):
    refuse("TVM needs Python 3.10 or later, and this is Python %d.%d; run it with a later one" % sys.version_info[:2])
try:
    from aap_hw.pack.run import main
except (ImportError, SyntaxError) as problem:
    refuse("the folder is not whole (%s); copy it again" % problem)
sys.exit(main())
"""
VALUES = "values.npz"


@dataclass(frozen=True)
class Contents:
    """What goes into a pack.

    Attributes
    ----------
    purpose : ``profile``, or ``check``.
    about : what whoever reads the results must know: facts of the device, network, precision, candidate widths.
    reference : the library of the reference kernel alone.
    libraries : compiled points.
    networks : compiled networks: name, shapes of their inputs, and more; see the schema.
    network_files : their libraries, by their names.
    expected : what points must make, by the numbers of library and point; see the schema.
    values : arrays that are named in points and networks.
    beside : what is timed in PyTorch for comparison; see the schema.
    """

    purpose: str
    about: Mapping[str, Any]
    reference: CompiledBatch
    libraries: Sequence[CompiledBatch]
    networks: Sequence[Mapping[str, Any]]
    network_files: Mapping[str, Path]
    expected: Mapping[tuple[int, int], Mapping[str, Any]] = field(default_factory=dict)
    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    beside: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Packed:
    """A pack that was written.

    Attributes
    ----------
    points, networks : how many of each it measures.
    bytes : its size.
    """

    folder: Path
    points: int
    networks: int
    bytes: int


def require_new(folder: Path) -> None:
    """Raise UserError if there is something at ``folder`` already, or it cannot be made or replaced."""
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already; name a new folder, or delete it")
    if folder.is_dir() and (folder.is_symlink() or os.path.ismount(folder) or folder.samefile(Path.cwd())):
        raise UserError(
            f"{folder} is a link, a mount point or the current folder, which cannot be replaced; name a new folder, "
            f"such as {folder / 'pack'}"
        )
    require_writable_folder(folder.parent)


def write_pack(folder: Path, contents: Contents, profile: DeviceProfile, target: DeviceTarget) -> Packed:
    """Write a pack; the folder is there when it is whole, and not before.

    Raises
    ------
    UserError : the folder cannot be written.
    """
    partial = folder.parent / f".{folder.name}.partial"  # one that is there was given up by a process that was killed
    files: dict[str, bytes] = {}

    def add(name: str, library: Path) -> dict[str, str]:
        entry = {"file": f"{name}.so.gz"}
        files[entry["file"]] = _compressed(library.read_bytes())
        if isinstance(target, GpuTarget):
            entry["cubin"] = f"{name}.cubin.gz"
            files[entry["cubin"]] = _compressed(cubin_beside(library).read_bytes())
        return entry

    libraries = [
        {**add(f"points_{number}", batch.library), "points": _points(batch, contents.expected, number)}
        for number, batch in enumerate(contents.libraries)
    ]
    networks = [
        {**network, **add(f"network_{number}", contents.network_files[network["name"]])}
        for number, network in enumerate(contents.networks)
    ]
    reference = {**add("reference", contents.reference.library), "points": _points(contents.reference, {}, 0)}
    if contents.values:
        stream = io.BytesIO()
        np.savez_compressed(stream, allow_pickle=False, **contents.values)
        files[VALUES] = stream.getvalue()
    files.update(_program())
    shutil.rmtree(partial, ignore_errors=True)
    for name, content in files.items():
        make_folder((partial / name).parent)
        write_atomic(partial / name, content)
    architecture = triple_of(target.host).split("-")[0]
    pack: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "purpose": contents.purpose,
        "about": dict(contents.about),
        "requires": {
            "machine": MACHINES.get(architecture, architecture),
            "cpu_features": cpu_features_of(target.host),
            "accelerator": "cuda" if isinstance(target, GpuTarget) else "cpu",
            "arch": target.arch if isinstance(target, GpuTarget) else None,
            "threads": profile.threads,
            "tvm": tvm.__version__,
            "tvm_ffi": version("apache-tvm-ffi"),
        },
        "measure": {"warmup": profile.measure.warmup, "repeats": profile.measure.repeats},
        "reference": reference,
        "libraries": libraries,
        "networks": networks,
        "beside": [dict(each) for each in contents.beside],
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    pack["digest"] = digest_of(pack)
    _validate(pack, "pack", folder / PACK)
    write_atomic(partial / PACK, json.dumps(pack, indent=1, sort_keys=True) + "\n")
    try:
        partial.replace(folder)
    except OSError as problem:
        raise UserError(f"cannot write {folder}: {problem.strerror}; name another folder") from problem
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Packed(folder, sum(len(batch.points) for batch in contents.libraries), len(networks), size)


def read_results(folder: Path) -> dict[str, Any]:
    """The finished results of the pack in a folder, which hold its document under ``pack``.

    Raises
    ------
    UserError : there is no pack, it or its results are damaged, they are of another pack, or not finished.
    """
    try:
        pack = read_pack(folder)
        _validate(pack, "pack", folder / PACK)
        results = read_document(folder, RESULTS, f"run 'python3 run.py' in {folder} on the device, and carry it back")
    except Refused as refusal:
        raise UserError(str(refusal)) from refusal
    checked_results(results, folder / RESULTS)
    if results["pack"]["digest"] != pack["digest"]:
        raise UserError(
            f"{folder / RESULTS} holds the results of another pack than {folder / PACK}; carry its own back"
        )
    return results


def checked_results(results: dict[str, Any], path: Path) -> dict[str, Any]:
    """Results that were read from a file at ``path``, if they are whole.

    Raises
    ------
    UserError : they are not.
    """
    _validate(results, "results", path)
    pack = results["pack"]
    if pack["digest"] != digest_of(pack):
        raise UserError(f"{path} is damaged: its pack is not what was packed; carry it back again")
    timed = {(number, index) for number, index, *_ in results["visits"]}
    places = {(n, i) for n, library in enumerate(pack["libraries"]) for i, _ in enumerate(library["points"])}
    networks = {network["name"] for network in pack["networks"]}
    if not results["finished"]:
        raise UserError(
            f"{path} holds {len(timed)} of {len(places)} points and {len(results['networks'])} of {len(networks)} "
            "networks: its work is half done; run 'python3 run.py' there again, which goes on, and carry it back"
        )
    if timed != places or results["networks"].keys() != networks:
        raise UserError(f"{path} is damaged: it does not hold what its pack asks for; run 'python3 run.py' there again")
    return results


def conditions_in(results: Mapping[str, Any]) -> tuple[Conditions, Conditions]:
    """Clock and heat of the device when its work began and when it ended."""
    known = [Conditions(each["governor"], each["temperature_c"]) for each in results["conditions"]]
    return known[0], known[-1]


def _points(
    batch: CompiledBatch, expected: Mapping[tuple[int, int], Mapping[str, Any]], number: int
) -> list[dict[str, Any]]:
    return [
        {
            "kernel": str(point.key),
            "widths": list(point.widths),
            "copies": batch.copies[index],
            "shapes": [list(shape) for shape in batch.shapes[index]],
            "types": list(batch.types[index]),
            **({"expected": dict(expected[number, index])} if (number, index) in expected else {}),
        }
        for index, point in enumerate(batch.points)
    ]


def _program() -> dict[str, bytes]:
    """The program with all that it imports: the modules of this package, in packages of the same names."""
    package = resources.files("aap_hw")
    modules = {f"aap_hw/{name}": package.joinpath(name).read_bytes() for name in BROUGHT_ALONG}
    return {
        "run.py": PROGRAM.encode(),
        **{f"aap_hw/{name}__init__.py": b"" for name in PACKAGES},
        **modules,
    }


def _compressed(content: bytes) -> bytes:
    return gzip.compress(content, compresslevel=6, mtime=0)


def _validate(document: dict[str, Any], kind: str, path: Path) -> None:
    fault = jsonschema.exceptions.best_match(_validator(kind).iter_errors(document))
    if fault is not None:
        raise UserError(
            f"{path} is damaged at {fault.json_path}: {fault.message[:200]}; copy it again, or pack the folder anew"
        )


@functools.cache
def _validator(kind: str) -> jsonschema.Draft202012Validator:
    schema = json.loads(resources.files("aap_hw.pack").joinpath("pack.schema.json").read_text("utf-8"))
    return jsonschema.Draft202012Validator({**schema, "$ref": f"#/$defs/{kind}"})
