"""Whether a table is of the device that is at hand."""

from __future__ import annotations

from pathlib import Path

from aap_hw.device.boards import Boards
from aap_hw.device.connection import Device
from aap_hw.errors import UserError
from aap_hw.lut.table import LatencyTable


def difference(table: LatencyTable, device: Device | Boards) -> str | None:
    """The first fact in which a table's device and this one differ, in words."""
    for name, value in device.describe().as_json().items():
        if table.device.get(name) != value:
            return f"{name} {table.device.get(name)!r} there, {value!r} here"
    return None


def require_not_estimated(table: LatencyTable, path: Path) -> None:
    """Raise UserError if the table read from ``path`` is one that nothing measured may be added to."""
    if table.is_estimated:
        raise UserError(
            f"{path} is estimated, and nothing that is measured may be mixed into it; 'aap-hw profile' moves it aside "
            "and measures a table in its place"
        )


def require_table_of(device: Device | Boards, table: LatencyTable, path: Path) -> None:
    """Raise UserError if the table read from ``path`` is not of this device as it is now."""
    require_not_estimated(table, path)
    if (differing := difference(table, device)) is not None:
        raise UserError(
            f"{path} holds latencies of another device ({differing}); profile this one into another file (--out of "
            "'aap-hw profile'), or delete that table"
        )
