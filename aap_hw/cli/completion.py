"""``aap-hw completion``: the lines that let a shell complete commands, options and names."""

from __future__ import annotations

import click

from aap_hw.cli.output import tell

SHELLS = ("bash", "zsh", "fish")


@click.command(
    epilog="\b\nExamples:\n  aap-hw completion bash >> ~/.bashrc\n"
    "  aap-hw completion fish > ~/.config/fish/completions/aap-hw.fish"
)
@click.argument("shell", metavar="SHELL", type=click.Choice(SHELLS))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script that lets your shell (bash, zsh or fish) complete commands, options, devices and tables."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    tell(kind(ctx.find_root().command, {}, "aap-hw", "_AAP_HW_COMPLETE").source())
