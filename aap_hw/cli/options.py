"""What several sub-commands ask for in the same words: a model, its weights and inputs, a table, a budget."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from aap_hw.cli.output import notice
from aap_hw.compile.keys.precision import FP32, NETWORK_PRECISIONS, NetworkPrecision
from aap_hw.errors import NOTHING_ASKED, UserError
from aap_hw.prune.defaults import ALLOCATORS, ATTENTION_CUTS, SCORE_SCALES, SCORES, THRESHOLD_WEIGHTS

if TYPE_CHECKING:
    from aap_hw.lut.table import LatencyTable
    from aap_hw.policy import Budget

Decorator = Callable[[Callable[..., None]], Callable[..., None]]
DEFAULT_MODEL = "mobilenetv2"


class InputsText(click.ParamType[Any]):
    """``3x224x224``, ``1x16000``, or ``ids:int64:128,mask:bool:128``: what a network takes."""

    name = "SHAPE,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the text into Inputs; bad text is a UserError that says what to type."""
        from aap_hw.graph.program.inputs import Inputs

        return Inputs.of(value)


class Normalisation(click.ParamType[Any]):
    """``0.5,0.5,0.5/0.25,0.25,0.25``: means and deviations of the channels."""

    name = "MEAN/STD"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the text into what images are normalised by."""
        from aap_hw.train.data import Normalisation as Values

        if not isinstance(value, str):
            return value
        try:
            mean, std = (tuple(float(each) for each in part.split(",")) for part in value.split("/"))
        except ValueError:
            self.fail(f"'{value}' is not MEAN/STD; write for example 0.5,0.5,0.5/0.25,0.25,0.25", param, ctx)
        return Values(mean, std)


class BudgetText(click.ParamType[Any]):
    """A budget of a resource, such as ``20ms``, ``0.02s`` or ``55%`` of latency."""

    def __init__(self, name: str, resource: str) -> None:
        self.name, self._resource = name, resource

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the text into a Budget; bad text is a UserError that says what to type."""
        from aap_hw.policy.budget import RESOURCES, Budget

        return Budget.parse(value, RESOURCES[self._resource]) if isinstance(value, str) else value


def model_option_of(**how: Any) -> Decorator:
    """The option that says where the network comes from; keywords say what if it is not given."""
    return click.option(
        "--model",
        "model_name",
        metavar="SOURCE",
        help="The network: a name such as resnet50, torchvision:NAME, timm:NAME, FILE.py:FUNCTION, MODULE:FUNCTION, or "
        "FILE.pt2.",
        **how,
    )


model_option = model_option_of(default=DEFAULT_MODEL, show_default=True)
device_option = click.option(
    "--device", required=True, metavar="NAME", help="A device profile's name, or the path of its TOML file."
)
connect_option = click.option(
    "--connect",
    "connect_to",
    metavar="WHERE",
    help="Where the device is, if not where its profile says: local, rpc://HOST:PORT or tracker://HOST:PORT/KEY.",
)
_INPUTS = (
    click.option(
        "--input",
        "inputs",
        type=InputsText(),
        help="Shape of one input, without the batch: 3x224x224, 1x16000, or several as NAME:TYPE:SHAPE,...; default: "
        "the network's usual one.",
    ),
    click.option(
        "--example",
        metavar="FILE.npz",
        help="Real inputs instead of --input: arrays with samples along the first axis, or a function of yours that "
        "returns them (FILE.py:FUNCTION). Without --data they also tell which filters matter.",
    ),
)


def input_options(command: Callable[..., None]) -> Callable[..., None]:
    """What the network takes, as ``inputs`` or as ``example``."""
    for option in reversed(_INPUTS):
        command = option(command)
    return command


def lut_option_of(required: bool) -> Decorator:
    """The option that names a table."""
    return click.option(
        "--lut",
        "lut_path",
        required=required,
        metavar="FILE",
        help="The device's latency table, from 'aap-hw profile'; a bare name such as x86 is a table that aap-hw ships.",
    )


