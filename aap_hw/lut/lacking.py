"""What a table lacks of a network, and the command that measures it."""

from __future__ import annotations

import shlex
from collections.abc import Collection

from aap_hw.compile.front.network import Network
from aap_hw.compile.front.precision import layer_of
from aap_hw.compile.keys.precision import FP32
from aap_hw.errors import UserError, closest
from aap_hw.graph import ChannelGraph
from aap_hw.graph.groups.groups import names_heads
from aap_hw.lut.enumeration import group_candidates
from aap_hw.lut.table import LatencyTable, MissingKernelError, NetworkName


def profile_command(
    table: LatencyTable, name: NetworkName, *, heads: bool = False, floats: Collection[str] = ()
) -> str:
    """What to type to add a network's kernels to a table; the layers ``floats`` of one in int8 stay in float32."""
    words = ["--device", table.device["name"], "--model", name.model, "--input", name.inputs.text]
    words += ["--estimate"] if table.is_estimated else []
    words += [] if name.precision == FP32 else ["--precision", name.precision]
    words += [word for layer in sorted(floats) for word in ("--float-layer", layer)]
    words += ["--attention-cuts", "heads"] if heads else []
    return f"aap-hw profile {shlex.join(words)}"


def require_kernels(
    network: Network, name: NetworkName, table: LatencyTable, *, heads: bool = False, floats: Collection[str] = ()
) -> None:
    """Tell a table of another network, input size or precision from one that merely lacks a width.

    Raises
    ------
    MissingKernelError : the table lacks a kernel at all widths; the sentence says what the table is of, and the command
        that measures it.
    """
    needed = list(dict.fromkeys(kernel.key for kernel in network.kernels))
    missing = [key for key in needed if key not in table.points]
    if missing:
        first = next(kernel.source or f"'{kernel.key}'" for kernel in network.kernels if kernel.key == missing[0])
        device, advice = table.device["name"], "measure another one" if table.is_outdated else "extend it"
        raise MissingKernelError(
            f"the latency table of {device} {_state(name, table, heads, floats)}: "
            f"it lacks {len(missing)} of {len(needed)} kernels, the first is {first}; {advice} with "
            f"'{profile_command(table, name, heads=heads, floats=floats)}' (and --out unless it is in lut/)"
        )


def of_one_width(network: Network, graph: ChannelGraph, table: LatencyTable, name: NetworkName) -> dict[str, str]:
    """Groups that could be cut, but of which the network's table knows one width only, each with the reason to keep it.

    Such a table was measured with an earlier version of aap-hw, which could not cut them.
    """
    if name not in table.networks:
        return {}
    how, found = table.measurement, dict[str, str]()
    for group, widths in group_candidates(graph, how["granularity"], how["at_most"]).items():
        if len(widths) > 1 and not all(
            table.covers(kernel.at({**network.dense, group: widths[0]}))
            for kernel in network.kernels
            if group in kernel.groups
        ):
            found[group] = f"has one width in the table; '{profile_command(table, name)}' measures others"
    return found


def _state(name: NetworkName, table: LatencyTable, heads: bool, floats: Collection[str]) -> str:
    """What a table that lacks kernels of a network is of."""
    if table.is_outdated:
        return "was measured with another version of aap-hw"
    made = "was estimated" if table.is_estimated else "was measured"
    if name in table.networks:
        mine = [each for each in table.validation if each.network == name]
        if mine and heads not in {any(map(names_heads, entry.widths)) for entry in mine}:
            return f"was measured for {'the widths of heads' if heads else 'whole heads'} of {name.model}"
        if floats:
            return f"{made} for other layers of {name.model} in float32 than {', '.join(sorted(floats))}"
        return f"{made} before {name.model} or aap-hw changed"
    known = ", ".join(each.text for each in table.networks)
    return f"is not of {name.text}" + (f" but of {known}" if known else "")


def require_layers(network: Network, floats: Collection[str]) -> None:
    """Raise UserError if a name is of no layer that a network has in int8."""
    quantised = [kernel for kernel in network.kernels if kernel.weight and kernel.key.types.read == "uint8"]
    layers = list(dict.fromkeys(map(layer_of, quantised)))
    for name in floats:
        if name not in layers:
            instead = f"{closest(name, layers)} (there are {', '.join(layers)})" if layers else "; nothing is"
            raise UserError(f"--float-layer: '{name}' is no layer that is in int8{instead}")
