"""What the operating system shows of a machine's clock and heat, which latencies depend on besides the code.

Recorded beside what was measured, so that a table that disagrees with another can be explained; nothing is corrected
by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Conditions:
    """The state of a machine at one moment; None is what the operating system does not show.

    Attributes
    ----------
    governor : how the clock is chosen, such as ``performance``; several governors are joined by ``+``.
    temperature_c : of the hottest sensor, in degrees Celsius.
    """

    governor: str | None = None
    temperature_c: float | None = None


def conditions(system: Path = Path("/sys")) -> Conditions:
    """The state of this machine now."""
    governors = sorted(set(_texts(system, "devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")))
    # Thousandths of a degree; a sensor that is switched off reads as nothing, zero or less.
    degrees = [int(text) / 1e3 for text in _texts(system, "class/thermal/thermal_zone*/temp") if text.isdecimal()]
    warm = [value for value in degrees if value > 0]
    return Conditions("+".join(governors) or None, max(warm, default=None))


def conditions_of(read: Callable[[str], bytes | None]) -> Conditions:
    """The state of a machine of which files can be read, but not listed; its first sensor stands for all."""
    governor = read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or b""
    degrees = (read("/sys/class/thermal/thermal_zone0/temp") or b"").strip()
    warm = int(degrees) / 1e3 if degrees.isdigit() else 0.0
    return Conditions(governor.decode("ascii", "replace").strip() or None, warm if warm > 0 else None)


def _texts(system: Path, pattern: str) -> Iterator[str]:
    for path in system.glob(pattern):
        try:
            text = path.read_text().strip()
        except (OSError, UnicodeDecodeError):
            continue
        if text:
            yield text
