"""A command that ``torchrun`` starts several times, to train one network together."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import Any

from aap_hw.errors import UserError


def one_of_several(command: Callable[..., None]) -> Callable[..., None]:
    """Let ``torchrun`` start the command several times to train together; only the first one speaks."""

    @wraps(command)
    def joined(*arguments: Any, **options: Any) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            command(*arguments, **options)
            return
        from aap_hw import ranks

        with ranks.joined(os.environ):
            try:
                command(*arguments, **options)
            except UserError as problem:
                if ranks.is_first():
                    raise
                raise SystemExit(2) from problem

    return joined
