"""`aap-hw devices`: list the device profiles.

Says what the profiles say; does not try to reach any device.
"""

from typing import TYPE_CHECKING

import click

from aap_hw.cli.output import json_option, write_json

if TYPE_CHECKING:
    from aap_hw.device.profile import DeviceProfile


@click.command(epilog="\b\nExample:\n  aap-hw devices --json")
@json_option
def command(json_to: str | None) -> None:
    """List the devices that have a profile: what you can measure on and prune for."""
    from aap_hw.device.profile import load_profile, profile_names

    profiles = [load_profile(name) for name in profile_names()]
    if json_to is not None:
        write_json([{**p.model_dump(mode="json"), "profile_hash": p.profile_hash} for p in profiles], json_to)
    else:
        _print_table(profiles)


def _print_table(profiles: "list[DeviceProfile]") -> None:
    from aap_hw.cli.console import PlainConsole, grid_of

    table = grid_of("device", "target", "threads", "reached through", "description", right=("threads",))
    for profile in profiles:
        table.add_row(
            profile.name,
            profile.target.summary(),
            str(profile.threads),
            profile.connect.summary(),
            profile.description,
        )
    PlainConsole().print(table)
