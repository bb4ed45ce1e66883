"""The table that a profile writes: taken up if it is of the device at hand, begun anew, or moved out of the way."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from aap_hw.device.boards import Boards
from aap_hw.device.conditions import Conditions
from aap_hw.device.connection import Device
from aap_hw.device.description import ESTIMATED
from aap_hw.device.timing import STATISTIC
from aap_hw.errors import UserError
from aap_hw.files import sha256_of
from aap_hw.lut.file import OtherVersion, load_table
from aap_hw.lut.same_device import difference, require_table_of
from aap_hw.lut.table import LatencyTable


def set_aside(path: Path, device: Device | Boards, *, others: bool = True) -> Path | None:
    """Rename the table at ``path`` if it cannot take what is measured on a device; its new name, or None.

    An estimated table always gives way, and is kept as ``NAME.estimated.json``. With ``others`` so does a table of
    another device or version. This keeps the default path free for the device: a table that ships with the package may
    be of another CPU.

    Raises
    ------
    UserError : there is a file, but it is no table, or it cannot be renamed.
    """
    if not path.exists():
        return None
    estimated = False
    try:
        table = load_table(path)
        if difference(table, device) is None:
            return None
        estimated = table.is_estimated
    except OtherVersion:
        pass  # measured with care, for another version
    if not (estimated or others):
        return None
    return move_aside(path, estimated=estimated)


def move_aside(path: Path, *, estimated: bool = False) -> Path:
    """Rename a table to ``NAME.estimated.json`` or to a name with its checksum, which is returned.

    Raises
    ------
    UserError : it cannot be renamed.
    """
    kept = path.with_name(f"{path.stem}-{sha256_of(path)[:8]}.json")
    if estimated:
        plain = path.with_name(f"{path.stem}.{ESTIMATED}.json")
        kept = kept.with_suffix(f".{ESTIMATED}.json") if plain.exists() else plain
    try:
        path.rename(kept)
    except OSError as problem:
        raise UserError(f"cannot rename {path} to {kept}: {problem.strerror}; write elsewhere with --out") from problem
    return kept


def open_table(path: Path, device: Device | Boards, granularity: int) -> LatencyTable:
    """The table at ``path``, or an empty one if there is no file.

    Raises
    ------
    UserError : it is of another device, of other candidate widths, or damaged.
    """
    if path.exists():
        table = load_table(path)
        require_table_of(device, table, path)
        steps = {"granularity": granularity, "at_most": device.profile.widths.at_most}
        if any(table.measurement[name] != value for name, value in steps.items()):
            # Its other networks would then be planned over widths that were never measured.
            raise UserError(
                f"{path} was measured with other candidate widths than the device profile asks for now "
                f"({steps}); write to another file with --out, or delete it"
            )
        return table
    return new_table(device, granularity)


def new_table(device: Device | Boards, granularity: int) -> LatencyTable:
    """A table of a device without anything measured."""
    facts: dict[str, Any] = {
        **device.describe().as_json(),
        "host": platform.platform(),
        "date": "",
    }
    measurement: dict[str, Any] = {
        **device.profile.measure.model_dump(),
        "statistic": STATISTIC,
        "granularity": granularity,
        "at_most": device.profile.widths.at_most,
    }
    return LatencyTable(facts, measurement)


def record_conditions(table: LatencyTable, start: Conditions, end: Conditions) -> None:
    """Note clock and heat of the last run; what the operating system does not show is left out."""
    governors = list(dict.fromkeys(c.governor for c in (start, end) if c.governor is not None))
    if governors:
        table.measurement["governor"] = ", then ".join(governors)
    temperatures = [c.temperature_c for c in (start, end) if c.temperature_c is not None]
    if temperatures:
        table.measurement["temperature_c"] = [temperatures[0], temperatures[-1]]
