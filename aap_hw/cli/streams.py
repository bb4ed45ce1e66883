"""Standard streams that are closed, cut off by their reader, on a full disk, or without Unicode.

Also keeps standard output for results: while a command runs a network's code, everything else that is printed goes to
standard error. The form of results is in `aap_hw.cli.output`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, TextIO

import click

from aap_hw.descriptors import sent
from aap_hw.errors import UserError

# The key of the stream of results in a command's context.
_RESULTS = f"{__name__}.results"


class _Output(io.TextIOWrapper):
    """A stream that says in a sentence why it cannot be written."""

    def write(self, text: str, /) -> int:
        if text == "":  # click's test whether the stream takes text
            return 0
        with self._told():
            return super().write(text)

    def flush(self) -> None:
        with self._told():
            super().flush()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as failure:
            # Drop what is still buffered, or Python would report the same failure again when it ends.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if failure.errno == errno.EPIPE:
                raise UserError("the program that reads the output ended before all of it was written") from failure
            raise UserError(
                f"the output cannot be written: {failure.strerror}; make room, or send it somewhere else"
            ) from failure


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Make standard output and standard error work with whatever they are connected to.

    Raises
    ------
    UserError : standard output is closed, or cannot be written.
    """
    _occupy()
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - for as long as the process is
    if sys.stdout is None:
        raise UserError("standard output is closed; send it to a file, or to /dev/null")
    with contextlib.ExitStack() as afterwards:
        for name, descriptor in (("stdout", 1), ("stderr", 2)):
            stream = getattr(sys, name)
            if _descriptor_of(stream) == descriptor:
                stream.flush()
                output = _Output(stream.buffer, stream.encoding, "backslashreplace", line_buffering=True)
                setattr(sys, name, output)
                afterwards.callback(output.detach)
                afterwards.callback(setattr, sys, name, stream)
        yield
        sys.stdout.flush()


def no_results_follow() -> None:
    """Send to standard error what is printed while the process ends, as by functions that were given to `atexit`."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or there is none
        sys.stdout.flush()
        os.dup2(2, 1)


def _occupy() -> None:
    """Occupy the descriptors of closed streams, so that no file is opened under one and printed into."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free


def results_alone(command: Callable[..., Any]) -> Callable[..., Any]:
    """Keep everything but a command's results out of its standard output."""

    @wraps(command)
    def alone(*arguments: Any, **options: Any) -> Any:
        with _diverted() as results:
            click.get_current_context().meta[_RESULTS] = results
            return command(*arguments, **options)

    return alone


def results() -> TextIO:
    """The stream for the results of the running command."""
    context = click.get_current_context(silent=True)
    own: TextIO | None = None if context is None else context.meta.get(_RESULTS)
    return own or sys.stdout


@contextlib.contextmanager
def _diverted() -> Iterator[TextIO]:
    """Send standard output to standard error, and give the stream that it was."""
    stdout: TextIO = sys.stdout
    results = stdout
    with contextlib.ExitStack() as afterwards:
        if _descriptor_of(stdout) == 1:
            stdout.flush()
            own = open(os.dup(1), "wb")  # noqa: SIM115 - closed with `results`
            results = _Output(own, stdout.encoding, stdout.errors, line_buffering=True)
            afterwards.callback(results.close)
            # Libraries written in C print there without asking Python.
            afterwards.enter_context(sent(1, to=2))
        sys.stdout = sys.stderr
        afterwards.callback(setattr, sys, "stdout", stdout)
        yield results
        results.flush()


def _descriptor_of(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None