lut_option = lut_option_of(required=True)
_BUDGETS = (
    click.option(
        "--budget",
        type=BudgetText("TIME", "latency"),
        help="Latency to reach: 20ms, 0.02s, or 55% of the unpruned network's on the device.",
    ),
    click.option(
        "--max-params", type=BudgetText("NUMBER", "parameters"), help="Parameters to keep at most: 2M, 500k, or 40%."
    ),
    click.option(
        "--max-flops",
        type=BudgetText("NUMBER", "flops"),
        help="Multiply-accumulates to keep at most: 150M, 1.2G, or 50%.",
    ),
    click.option(
        "--max-memory",
        type=BudgetText("SIZE", "memory"),
        help="Memory to need at most: 5MB, 800kB, or 40%. Of the compiled network's packed weights and the feature "
        "maps that live at one time.",
    ),
)


def budget_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say what to prune to; the command takes them as one list, ``budgets``."""

    @wraps(command)
    def with_budgets(
        *, budget: Budget, max_params: Budget, max_flops: Budget, max_memory: Budget, **others: Any
    ) -> None:
        budgets = [each for each in (budget, max_params, max_flops, max_memory) if each is not None]
        if not budgets and others.get("max_accuracy_drop") is None and others.get("resume") is None:
            raise UserError(NOTHING_ASKED)
        command(budgets=budgets, **others)

    for option in reversed(_BUDGETS):
        with_budgets = option(with_budgets)
    return with_budgets


precision_option = click.option(
    "--precision",
    type=click.Choice(NETWORK_PRECISIONS),
    default=FP32,
    show_default=True,
    help="What the network computes in: half is bfloat16 or float16, whichever the device has; in int8, weights and "
    "values are bytes wherever there are kernels for it.",
)
float_layers_option = click.option(
    "--float-layer",
    "float_layers",
    multiple=True,
    metavar="NAME",
    help="A layer of a network in int8 that may stay in float32, such as 'layer1.0.conv1'; repeatable.",
)
weights_option = click.option(
    "--weights",
    metavar="FILE",
    help="Trained weights: a checkpoint of yours (safetensors or what torch.save wrote), 'embedded' (resnet20 only) "
    "or 'none'; default: none, and with --data embedded what there is.",
)
trained_option = click.option(
    "--weights",
    metavar="FILE",
    help="Weights of the pruned network that code of yours has trained: a checkpoint of aap_hw.load(RUN), of any "
    "kind that 'aap-hw prune' takes; default: the run's own.",
)
_DATA = (
    click.option(
        "--data",
        metavar="SOURCE",
        help="Images or other samples: embedded, cifar10:FOLDER, fashion-mnist:FOLDER, imagefolder:FOLDER, npz:FILE or "
        "package.module:function.",
    ),
    click.option("--limit", type=click.IntRange(min=2), help="Use at most so many images of each split."),
    click.option(
        "--normalise",
        type=Normalisation(),
        help="What images between 0 and 1 are normalised by, a number a channel: MEAN,MEAN,MEAN/STD,STD,STD; default: "
        "what is usual for them.",
    ),
)


def data_options(command: Callable[..., None]) -> Callable[..., None]:
    """Where images come from; the command takes them as one ``source``, None if none is given."""

    @wraps(command)
    def with_source(*, data: str | None, limit: int | None, normalise: Any, **others: Any) -> None:
        from aap_hw.train.sources import ImageSource

        if data is None and (limit is not None or normalise is not None):
            raise UserError("--limit and --normalise are about the images of --data; say which")
        command(source=None if data is None else ImageSource(data, limit, normalise), **others)

    for option in reversed(_DATA):
        with_source = option(with_source)
    return with_source


classes_option = click.option(
    "--classes",
    type=click.IntRange(min=2),
    help="Classes that a network with a name is made for; default: as is usual for it.",
)
calibration_option = click.option(
    "--calibration-images",
    type=click.IntRange(min=1),
    help="Images that attention is averaged over; default: 16 at 224x224 up to 512 at 32x32.",
)
score_option = click.option(
    "--score",
    type=click.Choice(SCORES),
    help="What tells which filters are important: 'attention' is the paper's and the default with --allocator "
    "threshold, 'read-attention' is what the next layers get of a filter and the default otherwise.",
)
score_scale_option = click.option(
    "--score-scale",
    type=click.Choice(SCORE_SCALES),
    default="raw",
    show_default=True,
    help="How scores are brought to one scale in all groups; matters to the threshold, 'rank' to the exact choice too.",
)
_ALLOCATORS = (
    click.option(
        "--allocator",
        type=click.Choice(ALLOCATORS),
        default="exact",
        show_default=True,
        help="How widths are chosen: the best that fit, or the paper's threshold on attention.",
    ),
    click.option(
        "--threshold-weights",
        type=click.Choice(THRESHOLD_WEIGHTS),
        help="What the threshold weights a group by; default: the first of these that is limited, else parameters.",
    ),
)


depth_option = click.option(
    "--no-depth", "depth", flag_value=False, default=True, help="Never remove a residual branch altogether."
)

attention_cuts_option = click.option(
    "--attention-cuts",
    type=click.Choice(ATTENTION_CUTS),
    default="widths",
    show_default=True,
    help="Cut the widths of attention's heads, alike in all heads of a block, or whole heads where the code allows it.",
)

renormalised_option = click.option(
    "--renormalised/--no-renormalised",
    default=None,
    help="Cut channels that a norm is taken over, as a layer norm is, or never; default: if the network is trained.",
)


def allocator_options(command: Callable[..., None]) -> Callable[..., None]:
    """How widths are chosen."""
    for option in reversed(_ALLOCATORS):
        command = option(command)
    return command


only_option = click.option(
    "--only",
    multiple=True,
    metavar="GLOB",
    help="Cut only channel groups of such names, as 'layer1.*', or of such a kind, as 'kind:mlp'; repeatable.",
)
skip_option = click.option(
    "--skip",
    multiple=True,
    metavar="GLOB",
    help="Do not cut channel groups of such names or kinds ('plan' shows both); repeatable.",
)
emulated_option = click.option(
    "--allow-emulated", is_flag=True, help="Accept a table that was not measured on the device, to try things out."
)


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


def read_table(text: str) -> LatencyTable:
    """The latency table that an option names; the results of a check by folder are one, too."""
    from aap_hw.lut.file import OtherVersion
    from aap_hw.lut.finding import find_file, find_table

    try:
        return find_table(text)
    except OtherVersion:
        from aap_hw.pack.tables import is_results, read_check

        path = find_file(text)
        if not is_results(path):
            raise
        return read_check(path)


def read_table_to_predict(text: str, model: str, precision: NetworkPrecision = FP32) -> LatencyTable:
    """The latency table that an option names, with a notice if its latencies are no longer those of today's kernels."""
    from aap_hw import ranks

    table = read_table(text)
    if table.is_outdated and ranks.is_first():
        asked = f"--device {table.device['name']} --model {model}"
        asked += "" if precision == FP32 else f" --precision {precision}"
        notice(
            f"the latencies in {text} are of kernels as another version of aap-hw compiled them, so that predictions "
            f"may be off; measure them anew with 'aap-hw profile {asked}'"
        )
    return table


def budget_arguments(budgets: Sequence[Budget]) -> dict[str, Any]:
    """The budgets as what ``aap_hw.plan`` and ``aap_hw.prune`` call them."""
    names = {"latency": "budget", "parameters": "max_params", "flops": "max_flops", "memory": "max_memory"}
    return {names[budget.resource.name]: budget for budget in budgets}


def budget_text(budgets: Sequence[Budget]) -> str:
    """The options that ask for these budgets."""
    options = {"latency": "--budget", "parameters": "--max-params", "flops": "--max-flops", "memory": "--max-memory"}
    return " ".join(f"{options[budget.resource.name]} {budget}" for budget in budgets)
