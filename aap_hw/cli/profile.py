"""``aap-hw profile``: build or extend a device's latency table, through a connection or a folder that is carried."""

from __future__ import annotations

import shlex
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal

import click

from aap_hw.cli.options.cuts import attention_cuts_option
from aap_hw.cli.options.device import connect_option, device_option_of
from aap_hw.cli.options.network import measured_network_options, model_option_of
from aap_hw.cli.options.numbers import Whole
from aap_hw.cli.options.precision import float_layers_option, planned_precision_option
from aap_hw.cli.options.typed import retyped, typed
from aap_hw.cli.output import json_option, notice, quiet_option, write_json
from aap_hw.cli.streams import results_alone
from aap_hw.device.description import ESTIMATED
from aap_hw.errors import UserError

if TYPE_CHECKING:
    from aap_hw.api import Profile
    from aap_hw.cli.console import PlainConsole
    from aap_hw.compile.keys.precision import NetworkPrecision
    from aap_hw.pack.folder import Packed
    from aap_hw.prune.defaults import AttentionCuts

Way = Literal["profile", "pack", "unpack", "estimate"]
# What is done to a network, and to each point of its table.
DOING: dict[Way, tuple[str, str]] = {
    "profile": ("profiling", "measuring"),
    "pack": ("packing", "compiling"),
    "unpack": ("unpacking", "compiling"),
    "estimate": ("estimating", "estimating"),
}
# What an estimate does without, and what is not typed again after a trip.
NOT_ESTIMATED = ("--connect", "--pack", "--unpack", "--workers", "--no-cache")
OF_THIS_MACHINE = ("--pack", "--unpack", "--workers", "--no-cache", "--quiet", "--json")


@click.command(
    epilog="\b\nExamples:\n  aap-hw profile --device x86 --model mobilenetv2\n"
    "  aap-hw profile --device x86 --model resnet20 --precision int8 --out lut/x86.json\n"
    "  aap-hw profile --device rpi4 --model resnet20 --pack to-the-board\n"
    "  aap-hw profile --device rpi4 --model resnet20 --unpack to-the-board\n"
    "  aap-hw profile --device rpi4 --model resnet20 --estimate --out mine.json"
)
@device_option_of(required=False)
@connect_option
@model_option_of()
@measured_network_options
@click.option("--out", "out", metavar="FILE", help="The table to write or extend; default: lut/DEVICE.json.")
@click.option("--workers", type=Whole(min=1), help="Processes that compile; default: one per core.")
@click.option("--no-cache", is_flag=True, help="Compile everything anew, and keep no compiled kernels.")
@click.option(
    "--pack",
    "pack_into",
    metavar="FOLDER",
    help="For a device that cannot be reached from here: compile what is to be measured into a new folder. Carry it to "
    "the device, run 'python3 run.py' in it, and carry it back.",
)
@click.option(
    "--unpack",
    "unpack_from",
    metavar="FOLDER",
    help="Read a folder of --pack that came back, and add what was measured to the table.",
)
@click.option(
    "--estimate",
    is_flag=True,
    help="Without the device: work latencies out from the compiled code and from what the device's profile says of its "
    "caches and memory. 'plan' and 'prune' take such a table with --allow-estimated.",
)
@attention_cuts_option
@planned_precision_option
@float_layers_option
@quiet_option
@json_option
@click.pass_context
@results_alone
def command(
    ctx: click.Context,
    device: str | None,
    connect_to: str | None,
    model_name: str | None,
    network: dict[str, Any],
    out: str | None,
    workers: int | None,
    no_cache: bool,
    pack_into: str | None,
    unpack_from: str | None,
    estimate: bool,
    attention_cuts: AttentionCuts,
    precision: NetworkPrecision,
    float_layers: tuple[str, ...],
    quiet: bool,
    json_to: str | None,
) -> int:
    """Measure what each kernel of a network costs at different widths, on the device, and keep it in a latency table.

    With --estimate nothing is measured, and no device is needed: the table then says that it is estimated.

    You can interrupt it at any time: the same command goes on where it stopped. Without --model it lists the networks
    that it can measure.
    """
    if model_name is None:
        from aap_hw.cli.profile_choices import show_choices

        show_choices(device, out)
        return 2
    if device is None:
        raise click.UsageError("Missing option '--device'.", ctx)
    import aap_hw
    from aap_hw.cli.console import PlainConsole
    from aap_hw.cli.profile_screen import MeasuringScreen
    from aap_hw.compile.keys.precision import in_precision

    way = _way(ctx, pack_into, unpack_from, estimate)
    doing, to_points = DOING[way]
    console = PlainConsole(stderr=json_to is not None, quiet=quiet)
    screens: list[MeasuringScreen] = []

    def on_start(begun: Profile) -> None:
        if begun.set_aside is not None:
            estimated = begun.set_aside.name.endswith(f".{ESTIMATED}.json")
            why = "was estimated" if estimated else "is of another machine or version"
            console.say(f"{begun.path} {why}; it is kept as {begun.set_aside}")
        what = f"{begun.origin.model} at {begun.origin.inputs.text}{in_precision(precision)}"
        into = begun.path if pack_into is None else pack_into
        console.say(f"{doing} {what} {'for' if way == 'estimate' else 'on'} {device} -> {into}")
        if begun.network.slow_path:
            console.say(f"{begun.network.slow_path}; they have no schedule and may be slow")
        screens.append(stack.enter_context(MeasuringScreen(begun.path, quiet=quiet, doing=to_points)))

    options: dict[str, Any] = {
        **network,
        "out": out,
        "attention_cuts": attention_cuts,
        "precision": precision,
        "float_layers": float_layers,
        "on_start": on_start,
        "on_progress": lambda progress: screens[0].update(progress),
    }
    if way != "estimate":
        options |= {"workers": workers, "use_cache": not no_cache, "on_notice": notice}
    done: Profile | None = None
    another: Packed | None = None
    with ExitStack() as stack:
        match way:
            case "profile":
                done = aap_hw.profile(device, model_name, connect=connect_to, **options)
            case "pack":
                another = aap_hw.pack_profile(device, model_name, pack_into or "", **options)
            case "unpack":
                unpacked = aap_hw.unpack_profile(device, model_name, unpack_from or "", **options)
                done, another = unpacked.profile, unpacked.another
            case "estimate":
                done = aap_hw.estimate_profile(device, model_name, **options)
    figures = {} if done is None else _told(done, ctx, console)
    if way in ("pack", "unpack"):
        if another is not None:
            _tell_trip(another, ctx, first=way == "pack", console=console)
        elif way == "pack":
            console.say("the table lacks nothing of this network; nothing was packed")
        figures["pack"] = None if another is None else str(another.folder)
    if json_to is not None:
        write_json(figures, json_to)
    return 0


