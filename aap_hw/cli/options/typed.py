"""The options that were typed: which they are, and how to type them again behind another command."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator
from typing import Any

import click


def typed(ctx: click.Context) -> dict[str, click.Option]:
    """The options of the running command that were typed, by their names and in the order of its help."""
    return {
        option.opts[0]: option
        for option in ctx.command.params
        if isinstance(option, click.Option)
        and ctx.get_parameter_source(option.name or "") is click.core.ParameterSource.COMMANDLINE
    }


def retyped(ctx: click.Context, command: click.Command, *, but: Collection[str] = ()) -> str:
    """What was typed, for a shell, of the options that another command knows, too, ``but`` for some."""
    known = {name for option in command.params for name in option.opts}
    again = [option for name, option in typed(ctx).items() if name in known and name not in but]
    return " ".join(word for option in again for word in _words(option, ctx.params[option.name or ""]))


def _words(option: click.Option, value: Any) -> Iterator[str]:
    if option.is_flag:
        yield option.secondary_opts[0] if option.secondary_opts and not value else option.opts[0]
        return
    for each in value if option.multiple else [value]:
        yield option.opts[0]
        yield shlex.quote(str(getattr(each, "text", each)))
