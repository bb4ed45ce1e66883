"""The `aap-hw` command: finding its sub-commands and turning failures into one line and an exit code.

Sub-commands are imported only when asked for, and are expected to import PyTorch and TVM only when they run,
so that `--help` answers at once. What each sub-command does is in its own module.
"""

import atexit
import contextlib
import gc
import importlib
import importlib.util
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click

from aap_hw.cli import version
from aap_hw.cli.help import WholeSentences
from aap_hw.cli.output import logged_as_notices, told_what_takes_long
from aap_hw.cli.streams import no_results_follow, standard_streams
from aap_hw.errors import Fault, UserError, closest
from aap_hw.files import circumstance
from aap_hw.foreign import reason
from aap_hw.interrupts import interruptible

# In the order in which they are used; `--help` keeps it.
COMMANDS = {
    "devices": "aap_hw.cli.devices:command",
    "doctor": "aap_hw.cli.doctor:command",
    "profile": "aap_hw.cli.profile:command",
    "lut": "aap_hw.cli.lut:command",
    "plan": "aap_hw.cli.plan:command",
    "prune": "aap_hw.cli.prune:command",
    "compile": "aap_hw.cli.compile:command",
    "deploy": "aap_hw.cli.deploy:command",
    "export": "aap_hw.cli.export:command",
    "report": "aap_hw.cli.report:command",
    "completion": "aap_hw.cli.completion:command",
}

# How many objects come into being before Python looks for garbage again: PyTorch alone makes a million on import.
OBJECTS_A_LOOK = 10_000
# How often a thread of PyTorch's looks for whether the others are done before it sleeps.
TURNS_OF_A_WAIT = "10000"


@dataclass
class _Options:
    debug: bool = False


class _Unexpected(Exception):  # noqa: N818 - the envelope of an error
    """An error of a sub-command's that click would take for Ctrl-C or for a reader that is gone; it is the cause."""


class LazyGroup(WholeSentences):
    """A command group whose members are imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the sub-commands in the order of `COMMANDS`."""
        return [name for name, where in COMMANDS.items() if importlib.util.find_spec(where.split(":")[0])]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one sub-command."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module, attribute = COMMANDS[cmd_name].split(":")
        command = getattr(importlib.import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{COMMANDS[cmd_name]} is not a click command")
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the sub-command."""
        try:
            os.getcwd()
        except OSError as problem:
            raise UserError(f"the working folder is gone ({problem.strerror}); change to another") from problem
        try:
            with interruptible(), logged_as_notices(), told_what_takes_long():
                return super().invoke(ctx)
        except (EOFError, BrokenPipeError) as failure:
            raise _Unexpected from failure
        except SystemExit as ending:
            if isinstance(ending.__cause__, UserError):  # which another process tells
                raise
            raise UserError(
                f"the network's code ended the program ({reason(ending)}); let it return instead"
            ) from ending


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\nThe whole job:\n  aap-hw profile --device x86 --model resnet20\n"
    "  aap-hw prune --model resnet20 --data embedded --lut lut/x86.json --budget 50% --out runs/first\n"
    "  aap-hw deploy runs/first --device x86",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=version.show, help="Show versions and exit."
)
@click.pass_obj
def group(options: _Options, debug: bool) -> None:
    """Prune a network to a latency budget measured on the device it will run on."""
    options.debug = debug


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    arguments
        What follows ``aap-hw``; by default the arguments of the process.

    Returns
    -------
    int
        0, 1 for a fault of ours, 2 for a mistake of the user's, 130 after Ctrl-C. A sub-command that wants to
        say what was kept raises ``KeyboardInterrupt("the 412 points measured so far are kept")``.
    """
    options = _Options()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:
        gc.set_threshold(OBJECTS_A_LOOK)
        if "OMP_WAIT_POLICY" not in os.environ:
            # Read by GNU's OpenMP as PyTorch is imported. By default its threads spin longer: on a machine that is busy
            # otherwise, most of a command's time would go there.
            os.environ.setdefault("GOMP_SPINCOUNT", TURNS_OF_A_WAIT)
    try:
        with standard_streams():
            result = group.main(given, prog_name="aap-hw", standalone_mode=False, obj=options)
    except Exception as failure:
        # click.Abort, its form of KeyboardInterrupt, is an Exception.
        if options.debug:
            traceback.print_exc()
        return _report(failure, given)
    finally:
        if arguments is None:
            atexit.register(gc.freeze)  # or Python searches all there is for garbage again: a second after `plan`
            atexit.register(no_results_follow)  # called before what the user's code has registered
    return result if isinstance(result, int) else 0


def _report(failure: BaseException, given: list[str]) -> int:
    """Print what went wrong on one line of standard error; return the exit code."""
    if isinstance(failure, _Unexpected) and failure.__cause__ is not None:
        failure = failure.__cause__
    if isinstance(failure, OSError):
        failure = circumstance(failure) or failure
    match failure:
        case click.exceptions.NoArgsIsHelpError():
            failure.show()
            return 2
        case UserError():
            _say(f"error: {failure}")
            for line in failure.details:
                print(f"  {line}", file=sys.stderr)
            return 2
        case Fault():
            _say(f"error: {failure}")
            return 1
        case click.NoSuchOption():
            meant = closest(failure.option_name, failure.possibilities or ())
            _say(f"error: there is no option '{failure.option_name}'{meant}{_where_to_look(failure)}")
            return 2
        case click.ClickException():
            _say(f"error: {failure.format_message().rstrip('.')}{_where_to_look(failure)}")
            return 2
        case click.Abort():
            what = failure.__cause__ or failure.__context__
            _say(f"interrupted; {what if what and what.args else 'no file is left half-written'}")
            return 130
        case _:
            again = shlex.join(["aap-hw", "--debug", *given])
            _say(f"internal error: {reason(failure)}; for the traceback run: {again}")
            return 1


def _where_to_look(failure: click.ClickException) -> str:
    context = getattr(failure, "ctx", None)
    return f" (see '{context.command_path} --help')" if isinstance(context, click.Context) else ""


def _say(sentence: str) -> None:
    one_line = " ".join(part for line in sentence.splitlines() if (part := line.strip()))
    with contextlib.suppress(OSError):  # where nobody reads, nobody is to be told
        print(f"aap-hw: {one_line}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
