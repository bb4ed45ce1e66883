"""Whether the device of a latency table is there to be measured on."""

from __future__ import annotations

import shlex

from aap_hw import ranks
from aap_hw.device import load_profile
from aap_hw.device.boards import PATIENCE_S, Boards, Notify
from aap_hw.errors import UserError
from aap_hw.lut.table import LatencyTable

# What makes it another machine, the plainest first. How points were timed, and by which TVM, is no reason not to
# measure: what is measured corrects the table. An emulator that says that it is the same CPU is another machine, too.
FACTS = {
    "cpu": "the table was measured with the CPU {!r} and here it is {!r}",
    "threads": "the table was measured with the thread count {!r} and here it is {!r}",
    "target": "the table was measured with the target {!r} and here it is {!r}",
    "provenance": "the table is {} and the times of what is here are {}",
}


def device_of(
    table: LatencyTable,
    device: str | None = None,
    connect_to: str | None = None,
    notify: Notify = lambda _: None,
) -> tuple[Boards | None, str]:
    """The table's device, ready to measure on and held by nobody, or None and the reason why there is none.

    Of several processes only the first has it; the others know that it is there. With a table that was not measured
    nothing is measured either; a device that a person names must be the table's all the same. That of an estimated
    table is not looked for: there may be none.

    Parameters
    ----------
    device : its profile's name or path; None takes the profile that is called as the table's device.
    connect_to : where it is, if not where its profile says.

    Raises
    ------
    UserError : a person said which or where the device is, and it is another than the table's or not to be had there;
        or it is there, and nothing can be compiled for it.
    """
    reached: list[Boards] = []

    def reach() -> str:
        boards = _reach(table, device, connect_to, notify)
        if isinstance(boards, str):
            return boards
        reached.append(boards)
        return ""

    if why_not := ranks.found_by_first(reach):
        return None, why_not
    return reached[0] if reached else _Elsewhere(), ""


class _Elsewhere(Boards):
    """The boards of the first process, which alone may use them."""

    def __init__(self) -> None: ...


def _reach(table: LatencyTable, device: str | None, connect_to: str | None, notify: Notify) -> Boards | str:
    name, provenance = table.device["name"], table.device["provenance"]
    is_told = device is not None or connect_to is not None
    unmeasured = "" if provenance == "measured" else f"the table's latencies are {provenance}"
    if unmeasured and not is_told:
        return unmeasured
    try:
        profile = load_profile(device or name)
        if profile.name != name:
            raise UserError(
                f"the device profile {device} is of '{profile.name}' and the table of '{name}'; give the profile that "
                "the table was made with"
            )
        if table.is_estimated:
            if connect_to is not None:
                named = f"--device {shlex.quote(device or name)} --connect {shlex.quote(connect_to)}"
                raise UserError(
                    f"the table of {name} is estimated, and nothing is measured beside an estimate; make a measured "
                    f"one with 'aap-hw profile {named} --model NAME', or leave --connect out"
                )
            return unmeasured
        boards = Boards(profile.reached_by(connect_to), notify, PATIENCE_S)
    except UserError as problem:
        if is_told:
            raise
        return str(problem)
    boards.close()
    description = boards.describe().as_json()
    for fact, sentence in FACTS.items():
        here, there = description[fact], table.device[fact]
        if there == here:
            continue
        where = "" if connect_to is None else f" --connect {shlex.quote(connect_to)}"
        difference = (
            f"{sentence.format(there, here)}; "
            f"'aap-hw profile --device {shlex.quote(device or name)}{where} --model NAME --out FILE' "
            "makes a table of what is here"
        )
        if is_told:
            raise UserError(f"{difference}, and without --device and --connect latencies are predicted")
        return difference
    if not unmeasured:
        boards.require_tools()
    return unmeasured or boards
