"""The `--json` and `--quiet` options that sub-commands share, lines of results, and notices.

What the library logs becomes a notice, too.

Not covered: tables for people, which each sub-command lays out itself.
"""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import click

from aap_hw.activity import telling
from aap_hw.cli.streams import results
from aap_hw.files import make_folder, require_writable_file, write_atomic


def _checked(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Refuse a file that cannot be written before any work is done for it."""
    if value not in (None, "-"):
        require_writable_file(value)
    return value


json_option = click.option(
    "--json",
    "json_to",
    is_flag=False,
    flag_value="-",
    metavar="[FILE]",
    callback=_checked,
    help="Write JSON to FILE instead of a table; '-' or nothing is standard output.",
)


def _silence(ctx: click.Context, param: click.Parameter, value: bool) -> bool:
    """Do not tell what takes long."""
    if value:
        ctx.with_resource(telling(None))
    return value


quiet_option = click.option(
    "--quiet", is_flag=True, callback=_silence, help="Print nothing but what goes wrong and what --json asks for."
)


def notice(line: str) -> None:
    """Tell something that may need attention while the work goes on, with or without ``--quiet``."""
    click.echo(f"aap-hw: {line}", err=True)


def told_what_takes_long() -> AbstractContextManager[None]:
    """Until the block ends, say what is being done after ten seconds of silence."""
    stream = sys.stderr  # bound now, as it is replaced while a network is traced
    return telling(lambda line: click.echo(f"aap-hw: {line}", file=stream))


@contextmanager
def logged_as_notices() -> Iterator[None]:
    """Until the block ends, show warnings of the library's log as notices, each once."""
    # A warning for torchao's developers, shown whenever a user's network imports torchao, as Hugging Face's do.
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    logger, handler = logging.getLogger("aap_hw"), _Notices()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Notices(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if line not in self._told:
            self._told.add(line)
            notice(line)


def tell(line: str) -> None:
    """Write a line of a command's result."""
    click.echo(line, file=results())


def write_json(value: object, destination: str) -> None:
    """Write a value as indented JSON, with nothing else, to a file or, for ``"-"``, to standard output.

    Raises
    ------
    UserError : the file cannot be written.
    """
    text = json.dumps(value, indent=2, allow_nan=False)
    if destination == "-":
        tell(text)
    else:
        make_folder(Path(destination).parent)
        write_atomic(destination, text + "\n")
