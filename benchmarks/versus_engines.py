"""Our compiled networks against the engines that a user would pick, each at its best setting of a precision.

Networks are torchvision's, timm's after ``timm:``, or of `benchmarks/zoo.py`. Each engine runs in a process of its own
on the same cores, and is stopped while it is not its turn. ``ratio`` is the median over turns of our time over that of
``best``, the engine with the shortest median; ``ratio_of_cpu_time`` is the same of the processor's time, which other
work on the machine disturbs less. In int8 and half our own fp32 takes its turns too. An engine whose package is missing
is skipped, with the reason: ``pip install 'aap-hw[zoo]'``. Run it with nothing else on the machine.

    python benchmarks/versus_engines.py --precision int8 --models mobilenet_v2,resnet18 --threads 1,2 --json -
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _settings import Case
    from _turns import Engine, Sample

MODELS = (
    "mobilenet_v2,resnet18,resnet50,mobilenet_v3_large,efficientnet_b0,timm:mobilenetv4_conv_small,regnet_y_400mf,"
    "shufflenet_v2_x1_0"
)
PRECISIONS = ("fp32", "half", "int8")
PEERS = ("onnxruntime", "openvino")
TURNS = 20
LIMIT_S = 1800


def main() -> None:
    options = _options()
    threads = [int(count) for count in options.threads.split(",")]
    # Before torch, TVM and others start their thread pools.
    os.environ["OMP_NUM_THREADS"] = os.environ["TVM_NUM_THREADS"] = str(max(threads))
    os.environ |= {"NNCF_CI": "1", "NO_TELEMETRY": "1"}  # nncf would report that it was used
    from _report import print_report, say
    from _settings import OURS, OWN_FP32, Case, setting_of

    rows, missing = [], {}
    wanted = [OURS, *([OWN_FP32] if options.precision != "fp32" else []), *filter(None, options.engines.split(","))]
    for engine in wanted:
        if why := setting_of(engine, options.precision).missing:
            say(f"{engine}: skipped, as {why}")
            missing[engine] = why
    engines = [engine for engine in wanted if engine not in missing]
    for name in options.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            rows += _rows(Case(name, options.size, Path(folder)), engines, threads, options)
    print_report(rows, summary_of(rows, missing), options.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of all engines")
    parser.add_argument("--models", default=MODELS, help="names of networks, separated by commas")
    parser.add_argument("--engines", default=",".join(PEERS), help=f"of {', '.join(PEERS)}, separated by commas")
    parser.add_argument("--threads", default="1", help="numbers of threads, separated by commas")
    parser.add_argument("--turns", type=int, default=TURNS, help="how often each engine takes its turn")
    parser.add_argument("--size", type=int, default=224, help="height and width of the image")
    parser.add_argument("--json", help="write JSON to this file, or to standard output for -")
    parser.add_argument("--quick", action="store_true", help="a small network and few turns: does it run?")
    options = parser.parse_args()
    if unknown := {*filter(None, options.engines.split(","))} - {*PEERS}:
        parser.error(f"there is no engine {min(unknown)}; there are {', '.join(PEERS)}")
    if max(map(int, options.threads.split(","))) > (cores := len(os.sched_getaffinity(0))):
        parser.error(f"--threads {options.threads}: there are {cores} core(s) to run on")
    if options.quick:
        options.precision, options.models, options.engines, options.turns = "int8", "espcn", "onnxruntime", 2
    return options


def _rows(case: Case, engines: list[str], threads: list[int], options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one network, one for each number of threads."""
    from _report import say
    from _settings import setting_of
    from _turns import Failure, apart

    problems: dict[str, str] = {}

    def step(engine: str, work: partial[None]) -> None:
        try:
            apart(work, case.folder / f"{engine}.log", LIMIT_S)
        except Failure as failure:
            say(f"{case.name}: {engine}: {failure}")
            problems[engine] = str(failure)

    say(f"{case.name}: building")
    step("torch", partial(case.prepare))
    for engine in [] if problems else engines:
        step(engine, partial(setting_of(engine, options.precision).build, case, threads))
    able = [engine for engine in engines if not {engine, "torch"} & problems.keys()]
    return [
        {"model": case.name, "precision": options.precision, "threads": count}
        | _timed(case, able, count, problems, options)
        for count in threads
    ]


