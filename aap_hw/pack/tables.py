"""The results of a check as the latency table that they are."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.device.description import EMULATED, MEASURED
from aap_hw.errors import UserError
from aap_hw.files import read_text
from aap_hw.inputs import Inputs
from aap_hw.lut.calibrating import Observation, fitted_slowdown
from aap_hw.lut.gathering import gather
from aap_hw.lut.journal import Entry
from aap_hw.lut.opening import record_conditions
from aap_hw.lut.table import LatencyPoint, LatencyTable, NetworkName, Validation
from aap_hw.pack.folder import checked_results, conditions_in
from aap_hw.pack.run import Refused, read_document


def entries_of(results: Mapping[str, Any]) -> list[Entry]:
    """Every visit of a point."""
    libraries = results["pack"]["libraries"]
    entries = []
    for number, index, us, spread_us, samples, reference_us in results["visits"]:
        point = libraries[number]["points"][index]
        timed = LatencyPoint(tuple(point["widths"]), us, spread_us, samples)
        entries.append(Entry(KernelKey.parse(point["kernel"]), timed, reference_us))
    return entries


def ratios_of(results: Mapping[str, Any]) -> dict[str, float]:
    """Latencies of networks in units of the reference kernel's."""
    return {name: us / reference_us for name, (us, _, reference_us) in results["networks"].items()}


def is_results(path: Path) -> bool:
    """Whether a file looks like results of a pack, and not like a table."""
    try:
        document = json.loads(read_text(path, "results"))
    except (ValueError, RecursionError, UserError):
        return False
    return isinstance(document, dict) and {"pack", "visits"} <= document.keys()


def read_check(path: Path) -> LatencyTable:
    """The table of a check's results.

    Networks are predicted by the sum of their kernels, and calibrated by themselves alone.

    Raises
    ------
    UserError : the results are damaged, not finished, of a profile, or something was computed wrong.
    """
    try:
        results = checked_results(read_document(path.parent, path.name, "is it there?"), path)
    except Refused as refusal:
        raise UserError(str(refusal)) from refusal
    pack = results["pack"]
    if pack["purpose"] != "check":
        raise UserError(
            f"{path} is of a profile; read it with 'aap-hw profile --unpack {shlex.quote(str(path.parent))}'"
        )
    wrong = [check["name"] for check in results["checks"] if not check["right"]]
    if wrong:
        raise UserError(
            f"{path} says that {len(wrong)} of {len(results['checks'])} outputs are wrong there, {wrong[0]} among "
            "them: what is computed wrong has no latency; report it with that file"
        )
    about, facts = pack["about"], results["facts"]
    device = {
        **about["device"],
        "cpu": results["gpu"] or facts["cpu"],
        "host": results["host"],
        "provenance": EMULATED if facts["emulated"] else MEASURED,
    }
    table = LatencyTable(device, dict(about["measurement"]))
    gather(table, entries_of(results))
    table.device["date"] = results["date"]
    if not facts["emulated"]:
        record_conditions(table, *conditions_in(results))
    unit_us = table.measurement["reference_us"]
    ratios = ratios_of(results)
    for network in pack["networks"]:
        name = NetworkName(network["model"], Inputs.of(network["input"]), network["precision"])
        addresses = [Address(KernelKey.parse(key), tuple(widths)) for key, widths in network["kernels"]]
        alone_us = sum(table.latency(address).us for address in addresses)
        measured_us = ratios[network["name"]] * unit_us
        if network["plan"] == "dense":
            table.slowdowns[name] = fitted_slowdown([Observation(alone_us, measured_us)])
        predicted_us = table.slowdowns[name].network_us(alone_us)
        widths = network["widths"]
        table.validation.append(
            Validation(name.model, name.inputs, network["plan"], widths, predicted_us, measured_us, name.precision)
        )
    return table
