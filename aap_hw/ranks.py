"""Several processes that train one network together, as ``torchrun`` starts them; a single process is one of one.

Every process runs the same program. What depends on the moment, such as a measured latency, is found by the first one
and shared, so that all of them go the same way; only the first one writes and speaks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from aap_hw.errors import UserError

T = TypeVar("T")
# While the first process waits for a board, compiles and measures, the others wait for it: hours if the board is taken.
# One that died is no reason for haste: ``torchrun`` ends the others then.
LONGEST_WAIT = timedelta(days=1)


@contextmanager
def joined(environment: Mapping[str, str]) -> Iterator[None]:
    """Join the other processes if the variables that ``torchrun`` sets say that there are any."""
    if int(environment.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(environment.get("LOCAL_RANK", "0")))
    dist.init_process_group("cuda:nccl,cpu:gloo" if torch.cuda.is_available() else "gloo", timeout=LONGEST_WAIT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def count() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def number() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this process writes and speaks for all."""
    return number() == 0


def share_of(total: int) -> slice:
    """This process's part of so many things; the parts differ by at most one."""
    return slice(number() * total // count(), (number() + 1) * total // count())


def summed(values: torch.Tensor) -> torch.Tensor:
    """The sum over all processes; on all of them the same bits."""
    if count() > 1:
        dist.all_reduce(values)
    return values


def align(tensors: Iterable[torch.Tensor]) -> None:
    """Give all processes the first one's values."""
    if count() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def shared(value: T) -> T:
    """The first process's value."""
    if count() == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]  # type: ignore[no-any-return]


def found_by_first(find: Callable[[], T]) -> T:
    """What the first process finds; the others wait for it, and fail if it does."""
    if count() == 1:
        return find()
    failure: BaseException | None = None
    found: tuple[bool, Any] = (False, None)
    if is_first():
        try:
            found = (True, find())
        except BaseException as problem:
            failure = problem
    good, value = shared(found)
    if failure is not None:
        raise failure
    if not good:
        raise UserError("the first process failed; its message says why")
    return value  # type: ignore[no-any-return]


def device() -> torch.device:
    """Where this process trains: its own GPU if there is one."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
