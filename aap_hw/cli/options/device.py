"""Which device is meant, and how it is reached."""

from __future__ import annotations

import click

from aap_hw.cli.options.grouping import Decorator


def _devices(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from aap_hw.device.profile import profile_names

    return [name for name in profile_names() if name.startswith(incomplete)]


def device_option_of(required: bool) -> Decorator:
    """The option that names a device profile."""
    return click.option(
        "--device",
        required=required,
        metavar="NAME",
        shell_complete=_devices,
        help="A device profile: its name ('aap-hw devices' lists them) or the path of a TOML file.",
    )


device_option = device_option_of(required=True)
connect_option = click.option(
    "--connect",
    "connect_to",
    metavar="WHERE",
    help="Where the device is, if not where its profile says: local, rpc://HOST:PORT or tracker://HOST:PORT/KEY. Write "
    "rpc://HOST:PORT/KEY if the board's server was started with another --key than the device's name.",
)
