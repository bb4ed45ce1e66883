"""Latencies that are made up.

Arithmetic at a fixed rate in whole vectors of channels, memory traffic, a microsecond a call: they have the steps and
the size of real ones, so that what is not about latencies can be told without hours of profiling. They are no latencies
of any device.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from aap_hw.compile.families import multiply_accumulates, weight_elements
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.precision import BYTES

if TYPE_CHECKING:
    from aap_hw.compile.front.network import Network
    from aap_hw.lut.table import LatencyTable

GRANULARITY, AT_MOST = 8, 12  # of device_profiles/x86.toml
# What bytes take of float32's arithmetic: about what docs/DECISIONS.md says of kernels of bytes.
IN_BYTES, DEPTHWISE_IN_BYTES = 0.3, 0.9


def made_up_us(address: Address) -> float:
    """A latency of a kernel such as a CPU of 100 GFLOP/s and 20 GB/s might have."""
    key, (width_in, *_, width_out) = address.key, (*address.widths, address.widths[-1])
    vectors = GRANULARITY * math.ceil(width_out / GRANULARITY)
    arithmetic = multiply_accumulates(Address(key, (*address.widths[:-1], vectors))) / 50e3
    if key.types.read == "uint8":
        arithmetic *= DEPTHWISE_IN_BYTES if key.op == "depthwise_conv2d" else IN_BYTES
    pixels, types = math.prod(key.size or (1,)), key.types
    traffic = pixels * (width_in * BYTES[types.read] + width_out * BYTES[types.made])
    traffic += BYTES[types.weight] * weight_elements(address)
    noise = zlib.crc32(f"{key} {width_in} {width_out}".encode()) / 2**32
    return (1 + arithmetic + traffic / 20e3) * (1 + 0.03 * noise)


def made_up_table(
    network: Network, candidates: Mapping[str, Sequence[int]], granularity: int = GRANULARITY
) -> LatencyTable:
    """A table of a network's kernels at all widths that their groups may have, which are so many channels apart."""
    from aap_hw.compile.keys.key import SCHEDULES
    from aap_hw.lut.enumeration import points_of
    from aap_hw.lut.table import LatencyPoint, LatencyTable

    device = {"name": "made-up", "provenance": "emulated", "threads": 1, "schedules": SCHEDULES}
    table = LatencyTable(device, {"granularity": granularity, "at_most": AT_MOST})
    for address in points_of(network, candidates):
        table.add(address.key, LatencyPoint(address.widths, made_up_us(address), 0.0, 1))
    return table
