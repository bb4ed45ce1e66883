"""How `benchmarks/versus_engines.py` compares engines, with no engine: ratios, summaries, processes that take turns."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import ModuleType

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

    samples = versus._in_turn({name: Recorded(name) for name in "abc"}, 3)
    assert "".join(order) == "abcbcacab"
    assert samples == {"a": [1, 6, 8], "b": [2, 4, 9], "c": [3, 5, 7]}


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
