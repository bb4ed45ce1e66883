"""``aap-hw deploy``: compile a run or a network for a device, check it there, time it and write its bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from aap_hw.cli.options.device import connect_option, device_option
from aap_hw.cli.options.images import data_options
from aap_hw.cli.options.network import classes_option, example_option, input_option, model_option_of
from aap_hw.cli.output import json_option, notice, quiet_option, write_json
from aap_hw.cli.streams import results_alone
from aap_hw.compile.keys.precision import INT8, NETWORK_PRECISIONS, OTHERS, is_with_half
from aap_hw.errors import UserError

if TYPE_CHECKING:
    from aap_hw.cli.console import PlainConsole
    from aap_hw.deploy.deploying import Deployment
    from aap_hw.inputs import Inputs
    from aap_hw.train.sources import ImageSource


@click.command(
    epilog="\b\nExamples:\n  aap-hw deploy runs/demo --device x86\n  aap-hw deploy runs/demo --device x86 --no-run\n"
    "  aap-hw deploy --model resnet20 --device x86 --data embedded --precision int8"
)
@click.argument("run_folder", metavar="[RUN]", required=False)
@model_option_of()
@input_option
@example_option
@classes_option
@device_option
@connect_option
@click.option(
    "--out",
    metavar="FOLDER",
    help="Folder of the bundle; default: RUN/bundle-DEVICE, or with --model bundle-MODEL-DEVICE.",
)
@click.option(
    "--weights",
    metavar="WEIGHTS",
    help="A checkpoint of the pruned network, aap_hw.load(RUN), after code of yours has trained it; default: the "
    "weights that the run ended with. With --model: the network's weights, as for 'aap-hw prune'.",
)
@data_options
@click.option(
    "--precision",
    type=click.Choice(NETWORK_PRECISIONS),
    help="Precision to deploy in; default: that of the run or network. half is bfloat16 or float16, whichever the "
    "device has. int8: the network is quantised first, on samples of the run's data, --data or --example.",
)
@click.option(
    "--pixels",
    is_flag=True,
    help="With --precision int8: take raw pixels, bytes of shape (1, H, W, C), and normalise them inside the network.",
)
@click.option("--no-run", is_flag=True, help="Only compile and write the bundle; the device is not needed.")
@quiet_option
@json_option
@results_alone
def command(
    run_folder: str | None,
    model_name: str | None,
    input_shape: Inputs | None,
    example: str | None,
    classes: int | None,
    device: str,
    connect_to: str | None,
    out: str | None,
    weights: str | None,
    source: ImageSource | None,
    precision: str | None,
    pixels: bool,
    no_run: bool,
    quiet: bool,
    json_to: str | None,
) -> None:
    """Compile a pruned network, or any other, for a device; check and time it there; write a bundle that runs alone.

    A bundle holds the compiled library, programs that run it, and reference outputs to check it with.
    """
    from aap_hw import api
    from aap_hw.cli.console import PlainConsole

    what = run_folder or model_name
    if what is None or (run_folder is not None and model_name is not None):
        raise UserError("say what to deploy: the folder of a run, or a network with --model")
    if run_folder is not None and (input_shape is not None or example is not None or classes is not None):
        raise UserError("--input, --example and --classes are for --model; a run has its own")
    if no_run and connect_to is not None:
        raise UserError("--no-run does not reach the device, so --connect would do nothing; leave one of them out")
    console = PlainConsole(stderr=json_to is not None, quiet=quiet)
    how: dict[str, Any] = {"weights": weights, "data": source, "precision": precision, "pixels": pixels, "out": out}
    if model_name is not None:
        how |= {"input_shape": input_shape, "example": example, "classes": classes}
    if no_run:
        written = api.bundle(what, device, **how) if run_folder else api.bundle_model(what, device, **how)
        console.say("nothing was run: outputs are not checked and latency is not measured")
        console.say(f"bundle: {written}; on the device: python3 run.py --time")
        if json_to is not None:
            write_json({"bundle": str(written)}, json_to)
        return
    how |= {"connect": connect_to, "on_notice": notice}
    result = api.deploy(what, device, **how) if run_folder else api.deploy_model(what, device, **how)
    _show(result, console, weights)
    if json_to is not None:
        write_json({"bundle": str(result.bundle), **result.summary}, json_to)


def _show(result: Deployment, console: PlainConsole, weights: str | None) -> None:
    from aap_hw.cli.run_screen import summary_table
    from aap_hw.prune.sentences import budget_sentences

    summary, is_run = result.summary, result.pruned_in is not None
    if not result.latencies:
        console.say("the device is emulated: outputs are checked and nothing is timed")
    elif is_run:
        console.print(summary_table(summary))
        for sentence in budget_sentences(summary):
            console.say(sentence)
        if result.unknown:
            are, them = ("is", "it") if len(result.unknown) == 1 else ("are", "them")
            console.say(
                f"{' and '.join(result.unknown)} in {result.precision} {are} not known, as the run was pruned in "
                f"{result.pruned_in}; prune with --precision {result.precision} to know {them}"
            )
        if weights is not None and summary.get("accuracy_pruned") is not None:
            console.say(f"accuracies are those of the run's own weights, not of {weights}")
    else:
        console.say(f"{summary['ms']:.3f} ms a call, measured, in {result.precision}")
    theirs = "PyTorch's quantised network" if result.precision in OTHERS else "PyTorch"
    console.say(
        f"checked on {result.images} samples: largest difference from {theirs} {result.max_abs_diff:.2g}"
        + (f" (rounding explains up to {result.tolerance:.2g})" if is_with_half(result.precision) else "")
        + (f", none on {result.equal} of them" if result.precision == INT8 else "")
        + ("" if result.agreement is None else f", the same class for {result.agreement:.1f} %")
    )
    if is_run and not summary.get("retrained", True):
        console.say(f"weights: {weights or 'as they were cut; --weights FILE takes trained ones'}")
    if slow := summary["slow_path"]:
        console.say(f"{slow}; there is no schedule for these")
    console.say(f"bundle: {result.bundle}")
