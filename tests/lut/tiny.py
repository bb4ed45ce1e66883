"""A network of two convolutions whose whole table takes seconds, and the job of profiling it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aap_hw.compile.front.network import Network
from aap_hw.device import load_profile
from aap_hw.device.connection import LocalDevice
from aap_hw.inputs import Inputs
from aap_hw.lut.library_cache import users_cache
from aap_hw.lut.profiling import profile_model
from aap_hw.lut.progress import Progress
from aap_hw.lut.subject import Workload
from aap_hw.lut.table import LatencyTable

INPUT = Inputs.of((3, 6, 6))
# Candidate widths are multiples of 8: of the first convolution 8 to 24, of the second 8 to 40.
FIRST, SECOND, CLASSES = 24, 40, 10
FIRST_WIDTHS, SECOND_WIDTHS = (8, 16, 24), (8, 16, 24, 32, 40)
# Their points: first convolution, second, pooling, linear layer.
POINTS = 3 + 3 * 5 + 5 + 5


class Tiny(nn.Module):
    def __init__(self, kernel: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, FIRST, 3, padding=1)
        self.second = nn.Conv2d(FIRST, SECOND, kernel, padding=kernel // 2)
        self.linear = nn.Linear(SECOND, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]


class Joined(nn.Module):
    """Convolutions side by side, and what reads all of them: a block of a DenseNet."""

    def __init__(self, parts: int, width: int = 24) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Conv2d(3, width, 1) for _ in range(parts))
        self.norm = nn.BatchNorm2d(parts * width)
        self.squeeze = nn.Conv2d(parts * width, width, 1)
        self.last = nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([part(x) for part in self.parts], 1)
        return self.last(self.squeeze(torch.relu(self.norm(joined))))  # type: ignore[no-any-return]


def device(repeats: int = 3) -> LocalDevice:
    """This machine, measured quickly."""
    profile = load_profile("x86")
    widths = profile.widths.model_copy(update={"granularity": 8, "at_most": 8})
    measure = profile.measure.model_copy(update={"warmup": 1, "repeats": repeats, "copies": 2})
    return LocalDevice(profile.model_copy(update={"widths": widths, "measure": measure}))


def profile(
    path: Path,
    module: nn.Module | None = None,
    name: str = "tiny",
    *,
    repeats: int = 3,
    networks: int = 0,
    on_network: Callable[[Network], None] = lambda _: None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    cached: bool = True,
) -> LatencyTable:
    """Profile a network; points that an earlier test has compiled are not compiled again if it may be ``cached``."""
    return profile_model(
        Workload(name, module or Tiny(), INPUT),
        device(repeats),
        path,
        on_network=on_network,
        on_progress=on_progress,
        workers=1,
        tolerance=0.0,
        networks=networks,
        cache=users_cache() if cached else None,
    )


def journal_of(path: Path) -> Path:
    return path.with_name(path.name + ".journal")


def journalled(path: Path) -> list[dict[str, Any]]:
    """The points in the journal of a table, each as it was quickest, without a line that is being written."""
    if not journal_of(path).exists():
        return []
    whole = [line for line in journal_of(path).read_text().splitlines(keepends=True) if line.endswith("\n")]
    visits = sorted(map(json.loads, whole[1:]), key=lambda v: v["point"][2] / v["reference_us"], reverse=True)
    return list({(visit["kernel"], *visit["point"][:2]): visit for visit in visits}.values())