def _timed(
    case: Case, engines: list[str], threads: int, problems: Mapping[str, str], options: argparse.Namespace
) -> dict[str, Any]:
    """What is measured of one network with one number of threads."""
    from _report import say
    from _settings import setting_of
    from _turns import Engine, Failure

    cores = sorted(os.sched_getaffinity(0))[:threads]
    loaded: dict[str, Engine] = {}
    problems = dict(problems)
    try:
        for engine in engines:
            load = partial(setting_of(engine, options.precision).load, case, threads)
            try:
                loaded[engine] = Engine(load, case.correlation, cores, case.folder / f"{engine}.log", LIMIT_S)
            except Failure as failure:
                say(f"{case.name}: {engine}: {failure}")
                problems[engine] = str(failure)
        say(f"{case.name}, {threads} thread(s): timing")
        samples = _in_turn(loaded, options.turns, problems)
    finally:
        for each in loaded.values():
            each.close()
    row = compared(samples)
    if "ratio" in row:
        say(f"{case.name}, {threads} thread(s): {row['ratio']:.2f} of {row['best']}")
    row |= {f"{engine}_correlation": each.facts for engine, each in loaded.items()}
    return row | {f"{engine}_problem": why for engine, why in problems.items()}


def _in_turn(engines: Mapping[str, Engine], turns: int, problems: dict[str, str]) -> dict[str, list[Sample]]:
    """Samples of all engines, whose order goes round; one that fails in its turn is a problem, and the others go on."""
    from _turns import Failure

    samples: dict[str, list[Sample]] = {engine: [] for engine in engines}
    for turn in range(turns):
        names = list(samples)
        first = turn % max(len(names), 1)
        for engine in names[first:] + names[:first]:
            try:
                samples[engine].append(engines[engine].sample())
            except Failure as failure:
                problems[engine] = str(failure)
                del samples[engine]
    return samples


def compared(samples: Mapping[str, Sequence[Sample]]) -> dict[str, Any]:
    """Medians, and the ratios of ours to each of the others."""
    medians = {engine: statistics.median(each.ms for each in turns) for engine, turns in samples.items()}
    row: dict[str, Any] = {f"{engine}_ms": median for engine, median in medians.items()}
    if "ours" not in samples:
        return row
    ours = samples["ours"]

    def ratio(engine: str, kind: str) -> float:
        pairs = zip(ours, samples[engine], strict=True)
        return statistics.median(getattr(one, kind) / getattr(other, kind) for one, other in pairs)

    row |= {f"ratio_to_{engine}": ratio(engine, "ms") for engine in samples if engine != "ours"}
    peers = [engine for engine in samples if not engine.startswith("ours")]
    if peers:
        best = min(peers, key=medians.__getitem__)
        row |= {"best": best, "ratio": ratio(best, "ms"), "ratio_of_cpu_time": ratio(best, "cpu_ms")}
    return row


def summary_of(rows: Sequence[Mapping[str, Any]], missing: Mapping[str, str]) -> dict[str, Any]:
    """Means and the worst over all networks; over one's own fp32 as well, where that was timed."""
    summary: dict[str, Any] = {}
    for kind, name in (("ratio", "ratio"), ("ratio_to_ours_fp32", "ratio_to_own_fp32")):
        for threads in sorted({row["threads"] for row in rows}):
            found = [row[kind] for row in rows if row["threads"] == threads and kind in row]
            if found or kind == "ratio":
                summary[f"geomean_{name}_{threads}"] = statistics.geometric_mean(found) if found else None
        worst = max((row[kind] for row in rows if kind in row), default=None)
        if worst is not None or kind == "ratio":
            summary[f"worst_{name}"] = worst
    summary["compared"] = sum("ratio" in row for row in rows)
    correlations = [row["ours_correlation"] for row in rows if row.get("ours_correlation") is not None]
    summary["lowest_correlation"] = min(correlations, default=None)
    return summary | {f"{engine}_skipped": why for engine, why in missing.items()}


if __name__ == "__main__":
    main()
