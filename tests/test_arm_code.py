"""How `benchmarks/arm_code.py` judges machine code, with no emulator: kinds of instructions, loops, ratios."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return imported("_arm_blocks", monkeypatch)


def imported(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = __import__(name)
    assert Path(str(module.__file__)).parent == BENCHMARKS
    return module


KINDS = {
    "fmla\tv0.4s, v1.4s, v2.s[3]": "multiply_adds",
    "fmls\tv0.4s, v1.4s, v2.4s": "multiply_adds",
    "sdot\tv0.4s, v1.16b, v2.4b[1]": "multiply_adds",
    "smlal2\tv0.8h, v1.16b, v2.16b": "multiply_adds",
    "smull\tv0.8h, v1.8b, v2.8b": "products",
    "fmul\tv0.4s, v1.4s, v2.4s": "products",
    "ldr\tq0, [x1, #16]": "loads_and_stores",
    "ldp\tq0, q1, [x1]": "loads_and_stores",
    "ld1r\t{ v0.4s }, [x1]": "loads_and_stores",
    "st1\t{ v0.s }[2], [x1]": "loads_and_stores",
    "str\ts0, [x1], #4": "loads_and_stores",
    "ldr\tx0, [x1]": "rest",
    "stp\tx29, x30, [sp, #-16]!": "rest",
    "fmadd\ts0, s1, s2, s3": "rest",
    "madd\tx0, x1, x2, x3": "rest",
    "fadd\tv0.4s, v1.4s, v2.4s": "rest",
    "sadalp\tv0.4s, v1.8h": "rest",
    "": "rest",
}


def test_instructions_are_told_apart_by_name_and_operands(blocks: ModuleType) -> None:
    assert {text: blocks.kind_of(text) for text in KINDS} == KINDS


def test_branches_go_as_far_as_their_encoding_says(blocks: ModuleType) -> None:
    words = {0x54FFFFC1: -8, 0x35FFFFE0: -4, 0x3707FFA0: -12, 0x17FFFFFC: -16, 0x54000060: 12, 0xD503201F: None}
    assert {word: blocks.branch_offset(word) for word in words} == words


def program(blocks: ModuleType, *lines: tuple[int, int, str]) -> list[object]:
    return [blocks.Executed(0x1000 + 4 * i, *line) for i, line in enumerate(lines)]


NOP, FMLA = 0xD503201F, "fmla\tv0.4s, v1.4s, v2.s[3]"


def test_innermost_loops_are_found_and_ordered_by_what_they_execute(blocks: ModuleType) -> None:
    code = program(
        blocks,
        (NOP, 10, "ldr\tq1, [x0]"),
        (NOP, 90, FMLA),
        (0x54FFFFE1, 90, "b.ne\t0x0"),  # to the line before
        (NOP, 10, "nop"),
        (0x54FFFF81, 10, "b.ne\t0x0"),  # to the first line
        (NOP, 40, FMLA),
        (NOP, 40, FMLA),
        (NOP, 40, FMLA),
        (0x35FFFFA0, 40, "cbnz\tw0, 0x0"),  # to the first of these
    )
    found = [(loop.turns, loop.multiply_adds, loop.executed) for loop in blocks.loops(code)]
    assert found == [(90, 1, 180), (40, 3, 160)]


def test_a_dense_loop_is_told_by_its_sums(blocks: ModuleType) -> None:
    """A depthwise one sets its sums anew in each turn, and a polynomial its registers."""
    load, other = "ldp\tq1, q2, [x0]", "fmla\tv5.4s, v1.4s, v2.s[0]"
    added, product = "sadalp\tv0.4s, v7.8h", "smull\tv7.8h, v1.8b, v2.8b"
    cases = {
        (load, FMLA, other): True,
        (load, FMLA, other, "ldr\tq0, [x1]"): False,
        ("ldr\tq1, [x0]", FMLA, "mov\tv0.16b, v9.16b", other): False,
        (load, product, added, product, added.replace("v0", "v3")): True,
        (load, load, FMLA, other): False,
    }
    for texts, expected in cases.items():
        body = tuple(program(blocks, *((NOP, 1, text) for text in texts)))
        assert blocks.Loop(body, 1).is_dense == expected, texts


def test_blocks_that_ran_again_are_added_up(
    blocks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {0x4E22CC20: "fmla\tv0.4s, v1.4s, v2.4s", NOP: "nop", 0x3DC00020: "ldr\tq0, [x1]"}
    monkeypatch.setattr(blocks, "decoded", lambda words: {word: texts[word] for word in words})
    path = tmp_path / "blocks"
    path.write_text("1000 5 4e22cc20d503201f3dc00020\n1004 2 d503201f3dc00020\n1000 1 4e22cc20d503201f3dc00020\n")
    executed = blocks.executed(path)
    assert [(each.address, each.count) for each in executed] == [(0x1000, 6), (0x1004, 8), (0x1008, 8)]
    assert blocks.counted(executed) == {"multiply_adds": 6, "products": 0, "loads_and_stores": 8, "rest": 8}


def test_a_ratio_is_to_the_peer_with_the_fewest_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    arm_code = imported("arm_code", monkeypatch)
    row = {"ours_instructions": 60, "onnxruntime_instructions": 100, "litert_instructions": 80}
    assert arm_code.compared(row, ["onnxruntime", "litert"]) == {"best": "litert", "ratio": 0.75}
    assert arm_code.compared({"ours_instructions": 60, "litert_problem": "none"}, ["litert"]) == {}


def test_figures_of_a_precision_on_a_cpu_leave_out_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    arm_code = imported("arm_code", monkeypatch)
    loop = {"kind": "loop", "engine": "ours", "is_dense": True, "executed": 1}
    rows = []
    for cpu, ratio, share in (("a72", 0.5, 0.7), ("a72", 2.0, 0.6), ("a76", 4.0, 0.8)):
        where = {"precision": "int8", "cpu": cpu}
        rows += [{"kind": "network", **where, "ratio": ratio, "ours_fma_share": share, "ours_correlation": 1.0}]
        rows += [{**loop, **where, "share_of_peak": share}]
    summary = arm_code.summary_of(rows)
    named = ("instructions_ratio", "worst_ratio", "fma_share", "mca_share_of_peak")
    assert [summary[f"{name}_int8_a72"] for name in named] == pytest.approx([1.0, 2.0, 0.6, 0.6])
    assert [summary[f"{name}_int8_a76"] for name in named] == pytest.approx([4.0, 4.0, 0.8, 0.8])
    assert summary["instructions_ratio"] == pytest.approx(4 ** (1 / 3))


def test_an_inference_that_takes_too_long_is_a_problem_of_its_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm_code = imported("arm_code", monkeypatch)

    def run(*_: object) -> None:
        raise subprocess.TimeoutExpired("run", 1500, stderr=b"half a line")

    monkeypatch.setattr(arm_code, "_run", run)
    found = arm_code._counts(SimpleNamespace(folder=tmp_path), "fp32", "cortex-a72", "litert", tmp_path / "counter")
    assert found == {"counts": {"problem": "no answer in 1500 s"}, "loops": []}
    assert not list(tmp_path.rglob("counts.json"))  # so that it is tried again


def test_counts_that_are_kept_are_of_one_size_of_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arm_code = imported("arm_code", monkeypatch)
    monkeypatch.setattr(arm_code, "_missing", lambda: "")
    monkeypatch.setattr(arm_code, "_counter", lambda folder: folder)
    monkeypatch.setattr(sys, "argv", ["arm_code.py", "--models", "resnet18", "--size", "96", "--folder", str(tmp_path)])
    for name in ("OMP_NUM_THREADS", "TVM_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    (tmp_path / "resnet18").mkdir()
    np.save(tmp_path / "resnet18" / "image.npy", np.zeros((1, 3, 64, 64), np.float32))
    with pytest.raises(SystemExit) as ended:
        arm_code.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith("has counts of images of 64 pixels; take another --folder\n")


def test_without_a_board_the_command_that_gets_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arm_code = imported("arm_code", monkeypatch)
    monkeypatch.setattr(arm_code, "BOARD", tmp_path)
    monkeypatch.setattr(sys, "argv", ["arm_code.py", "--json", "-"])
    for name in ("OMP_NUM_THREADS", "TVM_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(SystemExit) as ended:
        arm_code.main()
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert said.err.endswith("get what is needed with: scripts/emulated_board.sh peers\n")
