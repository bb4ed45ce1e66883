"""The network that a device is profiled for: traced, its cuts checked, and split into kernels."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from aap_hw.compile.front.mixed import MixedNetwork, mixed_network
from aap_hw.compile.front.network import Network
from aap_hw.compile.front.partition import partition
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.precision import MIXTURES, NetworkPrecision
from aap_hw.compile.keys.target import DeviceTarget, half_of, require_precision
from aap_hw.graph import ChannelGraph
from aap_hw.graph.check.self_check import CutMismatchError, check_cutting
from aap_hw.graph.program.inputs import Inputs
from aap_hw.graph.selection import require_free_group, require_whole_heads
from aap_hw.lut.enumeration import points_of
from aap_hw.lut.lacking import require_layers
from aap_hw.lut.networks import MeasuredNetwork
from aap_hw.lut.table import LatencyTable, NetworkName


@dataclass(frozen=True)
class Subject:
    """A network in its precision, and what else its kernels are wanted of.

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

    @classmethod
    def traced(
        cls,
        name: str,
        module: nn.Module,
        inputs: Inputs,
        target: DeviceTarget,
        device: str,
        *,
        heads: bool,
        precision: NetworkPrecision,
        floats: Collection[str] = (),
    ) -> Subject:
        """A network as kernels for the ``target`` of a ``device``, which is named; see ``profile_model``.

        Raises
        ------
        UserError : a part of it has no kernel, or its cuts could not be checked.
        """
        require_precision(precision, target, device)
        graph = ChannelGraph.trace(module, inputs.zeros(), inputs.names, heads=heads)
        require_whole_heads(graph, name)
        half = half_of(precision, target)
        split = partial(partition, graph, precision, half=half)
        mixed = mixed_network(graph, precision, half) if precision in MIXTURES else None
        network = split() if mixed is None else mixed.floating
        require_free_group(graph.frozen(network.fixed), name)
        with suppress(CutMismatchError):  # to leave such a group alone is asked of `plan` and `prune`
            check_cutting(graph.frozen(network.fixed), module, inputs.random(1, seed=0))
        if floats:
            require_layers(network, floats)
        with_floats = split(floats=floats) if floats else None
        return cls(NetworkName(name, inputs, precision), module, graph, network, with_floats, mixed)

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
