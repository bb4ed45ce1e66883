"""Latency of whole networks on a device: compiled, loaded side by side and timed in turn."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from aap_hw.compile.lowering import compile_network
from aap_hw.device.connection import Device
from aap_hw.device.timing import Timing, time_in_turn


def measure_networks(
    networks: Mapping[str, nn.Module], input_shape: tuple[int, ...], device: Device
) -> dict[str, Timing]:
    """Compile each network for one image of (C, H, W) and time them in turn on the device."""
    image = torch.zeros(1, *input_shape)
    with tempfile.TemporaryDirectory(prefix="aap-hw-measure-") as folder:
        libraries = {}
        for name, module in networks.items():
            path = Path(folder) / f"{name}.so"
            compile_network(module, image, device.target, path)
            libraries[name] = device.load(path)
        return time_in_turn(libraries, "main", [image.numpy()], device.profile.measure)
