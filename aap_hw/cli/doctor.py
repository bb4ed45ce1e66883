"""``aap-hw doctor``: whether everything from the profile to a timed kernel works for a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from aap_hw.cli.options.device import connect_option, device_option
from aap_hw.cli.output import json_option, tell, write_json

if TYPE_CHECKING:
    from aap_hw.device.doctor import Finding


@click.command(
    epilog="\b\nExamples:\n  aap-hw doctor --device x86\n  aap-hw doctor --device rpi4 --connect rpc://127.0.0.1:9090"
)
@device_option
@connect_option
@json_option
def command(device: str, connect_to: str | None, json_to: str | None) -> int:
    """Check every step from the device profile to a timed kernel, and say how to mend what fails.

    The exit code is 0 if every step passes, and 2 if one fails.
    """
    from aap_hw.device.doctor import examine

    findings = []
    for finding in examine(device, connect_to):
        findings.append(finding)
        if json_to is None:
            tell(_line(finding))
    is_well = all(finding.ok is not False for finding in findings)
    if json_to is not None:
        write_json({"ok": is_well, "findings": [finding.as_json() for finding in findings]}, json_to)
    return 0 if is_well else 2


def _line(finding: Finding) -> str:
    verdict = {True: "ok", False: "WRONG", None: "-"}[finding.ok]
    return f"{verdict:6}{finding.step + ':':16}{finding.text}"
