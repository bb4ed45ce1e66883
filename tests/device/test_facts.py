"""Proves what is read off a board's own files, and above all that an emulated one is never taken for a board."""

from __future__ import annotations

import pytest

from aap_hw.device.facts import EMULATION_MARK, Facts, facts_of

X86 = "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\nmodel name\t: Some Xeon\n"
CORE = "processor\t: {0}\nBogoMIPS\t: 108.00\nCPU implementer\t: 0x41\nCPU part\t: 0x{1:x}\n\n"
PI_4 = "".join(CORE.format(core, 0xD08) for core in range(4)) + "Model\t\t: Raspberry Pi 4 Model B Rev 1.4\n"
BIG_LITTLE = "".join(CORE.format(core, part) for core, part in enumerate([0xD05, 0xD05, 0xD0B]))
PATHS = {
    "cpuinfo": "/proc/cpuinfo",
    "meminfo": "/proc/meminfo",
    "maps": "/proc/self/maps",
    "model": "/proc/device-tree/model",
    "mark": EMULATION_MARK,
}


def facts(architecture: str, **files: str) -> Facts:
    known = {PATHS.get(name, name): text for name, text in files.items()}
    return facts_of(lambda path: known[path].encode() if path in known else None, architecture)


@pytest.mark.parametrize(
    ("files", "emulated"),
    [
        ({"cpuinfo": PI_4, "model": "Raspberry Pi 4 Model B Rev 1.4\0"}, False),
        ({"cpuinfo": PI_4, "mark": "anything"}, True),
        ({"cpuinfo": X86}, True),
        ({"cpuinfo": CORE.format(0, 0xD08), "model": "linux,dummy-virt\0"}, True),
    ],
    ids=["a board", "marked", "the host's CPU shines through", "QEMU's virtual machine"],
)
def test_emulated_board_is_told_by_any_of_three_signs(files: dict[str, str], emulated: bool) -> None:
    assert facts("aarch64", **files).emulated == emulated


def test_x86_that_says_so_is_no_emulation() -> None:
    seen = facts("x86_64", cpuinfo=X86)
    assert (seen.cpu, seen.emulated) == ("Some Xeon (family 6, model 143)", False)


def test_board_is_named_without_its_revision_or_else_as_llvm_names_its_quickest_cpu() -> None:
    assert facts("aarch64", cpuinfo=PI_4).cpu == "Raspberry Pi 4 Model B"
    assert facts("aarch64", cpuinfo=BIG_LITTLE).cpu == "cortex-a76"
    assert facts("aarch64").cpu == "aarch64"


def test_version_of_tvm_is_that_of_the_library_which_the_server_has_loaded() -> None:
    library = "/home/pi/tvm/lib/python3.11/site-packages/tvm/lib/libtvm_runtime.so"
    maps = f"7f0-7f1 r-xp 00000000 b3:02 99 /usr/lib/libc.so.6\n7f2-7f3 r-xp 00000000 b3:02 98    {library}\n"
    version = "/home/pi/tvm/lib/python3.11/site-packages/tvm/_version.py"
    assert facts("aarch64", maps=maps, **{version: "__version__ = version = '0.26.1'\n"}).tvm == "0.26.1"
    assert facts("aarch64", maps=maps).tvm is None


def test_free_memory_is_what_programs_can_have() -> None:
    meminfo = "MemTotal: 3884396 kB\nMemFree: 99 kB\nMemAvailable:  2097152 kB\n"
    assert facts("aarch64", meminfo=meminfo).free_memory_mb == 2048
    assert facts("aarch64").free_memory_mb is None
