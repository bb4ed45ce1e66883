"""A network of four layers, few images and the settings of a short run: what runs in every precision are tried with."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from aap_hw.compile.front.domains import mixed_network
from aap_hw.compile.keys.precision import NetworkPrecision
from aap_hw.graph import ChannelGraph
from aap_hw.inputs import Inputs
from aap_hw.lut.table import LatencyTable
from aap_hw.models.origin import Origin
from aap_hw.prune.events import Event
from aap_hw.prune.job import EMBEDDED, Job, Limit
from aap_hw.prune.task import PruneSettings
from aap_hw.train.data import LabelledImages
from aap_hw.train.settings import Loss, TrainSettings
from tests.synthetic import few_images, table_of

NETWORK = """
import torch
from torch import nn
def make():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 24, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10),
    )
"""
INPUTS = Inputs.of((3, 16, 16))
SETTINGS = PruneSettings(
    rounds=2,
    calibration_images=32,
    precision="int8",
    qat=True,
    training=TrainSettings(epochs=2, batch_size=24, learning_rate=0.05, loss=Loss(distillation=0.5)),
)


def origin_in(folder: Path) -> Origin:
    """The network, as a file of a folder."""
    path = folder / "net.py"
    path.write_text(NETWORK)
    return Origin.of(f"{path}:make", INPUTS)


def int8_job(origin: Origin, **changes: Any) -> Job:
    """A run in int8, with some settings changed."""
    return Job(origin, EMBEDDED, {"latency": Limit(0.7, True)}, settings=replace(SETTINGS, **changes))


def mixed_job(origin: Origin) -> Job:
    """A run of mixed precisions; relative to the unpruned network's latency in float32."""
    training = TrainSettings(epochs=1, batch_size=24, loss=SETTINGS.training.loss)
    budgets = {"latency": Limit(0.7, True), "memory": Limit(0.6, True)}
    return Job(origin, EMBEDDED, budgets, settings=replace(SETTINGS, precision="mixed", training=training))


@cache
def images() -> LabelledImages:
    """64 training and 100 test images."""
    data = few_images()
    return replace(data, train_images=data.train_images[::4], train_labels=data.train_labels[::4])


def show_few(patch: pytest.MonkeyPatch) -> None:
    """Let these be the embedded images."""
    patch.setattr("aap_hw.train.data.load_embedded", images)


def mixed_table(graph: ChannelGraph, precision: NetworkPrecision, **device: object) -> LatencyTable:
    """A table by which a plan mixes: bytes are quick, but for layers whose images have one certain size."""
    table = table_of(graph, mixed_network(graph, precision).everything, **device)
    for key, points in table.points.items():
        is_slow = key.op == "conv2d" and key.size == (8, 8) and key.types.read == "uint8"
        factor = 3.0 if is_slow else 0.3 if key.types.read == "uint8" else 1.0
        table.points[key] = {at: replace(p, latency_us=p.latency_us * factor) for at, p in points.items()}
    return table


def die_at(name: str, nth: int) -> Callable[[Event], None]:
    """Kills the process at an event, when it is told the n-th time."""
    left = nth

    def on_event(event: Event) -> None:
        nonlocal left
        left -= event.name == name
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return on_event