def _way(ctx: click.Context, pack_into: str | None, unpack_from: str | None, estimate: bool) -> Way:
    """The way that is asked for; UserError if that is two, or if other options would do nothing then."""
    if pack_into is not None and unpack_from is not None:
        raise UserError("--pack makes a folder and --unpack reads one that came back; give one of them")
    if estimate:
        if idle := [name for name in typed(ctx) if name in NOT_ESTIMATED]:
            raise UserError(f"--estimate reaches no device and compiles nothing; leave {', '.join(idle)} out")
        return "estimate"
    if pack_into is None and unpack_from is None:
        return "profile"
    if "--connect" in typed(ctx):
        raise UserError("--pack and --unpack are for a device that is not reached; leave --connect out")
    return "unpack" if pack_into is None else "pack"


def _tell_trip(packed: Packed, ctx: click.Context, *, first: bool, console: PlainConsole) -> None:
    """Say what is to be carried where, and how to go on."""
    if not first:
        console.say("the table can be used; one more trip makes it as certain as a profile by connection")
    console.say(f"{packed.folder}: {packed.points} points and {packed.networks} networks, {packed.bytes / 1e6:.1f} MB")
    again = retyped(ctx, ctx.command, but=OF_THIS_MACHINE)
    console.say(
        f"next: carry it to the device, run 'python3 run.py' in it, carry it back, and then: aap-hw profile {again} "
        f"--unpack {shlex.quote(str(packed.folder))}"
    )


def _told(done: Profile, ctx: click.Context, console: PlainConsole) -> dict[str, Any]:
    """Say what was measured or estimated, and how to go on; the figures."""
    from aap_hw.cli.plan import command as plan
    from aap_hw.compile.keys.precision import in_precision, unpruned_in
    from aap_hw.device.description import MEASURED
    from aap_hw.lut.gathering import disagreement
    from aap_hw.lut.provenance import ACCEPTED_BY, Estimate
    from aap_hw.prune.sentences import slow_sentence

    table, path = done.table, done.path
    assert table is not None
    provenance = table.device["provenance"]
    is_measured, estimate = provenance == MEASURED, Estimate.of(table)
    unpruned = f"unpruned {done.origin.model}{in_precision(unpruned_in(done.precision))} {done.dense_ms or 0:.3f} ms"
    if not is_measured:
        unpruned = f"{provenance}: no latencies" if estimate is None else f"{unpruned}, estimated"
    console.say(f"{path}: {len(table)} points of {len(table.points)} kernels; {unpruned}")
    if estimate is not None:
        console.say(estimate.sentence())
    drift = table.measurement.get("reference_drift")
    if is_measured:
        console.say(
            f"the machine's speed changed by up to {drift:.0%} meanwhile, which the latencies are corrected for"
        )
    if (sentence := disagreement(table.measurement.get("boards", {}))) is not None:
        console.say(sentence)
    allow = "" if is_measured else f" {ACCEPTED_BY[provenance]}"
    share = done.slow_share if is_measured else None
    if share:
        console.say(slow_sentence(done.network.slow_path, share))
    network = retyped(ctx, plan, but=["--json"])
    console.say(f"next: aap-hw plan {network} --lut {shlex.quote(str(path))} --budget 60%{allow}")
    return {
        "table": str(path),
        "slow_path": done.network.slow_path,
        "slow_share": share,
        "points": len(table),
        "dense_ms": done.dense_ms,
        "precision": done.precision,
        "provenance": provenance,
        "reference_drift": drift,
        **({} if estimate is None else {"estimate": estimate.as_json()}),
    }
