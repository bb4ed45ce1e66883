"""Runs and profiles that are killed at random moments and taken up again, compared with undisturbed ones.

Runs prune ResNet-20 on a few of the embedded images, in turn to a budget and as far as an accuracy allows; one in three
is killed a second time while it resumes. Latencies are predicted, as two timings never agree: the final weights,
channels and figures then have to be those of the run that nobody killed, bit by bit. A profile cannot be compared with
another one; here, what was measured before the kill has to be in the table. What ended before its moment had come is
not counted, and another moment is drawn.

Example: python benchmarks/kills.py --kills 20 --profile-kills 10 --json -
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _report import benchmark_device, print_report, say
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))  # processes are killed here as in the tests

from aap_hw.device.connection import LocalDevice
from aap_hw.inputs import Inputs
from aap_hw.lut.file import load_table
from aap_hw.lut.library_cache import LibraryCache
from aap_hw.lut.profiling import profile_model
from aap_hw.lut.subject import Workload
from aap_hw.lut.table import LatencyTable
from aap_hw.models.origin import Origin
from aap_hw.prune.job import Job, Limit, resume, start
from aap_hw.prune.samples import EMBEDDED
from aap_hw.prune.task import PruneSettings
from aap_hw.train import data
from aap_hw.train.settings import TrainSettings
from tests.prune.killed import in_child, result

ORIGIN = Origin("resnet20", "embedded", Inputs.of((3, 32, 32)))
SETTINGS = PruneSettings(
    rounds=3, calibration_images=64, training=TrainSettings(epochs=3, batch_size=64, learning_rate=0.02)
)
JOBS = {
    "budget": Job(ORIGIN, EMBEDDED, {"latency": Limit(0.6, True)}, settings=SETTINGS),
    "accuracy": Job(ORIGIN, EMBEDDED, max_accuracy_drop=20.0, settings=replace(SETTINGS, rounds=4)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="of prune")
    parser.add_argument("--profile-kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--lut", type=Path, default=Path("lut/x86.json"))
    parser.add_argument("--json", help="write JSON to this file, or to standard output for -")
    parser.add_argument("--quick", action="store_true", help="a kill of each, of short ones: does it run?")
    options = parser.parse_args()
    jobs, at_most = JOBS, 8
    if options.quick:
        options.kills, options.profile_kills = 1, 1
        quick = replace(SETTINGS, rounds=1, training=replace(SETTINGS.training, epochs=1))
        jobs, at_most = {"budget": replace(JOBS["budget"], settings=quick)}, 2
    torch.set_num_threads(1)
    moments = random.Random(options.seed)
    rows = [*prune_kills(jobs, options.kills, moments, options.lut)]
    rows += profile_kills(options.profile_kills, moments, partial(profile_small, at_most))
    summary = {
        "seed": options.seed,
        "prune_kills": sum(row["kills"] for row in rows if row["command"] == "prune"),
        "profile_kills": sum(row["kills"] for row in rows if row["command"] == "profile"),
        "failed": sum(not row["as_undisturbed"] for row in rows),
    }
    print_report(rows, summary, options.json)
    sys.exit(1 if summary["failed"] else 0)


def prune_kills(jobs: Mapping[str, Job], kills: int, moments: random.Random, lut: Path) -> list[dict[str, Any]]:
    everything = data.load_embedded()
    train, test = everything.spread("train", 256), everything.spread("test", 100)
    few = replace(
        everything,
        train_images=everything.train_images[train],
        train_labels=everything.train_labels[train],
        test_images=everything.test_images[test],
        test_labels=everything.test_labels[test],
    )
    data.load_embedded = lambda: few
    measured = load_table(lut)
    # A table that nobody measured: then nothing is measured in the run either.
    device = {**measured.device, "provenance": "emulated"}
    table = LatencyTable(device, measured.measurement, measured.points, measured.validation)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="aap-hw-kills-") as scratch:
        expected, seconds = {}, {}
        for name, job in jobs.items():
            code, seconds[name] = in_child(partial(start, allowed(job), table, Path(scratch) / name))
            assert code == 0
            expected[name] = result(Path(scratch) / name)
            say(f"undisturbed, to a {name}: {seconds[name]:.1f} s of CPU")
        drawn = 0
        while len(rows) < kills:
            name, drawn = list(jobs)[len(rows) % len(jobs)], drawn + 1
            folder = Path(scratch) / f"{name}-{drawn}"
            begin, go_on = partial(start, allowed(jobs[name]), table, folder), partial(resume, folder)
            moment = moments.uniform(0, seconds[name])
            code, took = in_child(begin, moment)
            if code == 0:
                seconds[name] = took
                continue
            assert code == -signal.SIGKILL, code
            found, is_begun, deaths = stage(folder), (folder / "config.json").exists(), [code]
            if is_begun and len(rows) % 3 == 2:
                deaths.append(in_child(go_on, moments.uniform(0, seconds[name] / 2))[0])
                assert deaths[-1] in (0, -signal.SIGKILL), deaths
            left = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            if not (folder / "run.json").exists():
                assert in_child(go_on if is_begun else begin)[0] == 0
            rows.append(
                {
                    "command": "prune",
                    "to": name,
                    "killed_after_cpu_s": round(moment, 2),
                    "kills": deaths.count(-signal.SIGKILL),
                    "found": found,
                    "left_bytes": left,
                    "as_undisturbed": result(folder) == expected[name] and not list(folder.glob("checkpoints")),
                }
            )
            say(f"{len(rows)} of {kills}: {rows[-1]}")
    return rows


def allowed(job: Job) -> Job:
    return replace(job, allow_emulated=True)


def stage(folder: Path) -> str:
    """How far a killed run had come, by its log."""
    if (folder / "run.json").exists():
        return "saved"
    if not (folder / "events.jsonl").exists():
        return "nothing"
    lines = (folder / "events.jsonl").read_text().splitlines()
    return json.loads(lines[-1])["event"] if lines else "nothing"


class Small(nn.Module):
    """Two convolutions and a linear layer, and four networks that calibrate them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 64, 3, padding=1)
        self.second = nn.Conv2d(64, 64, 1)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores (N, 10) of images (N, 3, H, W)."""
        return self.linear(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))


def profile_small(at_most: int, path: Path) -> None:
    """Profile the network above at so many widths of each group; 88 points are those of 8."""
    profile = benchmark_device("x86", quick=False).profile
    widths = profile.widths.model_copy(update={"granularity": 8, "at_most": at_most})
    measure = profile.measure.model_copy(update={"copies": 2})
    device = LocalDevice(profile.model_copy(update={"widths": widths, "measure": measure}))
    # Below any error: every point is measured, none is interpolated.
    often = {"workers": 1, "tolerance": -1.0, "networks": 3, "cache": LibraryCache(path.parent / "kernels")}
    profile_model(Workload("small", Small(), Inputs.of((3, 6, 6))), device, path, **often)


def profile_kills(kills: int, moments: random.Random, profile: Callable[[Path], None]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="aap-hw-kills-") as scratch:
        # The first fills the cache of compiled kernels, so that the others are killed while they measure.
        for name in ("first", "whole"):
            code, seconds = in_child(partial(profile, Path(scratch) / f"{name}.json"))
            assert code == 0
        points = measured_in(Path(scratch) / "whole.json")
        say(f"an undisturbed profile: {seconds:.1f} s of CPU, {len(points)} points")
        drawn = 0
        while len(rows) < kills:
            drawn += 1
            path, moment = Path(scratch) / f"{drawn}.json", moments.uniform(0, seconds)
            code, took = in_child(partial(profile, path), moment)
            if code == 0:
                seconds = took
                continue
            assert code == -signal.SIGKILL, code
            before, is_written = measured_in(path), path.exists()
            assert in_child(partial(profile, path))[0] == 0
            after = measured_in(path)
            rows.append(
                {
                    "command": "profile",
                    "killed_after_cpu_s": round(moment, 2),
                    "kills": 1,
                    "found": "table" if is_written else "journal" if before else "nothing",
                    "points_before": len(before),
                    # A table's unit is settled at its end, so that points are compared by their ratios.
                    "as_undisturbed": after.keys() == points.keys() and _same_ratios(before, after),
                }
            )
            say(f"{len(rows)} of {kills}: {rows[-1]}")
    return rows


def measured_in(path: Path) -> dict[tuple[str, int, int], float]:
    """Latencies by kernel and widths, in the table or in the journal beside it."""
    found: dict[tuple[str, int, int], float] = {}
    journal = path.with_name(path.name + ".journal")
    if path.exists():
        for key, of_key in load_table(path).points.items():
            found |= {(str(key), *widths): point.latency_us for widths, point in of_key.items()}
    elif journal.exists():
        for line in journal.read_bytes().split(b"\n")[1:-1]:
            visit = json.loads(line)
            address, us = (visit["kernel"], *visit["point"][:2]), visit["point"][2] / visit["reference_us"]
            found[address] = min(us, found.get(address, us))
    return found


def _same_ratios(before: dict[tuple[str, int, int], float], after: dict[tuple[str, int, int], float]) -> bool:
    ratios = [after[address] / us for address, us in before.items() if address in after]
    return len(ratios) == len(before) and (not ratios or max(ratios) / min(ratios) < 1.002)


if __name__ == "__main__":
    main()
