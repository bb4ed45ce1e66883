"""Estimates of unpruned networks beside latencies that others published for the same boards.

What is published, with its sources, is docs/results/published_latencies.json: other engines, and none of it goes into a
table. An estimate is for the threads that a row names, or else for those of the device's profile.

Example: python benchmarks/published_latencies.py --json docs/results/estimated_beside_published.json
         --page docs/estimated.md
"""

from __future__ import annotations

import argparse
import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _report import print_report, say

if TYPE_CHECKING:
    from aap_hw.compile.front.network import Network

PUBLISHED = Path(__file__).parents[1] / "docs" / "results" / "published_latencies.json"
BEGIN, END = "<!-- begin: benchmarks/published_latencies.py -->", "<!-- end -->"
BOARDS = {"rpi4": "Raspberry Pi 4", "rpi5": "Raspberry Pi 5"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="write JSON to this file, or to standard output for -")
    parser.add_argument("--page", help="also write the table into this page, between the marks that are in it")
    parser.add_argument("--rows", help="write the page from this earlier report instead of estimating")
    parser.add_argument("--quick", action="store_true", help="one network: does it run?")
    options = parser.parse_args()
    published = json.loads(PUBLISHED.read_text("utf-8"))
    found = published["rows"]
    if options.quick:
        found = [row for row in found if (row["device"], row["model"], row["threads"]) == ("rpi4", "resnet18", 4)]
    if options.rows:
        rows = json.loads(Path(options.rows).read_text("utf-8"))["rows"]
    else:
        rows = list(beside(found, published["sources"]))
    if options.page:
        write_table(Path(options.page), rows, published["sources"], published["read"])
    print_report(rows, summary_of(rows), options.json)


def beside(found: Iterable[Mapping[str, Any]], sources: Mapping[str, Mapping[str, str]]) -> Iterable[dict[str, Any]]:
    """Each published latency with the estimate of the same network; None where the method knows no such kernels."""
    known: dict[tuple[Any, ...], float | None] = {}
    for row in found:
        asked = row["device"], row["model"], row["precision"], row["threads"]
        if asked not in known:
            known[asked] = estimated_ms(*asked)
            say(f"{asked}: {known[asked]}")
        yield {**row, "engine": sources[row["source"]]["engine"], "estimated_ms": known[asked]}


def estimated_ms(device: str, model: str, precision: str, threads: int | None) -> float | None:
    """Estimated milliseconds of an unpruned network of float32; None of one in int8, which the method is not for.

    They are those of the table that ships, if it is of the network and of as many threads.
    """
    if precision != "fp32":
        return None
    from aap_hw.device import load_profile
    from aap_hw.estimate import estimator_of
    from aap_hw.lut.finding import find_table
    from aap_hw.lut.table import NetworkName
    from aap_hw.models.origin import Origin

    table, name = find_table(device), NetworkName(model, Origin.of(model).inputs)
    if threads in (None, table.device["threads"]) and name in table.slowdowns:
        return float(f"{table.slowdowns[name].measured_us / 1e3:.4g}")
    profile = load_profile(device)
    if threads is not None:
        profile = profile.model_copy(update={"threads": threads})
    network, estimator = network_of(model), estimator_of(profile)
    alone_us = math.fsum(estimator.latency_us(kernel.at(network.dense)) for kernel in network.kernels)
    return float(f"{alone_us * estimator.network_factor / 1e3:.4g}")


@functools.cache
def network_of(model: str) -> Network:
    """The kernels of an unpruned network."""
    from aap_hw.compile.front.partition import partition
    from aap_hw.graph import ChannelGraph
    from aap_hw.models.origin import Origin

    origin = Origin.of(model)
    return partition(ChannelGraph.trace(origin.build(), origin.inputs.zeros()))


def summary_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Estimates over published latencies: geometric means over all rows, and over the quickest engine of each case."""
    compared = [row for row in rows if row["estimated_ms"] is not None]
    quickest: dict[tuple[Any, ...], float] = {}
    for row in compared:
        case = row["device"], row["model"], row["threads"]
        ratio = row["estimated_ms"] / row["ms"]
        quickest[case] = max(ratio, quickest.get(case, ratio))
    return {
        "compared": len(compared),
        "estimated_over_published": _mean(row["estimated_ms"] / row["ms"] for row in compared),
        "estimated_over_quickest": _mean(quickest.values()),
        "least_over_quickest": min(quickest.values(), default=None),
        "most_over_quickest": max(quickest.values(), default=None),
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
        estimated = "" if row["estimated_ms"] is None else f"{row['estimated_ms']:.3g}"
        name = row["model"].removeprefix("torchvision:")
        lines.append(
            f"| {BOARDS[row['device']]} | {name} | {row['precision']} | {threads} | {ghz} | {row['ms']:.3g} "
            f"({row['engine']} [{numbers[row['source']]}]) | {estimated} |"
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


def _mean(ratios: Iterable[float]) -> float | None:
    logs = [math.log(ratio) for ratio in ratios]
    return math.exp(math.fsum(logs) / len(logs)) if logs else None


if __name__ == "__main__":
    main()
