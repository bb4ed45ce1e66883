"""One device of a profile, reached as everything reaches it, and held until its session is closed."""

from __future__ import annotations

from typing import Any

from aap_hw.device.boards import Boards
from aap_hw.device.profile import DeviceProfile


def connect(profile: DeviceProfile) -> Any:
    """This machine, or the first board that answers."""
    reached: list[Any] = []
    Boards(profile).share([reached], lambda device, devices: devices.append(device))
    return reached[0]
