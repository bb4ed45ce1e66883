"""A bundle is refused by a CPU that lacks an instruction of its kernels, which would end the process."""

from __future__ import annotations

import ast
from pathlib import Path

from tvm.target import codegen

import aap_hw.compile
from aap_hw.compile.keys.features import CPU_FEATURES
from aap_hw.compile.keys.target import device_target
from aap_hw.deploy.requirements import Requirements

# Every CPU that code is compiled for has these.
ALWAYS = {"sse2", "neon", "x86_64", "aarch64", "arm64"}


def test_every_extension_that_kernels_ask_for_is_required_where_it_may_be_used() -> None:
    """Wherever LLVM's name of one is written in the compiler, something may ask for it."""
    machines = [("sapphirerapids", "x86_64"), ("neoverse-v2", "aarch64")]
    targets = [
        device_target({"kind": "llvm", "mcpu": cpu, "mtriple": f"{kind}-linux-gnu"}, 1) for cpu, kind in machines
    ]
    names = {str(name) for target in targets for name in codegen.llvm_get_cpu_features(target.host.tvm)}
    trees = [ast.parse(path.read_text()) for path in Path(aap_hw.compile.__path__[0]).rglob("*.py")]
    written = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    asked = names & {name for text in written if isinstance(text, str) for name in text.split("+")}
    assert {"avx512vnni", "avxvnni", "dotprod", "i8mm", "avx512bf16"} <= asked
    assert asked - ALWAYS <= {name for known in CPU_FEATURES.values() for name in known}


def test_a_library_for_dot_products_of_bytes_needs_them(tmp_path: Path) -> None:
    (tmp_path / "n.so").write_bytes(b"\x7fELF" + bytes(14) + (62).to_bytes(2, "little"))
    for cpu, needs in (("cascadelake", True), ("skylake-avx512", False)):
        target = device_target({"kind": "llvm", "mcpu": cpu, "mtriple": "x86_64-linux-gnu"}, 1)
        assert ("avx512_vnni" in Requirements.of(tmp_path / "n.so", target).cpu_features) is needs
