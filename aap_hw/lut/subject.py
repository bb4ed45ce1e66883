"""What a device is profiled for (`Workload`), and the same as checked kernels (`Subject`)."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from aap_hw.compile.front.domains import mixed_network
from aap_hw.compile.front.mixed import MixedNetwork
from aap_hw.compile.front.network import Network
from aap_hw.compile.front.partition import partition
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.precision import FP32, MIXTURES, NetworkPrecision
from aap_hw.compile.keys.target import DeviceTarget, half_of, require_precision
from aap_hw.graph import ChannelGraph
from aap_hw.graph.check.self_check import CutMismatchError, check_cutting
from aap_hw.graph.selection import require_free_group, require_whole_heads
from aap_hw.inputs import Inputs
from aap_hw.lut.enumeration import points_of
from aap_hw.lut.lacking import require_layers
from aap_hw.lut.networks import MeasuredNetwork
from aap_hw.lut.table import LatencyTable, NetworkName


@dataclass(frozen=True)
class Workload:
    """A network to profile a device for, and what plans of it may choose.

    Attributes
    ----------
    name : what the table calls the network.
    heads : plans cut whole heads of attention, instead of the widths of all heads alike.
    precision : what the network computes in, one of several that a table may hold. With mixed precisions it is all
        mixtures.
    floats : layers of a network in int8 that plans may leave in float32.
    """

    name: str
    module: nn.Module
    inputs: Inputs
    heads: bool = False
    precision: NetworkPrecision = FP32
    floats: Collection[str] = ()

    def traced(self, target: DeviceTarget, device: str) -> Subject:
        """The network as kernels for the ``target`` of a ``device``, which is named.

        Raises
        ------
        UserError : a part of it has no kernel, or its cuts could not be checked.
        """
        require_precision(self.precision, target, device)
        graph = ChannelGraph.trace(self.module, self.inputs.zeros(), self.inputs.names, heads=self.heads)
        require_whole_heads(graph, self.name)
        half = half_of(self.precision, target)
        split = partial(partition, graph, self.precision, half=half)
        mixed = mixed_network(graph, self.precision, half) if self.precision in MIXTURES else None
        network = split() if mixed is None else mixed.floating
        require_free_group(graph.frozen(network.fixed), self.name)
        with suppress(CutMismatchError):  # to leave such a group alone is asked of `plan` and `prune`
            check_cutting(graph.frozen(network.fixed), self.module, self.inputs.random(1, seed=0))
        if self.floats:
            require_layers(network, self.floats)
        with_floats = split(floats=self.floats) if self.floats else None
        name = NetworkName(self.name, self.inputs, self.precision)
        return Subject(name, self.module, graph, network, with_floats, mixed)


@dataclass(frozen=True)
class Subject:
    """A workload as kernels.

    Attributes
    ----------
    network : the unpruned network; in floating point if plans are to mix precisions.
    with_floats : the same with some layers in float32, if their kernels are wanted too.
    mixed : the network in all mixtures of precisions, if plans are to mix them.
    """

    name: NetworkName
    module: nn.Module
    graph: ChannelGraph
    network: Network
    with_floats: Network | None
    mixed: MixedNetwork | None = None

    def job(self, table: LatencyTable, path: Path) -> MeasuredNetwork:
        """The network as it is measured as a whole, for a table at ``path``."""
        return MeasuredNetwork(self.name, self.module, self.graph, self.network, table, path, self.mixed)

    def points(self, job: MeasuredNetwork) -> list[Address]:
        """Every point that a plan of the network may ask for."""
        networks = [self.all_kernels, *([] if self.with_floats is None else [self.with_floats])]
        return list(dict.fromkeys(point for each in networks for point in points_of(each, job.candidates)))

    @property
    def all_kernels(self) -> Network:
        """The network, or all kernels of all mixtures side by side."""
        return self.network if self.mixed is None else self.mixed.everything
