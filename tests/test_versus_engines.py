"""How `benchmarks/versus_engines.py` compares engines, with no engine: ratios, summaries, processes that take turns."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def versus(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return imported("versus_engines", monkeypatch)


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return imported("_turns", monkeypatch)


def imported(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = __import__(name)
    assert Path(str(module.__file__)).parent == BENCHMARKS
    return module


def test_a_ratio_is_the_median_over_turns_to_the_engine_with_the_shortest_median(
    versus: ModuleType, turns: ModuleType
) -> None:
    row = versus.compared(
        {
            "ours": [turns.Sample(2.0, 1.0), turns.Sample(9.0, 2.0), turns.Sample(2.2, 1.2)],
            "ours_fp32": [turns.Sample(4.0, 4.0)] * 3,
            "slow": [turns.Sample(1.0, 1.0), turns.Sample(5.0, 5.0), turns.Sample(5.0, 5.0)],
            "quick": [turns.Sample(2.0, 2.0), turns.Sample(3.0, 2.0), turns.Sample(2.0, 2.0)],
        }
    )
    assert row["best"] == "quick"
    assert row["quick_ms"] == 2.0
    assert row["ratio"] == row["ratio_to_quick"] == 1.1  # of 1, 3 and 1.1
    assert row["ratio_of_cpu_time"] == 0.6  # of 0.5, 1 and 0.6
    assert row["ratio_to_slow"] == 1.8
    assert row["ratio_to_ours_fp32"] == 0.55
    assert "ratio_to_ours" not in row


def test_without_an_engine_beside_ours_there_is_no_ratio(versus: ModuleType, turns: ModuleType) -> None:
    alone = versus.compared({"ours": [turns.Sample(2.0, 1.0)], "ours_fp32": [turns.Sample(4.0, 4.0)]})
    assert alone == {"ours_ms": 2.0, "ours_fp32_ms": 4.0, "ratio_to_ours_fp32": 0.5}
    assert versus.compared({"openvino": [turns.Sample(2.0, 1.0)]}) == {"openvino_ms": 2.0}
    assert versus.compared({}) == {}
    summary = versus.summary_of([{"threads": 1, **alone}], {"openvino": "nncf not installed"})
    assert summary["geomean_ratio_1"] is summary["worst_ratio"] is None
    assert summary["openvino_skipped"] == "nncf not installed"
    assert (summary["compared"], summary["geomean_ratio_to_own_fp32_1"]) == (0, 0.5)


def test_the_summary_has_a_mean_for_each_number_of_threads(versus: ModuleType) -> None:
    rows = [
        {"threads": 1, "ratio": 0.5, "ours_correlation": 0.99},
        {"threads": 1, "ratio": 2.0, "ours_correlation": 0.98},
        {"threads": 2, "ratio": 3.0},
        {"threads": 2, "ours_problem": "refused"},
    ]
    assert versus.summary_of(rows, {}) == {
        "geomean_ratio_1": pytest.approx(1.0),
        "geomean_ratio_2": pytest.approx(3.0),
        "worst_ratio": 3.0,
        "compared": 3,
        "lowest_correlation": 0.98,
    }


def test_engines_whose_order_goes_round_are_each_timed_once_a_turn(versus: ModuleType) -> None:
    order: list[str] = []

    class Recorded:
        def __init__(self, name: str) -> None:
            self.name = name

        def sample(self) -> int:
            order.append(self.name)
            return len(order)

    samples = versus._in_turn({name: Recorded(name) for name in "abc"}, 3, {})
    assert "".join(order) == "abcbcacab"
    assert samples == {"a": [1, 6, 8], "b": [2, 4, 9], "c": [3, 5, 7]}


def test_an_engine_that_ends_in_its_turn_is_a_problem_and_the_others_go_on(
    versus: ModuleType, turns: ModuleType, tmp_path: Path
) -> None:
    class Steady:
        def sample(self) -> str:
            return "sample"

    def load() -> object:
        left = [None] * 4  # for the check, two calls before the first turn, and one of that

        return lambda: left.pop() if left else os._exit(7)

    engine = turns.Engine(load, lambda made: made, os.sched_getaffinity(0), tmp_path / "log", 30)
    problems: dict[str, str] = {}
    try:
        samples = versus._in_turn({"a": Steady(), "brief": engine, "c": Steady()}, 3, problems)
        assert samples == {"a": ["sample"] * 3, "c": ["sample"] * 3}
        assert problems == {"brief": "ended with code 7: it printed nothing"}
        with pytest.raises(turns.Failure, match=r"^ended with code 7"):
            engine.sample()
    finally:
        engine.close()


def test_a_correlation_is_the_worst_of_outputs_that_have_one(
    turns: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = imported("_settings", monkeypatch).Case("any", 224, tmp_path)
    line, single = np.array([[1.0, 2.0, 4.0]]), np.array([[0.5]])
    np.savez(tmp_path / "expected.npz", line, line, single)
    assert case.correlation([line, -line, single]) == pytest.approx(-1)
    assert case.correlation([2 * line, np.ones((1, 3)), single]) == 0
    with pytest.raises(turns.Failure, match="not all of its outputs are numbers"):
        case.correlation([line, line * np.nan, single])
    np.savez(tmp_path / "expected.npz", single)
    assert case.correlation([single + 1]) is None


def test_an_engine_that_waits_is_stopped_and_one_that_ends_says_how(turns: ModuleType, tmp_path: Path) -> None:
    log = tmp_path / "log"
    cores = os.sched_getaffinity(0)

    def state(pid: int) -> str:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]

    def load() -> object:
        os.write(1, b"loaded\n")
        return lambda: (time.sleep(0.01), os.getpid())[1]

    engine = turns.Engine(load, lambda pid: pid, cores, log, 30)
    try:
        assert engine.facts not in (0, os.getpid())
        for _ in range(2):
            sample = engine.sample()
            assert sample.ms >= 10 > sample.cpu_ms  # it slept
            assert wait_for(lambda: state(engine.facts) == "T")
    finally:
        engine.close()
    assert not Path(f"/proc/{engine.facts}").exists()
    assert log.read_text() == "loaded\n"

    assert turns.apart(lambda: 7, log, 30) == 7
    with pytest.raises(turns.Failure, match=r"^ZeroDivisionError: integer division or modulo by zero$"):
        turns.apart(lambda: 1 // 0, log, 30)
    with pytest.raises(turns.Failure, match=r"^ended with code 3: the reason$"):
        turns.apart(lambda: (os.write(2, b"the reason\n"), os._exit(3)), log, 30)
    with pytest.raises(turns.Failure, match=r"^no answer in 0 s$"):
        turns.apart(lambda: time.sleep(30), log, 0.1)


def wait_for(holds: object) -> bool:
    assert callable(holds)
    until = time.monotonic() + 10
    while not (held := holds()) and time.monotonic() < until:
        time.sleep(0.01)
    return bool(held)
