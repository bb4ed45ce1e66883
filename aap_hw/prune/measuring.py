"""Latency of whole networks on a device: compiled, loaded side by side and timed in turn.

A board is held no longer than that: while a network trains, others may use it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from aap_hw.compile.keys.precision import FP32, OTHERS, NetworkPrecision
from aap_hw.compile.library.lowering import compile_network
from aap_hw.device.boards import Boards
from aap_hw.device.connection import Device
from aap_hw.device.timing import Timing, time_in_turn
from aap_hw.files import scratch_folder
from aap_hw.inputs import Inputs


@dataclass(frozen=True)
class Compilable:
    """A network and what it is compiled to compute in.

    Attributes
    ----------
    floats : layers that are not in int8 in such a network.
    """

    module: nn.Module
    precision: NetworkPrecision = FP32
    floats: Collection[str] = ()


def measure_networks(networks: Mapping[str, Compilable], inputs: Inputs, device: Device | Boards) -> dict[str, Timing]:
    """Compile each network for one sample and time them in turn on the device, or on one of several boards.

    In int8, scales are arbitrary: they change nothing about how long a network takes.

    Raises
    ------
    BoardLost : no board is left.
    """
    boards = Boards.of(device)
    sample = inputs.zeros()
    timings: dict[str, Timing] = {}
    with scratch_folder("measure") as folder, closing(boards):
        files = {name: folder / f"{name}.so" for name in networks}
        for name, network in networks.items():
            if network.precision in OTHERS:
                from aap_hw.quantize.form import for_timing  # torchao takes a second to load

                program, scales = for_timing(network.module, inputs, network.floats)
                compile_network(program, sample, boards.target, files[name], (), scales, network.precision)
            else:
                compile_network(
                    network.module, sample, boards.target, files[name], inputs.names, None, network.precision
                )

        def measure(board: Device, files: Mapping[str, Path]) -> None:
            libraries = {name: board.load(file) for name, file in files.items()}
            timings.update(
                time_in_turn(libraries, "main", [each.float().numpy() for each in sample], board.profile.measure)
            )

        boards.share([files], measure)
    return timings
