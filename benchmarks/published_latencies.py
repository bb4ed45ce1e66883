"""Estimates of unpruned networks beside latencies that others published for the same boards.

What is published, with its sources, is aap_hw/estimate/published.json: other engines, and none of it goes into a table.
An estimate is for the threads that a row names, or else for those of the device's profile. Beside it is what it would
be if no thread had any use of what another one fetched, the other end of what is possible.

    python benchmarks/published_latencies.py --json -
    python benchmarks/published_latencies.py --write    # keep the estimates, which commands tell of; docs/estimated.md
"""

from __future__ import annotations

import argparse
import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _report import print_report, say

if TYPE_CHECKING:
    from aap_hw.compile.front.network import Network
    from aap_hw.compile.keys.precision import NetworkPrecision
    from aap_hw.compile.keys.target import CpuTarget
    from aap_hw.estimate.estimator import Estimator

PAGE = Path(__file__).parents[1] / "docs" / "estimated.md"
BEGIN, END = "<!-- begin: benchmarks/published_latencies.py -->", "<!-- end -->"
BOARDS = {"rpi4": "Raspberry Pi 4", "rpi5": "Raspberry Pi 5"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="write JSON to this file, or to standard output for -")
    parser.add_argument("--write", action="store_true", help="keep the estimates, and write the page's table")
    parser.add_argument("--quick", action="store_true", help="one network: does it run?")
    options = parser.parse_args()
    if options.quick and options.write:
        parser.error("--quick makes too few rows to --write")
    from aap_hw.estimate.published import FILE

    told = json.loads(FILE.read_text("utf-8"))
    found = told["rows"]
    if options.quick:
        found = [row for row in found if (row["device"], row["model"], row["threads"]) == ("rpi4", "resnet18", 4)]
    rows = list(beside(found))
    if options.write:
        told |= {"methods": {device: estimator_of(device, None).method for device in BOARDS}, "rows": rows}
        FILE.write_text(_lines(told), "utf-8")
        write_table(PAGE, rows, told["sources"], told["read"])
    print_report(rows, summary_of(rows), options.json)


def beside(found: Iterable[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    """Each published latency with the estimate of the same network."""
    for row in found:
        asked = row["device"], row["model"], row["precision"], row["threads"]
        kept, apart = estimated_ms(*asked)
        say(f"{asked}: {kept} to {apart}")
        yield {**row, "estimated_ms": kept, "apart_ms": apart}


@functools.cache
def estimated_ms(device: str, model: str, precision: NetworkPrecision, threads: int | None) -> tuple[float, float]:
    """Estimated milliseconds of an unpruned network, and those if threads share nothing."""
    estimator = estimator_of(device, threads)
    network = network_of(model, precision, estimator.target)
    ends = []
    for machine in (estimator.machine, replace(estimator.machine, is_apart=True)):
        one = replace(estimator, machine=machine)
        alone_us = math.fsum(one.latency_us(kernel.at(network.dense)) for kernel in network.kernels)
        ends.append(float(f"{alone_us * estimator.network_factor / 1e3:.4g}"))
    return ends[0], ends[1]


def estimator_of(device: str, threads: int | None) -> Estimator:
    """The estimator of a device with so many threads, or with those of its profile."""
    from aap_hw.device import load_profile
    from aap_hw.estimate import estimator

    profile = load_profile(device)
    return estimator.estimator_of(profile if threads is None else profile.model_copy(update={"threads": threads}))


def network_of(model: str, precision: NetworkPrecision, target: CpuTarget) -> Network:
    """The kernels of an unpruned network."""
    from aap_hw.compile.front.partition import partition
    from aap_hw.compile.keys.target import half_of
    from aap_hw.graph import ChannelGraph
    from aap_hw.models.origin import Origin

    origin = Origin.of(model)
    graph = ChannelGraph.trace(origin.build(), origin.inputs.zeros())
    return partition(graph, precision, half=half_of(precision, target))


def summary_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Estimates over published latencies: geometric means over all rows, and over the quickest engine of each case."""
    from aap_hw.estimate.published import ratios

    quickest = ratios(rows)
    return {
        "compared": len(rows),
        "estimated_over_published": _mean(row["estimated_ms"] / row["ms"] for row in rows),
        "estimated_over_quickest": _mean(quickest),
        "least_over_quickest": min(quickest),
        "most_over_quickest": max(quickest),
    }


def write_table(
    page: Path, rows: Sequence[Mapping[str, Any]], sources: Mapping[str, Mapping[str, str]], read: str
) -> None:
    """Replace what is between the marks of a page by a table and its sources, which were ``read`` that day."""
    text = page.read_text("utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    numbers = {name: number for number, name in enumerate(sources, start=1)}
    lines = ["| board | network | | threads | GHz | published, ms | estimated, ms |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        threads, ghz = row["threads"] or "not named", row["ghz"] or "not named"
        ends = dict.fromkeys(f"{row[name]:.3g}" for name in ("estimated_ms", "apart_ms"))
        name = row["model"].removeprefix("torchvision:")
        lines.append(
            f"| {BOARDS[row['device']]} | {name} | {row['precision']} | {threads} | {ghz} | {row['ms']:.3g} "
            f"({sources[row['source']]['engine']} [{numbers[row['source']]}]) | {' to '.join(ends)} |"
        )
    listed = [
        f"{numbers[name]}. {source['engine']}, <{source['url']}> (date: {source['date']}; read {read}): "
        f"{source['note']}."
        for name, source in sources.items()
    ]
    told = summary_of(rows)
    sentence = (
        f"Estimated over published, by the quickest engine of each network and number of threads: "
        f"{told['estimated_over_quickest']:.2f} (geometric mean; {told['least_over_quickest']:.2f} to "
        f"{told['most_over_quickest']:.2f})."
    )
    page.write_text(
        "\n".join([f"{before}{BEGIN}", "", *lines, "", sentence, "", *listed, "", f"{END}{after}"]), "utf-8"
    )


def _lines(told: Mapping[str, Any]) -> str:
    """The file as JSON with a line for each row."""
    text = json.dumps({**told, "rows": []}, indent=1, ensure_ascii=False)
    rows = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in told["rows"])
    return text.replace('"rows": []', f'"rows": [\n  {rows}\n ]') + "\n"


def _mean(ratios: Iterable[float]) -> float:
    logs = [math.log(ratio) for ratio in ratios]
    return math.exp(math.fsum(logs) / len(logs))


if __name__ == "__main__":
    main()
