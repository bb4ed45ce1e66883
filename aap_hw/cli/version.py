"""``--version``: of aap-hw and of what it cannot do without, for a report of a fault."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import click

from aap_hw import __version__

# Distribution names, and what people call them.
SHOWN = {"torch": "torch", "apache-tvm": "TVM"}


def show(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Print the versions and end the command; nothing is imported for it."""
    if not value or ctx.resilient_parsing:
        return
    others = ", ".join(f"{name} {_installed(package)}" for package, name in SHOWN.items())
    click.echo(f"aap-hw {__version__} ({others}, Python {platform.python_version()})")
    ctx.exit()


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "is not installed"
