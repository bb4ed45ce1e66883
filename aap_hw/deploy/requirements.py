"""What a machine must be to run a compiled network: read off the library and its target, checked by the runners."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from aap_hw.compile.keys.features import cpu_features_of
from aap_hw.compile.keys.target import DeviceTarget, GpuTarget
from aap_hw.deploy.runners.run import machine_of


@dataclass(frozen=True)
class Requirements:
    """What a bundle needs.

    Attributes
    ----------
    machine : processor of the library, such as ``aarch64``.
    cpu_features : instruction set extensions that it may use, as Linux names them.
    accelerator : ``cpu``, or ``cuda`` if a GPU runs the kernels.
    threads : worker threads that it was compiled for.
    tvm, tvm_ffi : versions of the packages apache-tvm and apache-tvm-ffi that compiled it.
    """

    machine: str
    cpu_features: tuple[str, ...]
    accelerator: str
    threads: int
    tvm: str
    tvm_ffi: str

    @classmethod
    def of(cls, library: Path, target: DeviceTarget) -> Requirements:
        """What a library that was compiled for ``target`` needs."""
        accelerator = "cuda" if isinstance(target, GpuTarget) else "cpu"
        features = tuple(cpu_features_of(target.host))
        tvm, ffi = version("apache-tvm"), version("apache-tvm-ffi")
        return cls(machine_of(library), features, accelerator, target.threads, tvm, ffi)
