"""Several options that belong together, as one decorator."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]


def together(*options: Decorator) -> Decorator:
    """Options whose values a command takes one by one."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def as_one(name: str, made_of: Callable[..., Any], *options: Decorator) -> Decorator:
    """Options whose values a command takes as one argument: ``name`` is what ``made_of`` makes of them, by their names.

    With ``dict`` as ``made_of``, a command passes them on as ``function(**name)``.
    """

    def no_command() -> None:
        pass

    parts = [parameter.name for parameter in together(*options)(no_command).__click_params__]  # type: ignore[attr-defined]

    def decorate(command: Command) -> Command:
        @wraps(command)
        def with_one(*arguments: Any, **values: Any) -> Any:
            whole = made_of(**{part: values.pop(part) for part in parts})
            return command(*arguments, **{name: whole}, **values)

        return together(*options)(with_one)

    return decorate
