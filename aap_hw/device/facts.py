"""What a machine's own files say of it: which CPU it has, whether it is emulated, which TVM runs there, free memory.

Texts in, facts out; who reads the files, here or through RPC, is no matter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

# An emulated board holds this file; ``scripts/emulated_board.sh`` puts it there.
EMULATION_MARK = "/etc/aap-hw/emulated"
# What QEMU calls the machine that it emulates as a whole.
_EMULATED_MODELS = ("linux,dummy-virt", "qemu", "virt,")
ARM_PARTS = {
    0xD03: "cortex-a53",
    0xD04: "cortex-a35",
    0xD05: "cortex-a55",
    0xD07: "cortex-a57",
    0xD08: "cortex-a72",
    0xD09: "cortex-a73",
    0xD0A: "cortex-a75",
    0xD0B: "cortex-a76",
    0xD0C: "neoverse-n1",
    0xD0D: "cortex-a77",
    0xD40: "neoverse-v1",
    0xD41: "cortex-a78",
    0xD42: "cortex-a78ae",
    0xD49: "neoverse-n2",
}

ReadFile = Callable[[str], bytes | None]


@dataclass(frozen=True)
class Facts:
    """What a board says of itself; None is what it does not show.

    Attributes
    ----------
    cpu : its name for its CPU or board model, or LLVM's name of an Arm CPU, such as ``cortex-a72``.
    emulated : whether instructions are translated by another CPU, so that no time measured there is a latency.
    tvm : version of the TVM package that the server runs.
    """

    cpu: str
    emulated: bool
    tvm: str | None
    free_memory_mb: int | None


def facts_of(read: ReadFile, architecture: str) -> Facts:
    """Ask a board that runs code of an ``architecture`` such as ``aarch64``."""
    cpuinfo = _text(read("/proc/cpuinfo"))
    model = _text(read("/proc/device-tree/model")).strip("\x00\n ")
    # QEMU's user emulation shows the files of the machine it runs on, whose CPU then is of another architecture.
    foreign = architecture == "aarch64" and "vendor_id" in cpuinfo
    virtual = model.lower().startswith(_EMULATED_MODELS)
    emulated = read(EMULATION_MARK) is not None or foreign or virtual
    name = cpu_name(cpuinfo) or model or arm_part(cpuinfo) or architecture
    return Facts(
        f"{architecture}, emulated on {name}" if emulated else name,
        emulated,
        tvm_version(read),
        free_memory_mb(_text(read("/proc/meminfo"))),
    )


def cpu_name(cpuinfo: str) -> str | None:
    """The name in ``/proc/cpuinfo`` of a CPU, or of the board that it is part of."""
    lines = cpuinfo.splitlines()
    named = [_value(line) for line in lines if line.startswith(("model name", "Model"))]
    family = [_value(line) for line in lines if line.startswith(("cpu family", "model\t"))][:2]
    if not named:
        return None
    # A revision of the printed circuit board is the same board.
    name = re.sub(r" Rev [\d.]+$", "", named[0])
    return f"{name} (family {family[0]}, model {family[1]})" if len(family) == 2 else name


def arm_part(cpuinfo: str) -> str | None:
    """LLVM's name of the Arm CPU in ``/proc/cpuinfo``; of several kinds of cores, of the quickest."""
    parts = [int(_value(line), 16) for line in cpuinfo.splitlines() if re.match(r"CPU part\s*: 0x[0-9a-f]+$", line)]
    return ARM_PARTS.get(max(parts, default=0))


def free_memory_mb(meminfo: str) -> int | None:
    """Memory that programs can have, in MiB, by ``/proc/meminfo``."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE)
    return int(found[1]) >> 10 if found else None


def tvm_version(read: ReadFile) -> str | None:
    """Version of the TVM package that a server process runs, found through the libraries that it has loaded."""
    for folder in _folders_of(_text(read("/proc/self/maps")).splitlines(), "libtvm_runtime.so"):
        source = _text(read(f"{folder.rpartition('/')[0]}/_version.py"))
        if found := re.search(r"^__version__ = version = ['\"]([^'\"]+)['\"]", source, re.MULTILINE):
            return found[1]
    return None


def _folders_of(maps: Iterable[str], library: str) -> list[str]:
    paths = [line[line.index("/") :] for line in maps if line.endswith(f"/{library}")]
    return list(dict.fromkeys(path.rpartition("/")[0] for path in paths))


def _value(line: str) -> str:
    return line.partition(":")[2].strip()


def _text(content: bytes | None) -> str:
    return (content or b"").decode("utf-8", "replace")
