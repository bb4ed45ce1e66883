"""What several sub-commands ask for in the same words: a model, its weights and inputs, a table, a budget."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from functools import wraps
from glob import glob
from typing import TYPE_CHECKING, Any

import click

from aap_hw.cli.output import notice
from aap_hw.compile.keys.precision import (
    FP32,
    MIXED,
    NETWORK_PRECISIONS,
    PLANNED_PRECISIONS,
    NetworkPrecision,
    mixture_of,
)
from aap_hw.errors import NOTHING_ASKED, UserError
from aap_hw.prune.defaults import ALLOCATORS, ATTENTION_CUTS, SCORE_SCALES, SCORES, THRESHOLD_WEIGHTS

if TYPE_CHECKING:
    from aap_hw.lut.table import LatencyTable
    from aap_hw.policy import Budget

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]
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
    """A budget of a resource, such as ``20ms``, ``0.02s`` or ``55%`` of latency; with ``several``, a list of them."""

    def __init__(self, name: str, resource: str, *, several: bool = False) -> None:
        self.name, self._resource, self._several = name, resource, several

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the text into a Budget, or a tuple of Budgets; bad text is a UserError that says what to type."""
        from aap_hw.policy.budget import RESOURCES, Budget

        if not isinstance(value, str):
            return value
        resource = RESOURCES[self._resource]
        # One number with a comma in it, as half the world writes them, is told from a list.
        if self._several and "," in value and not re.fullmatch(r"\d+,\d+ *[^\d,]*", value.strip()):
            return tuple(Budget.parse(each.strip(), resource) for each in value.split(","))
        return Budget.parse(value, resource)


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


def _devices(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from aap_hw.device.profile import profile_names

    return [name for name in profile_names() if name.startswith(incomplete)]


def device_option_of(required: bool) -> Decorator:
    """The option that names a device profile."""
    return click.option(
        "--device",
        required=required,
        metavar="NAME",
        shell_complete=_devices,
        help="A device profile: its name ('aap-hw devices' lists them) or the path of a TOML file.",
    )


device_option = device_option_of(required=True)
connect_option = click.option(
    "--connect",
    "connect_to",
    metavar="WHERE",
    help="Where the device is, if not where its profile says: local, rpc://HOST:PORT or tracker://HOST:PORT/KEY. Write "
    "rpc://HOST:PORT/KEY if the board's server was started with another --key than the device's name.",
)
_INPUTS = (
    click.option(
        "--input",
        "inputs",
        type=InputsText(),
        help="Shape of one input, without the batch: 3x224x224 for images, 1x16000 for sound, NAME:TYPE:SHAPE,... for "
        "several inputs; default: what is usual for the network.",
    ),
    click.option(
        "--example",
        metavar="FILE.npz",
        help="Real inputs, instead of --input: arrays with one sample per row, or a function of yours that returns "
        "them (FILE.py:FUNCTION). Without --data, filters are also ranked by them.",
    ),
)


def input_options(command: Callable[..., None]) -> Callable[..., None]:
    """What the network takes, as ``inputs`` or as ``example``."""
    for option in reversed(_INPUTS):
        command = option(command)
    return command


def _tables(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from aap_hw.lut.finding import shipped_tables

    # A shell that is told to look for files itself forgets the names.
    folders = [f"{folder}/" for folder in glob(f"{incomplete}*") if os.path.isdir(folder)]
    names = [name for name in shipped_tables() if name.startswith(incomplete)]
    return [*names, *folders, *glob(f"{incomplete}*.json")]


def lut_option_of(required: bool) -> Decorator:
    """The option that names a table."""
    return click.option(
        "--lut",
        "lut_path",
        required=required,
        metavar="FILE",
        shell_complete=_tables,
        help="The device's latency table: a file that 'aap-hw profile' wrote, such as lut/x86.json, or the name of a "
        "table that comes with aap-hw, such as x86 (see 'aap-hw lut list').",
    )


lut_option = lut_option_of(required=True)
_LATENCY_HELP = "Latency to reach on the device: 20ms, 0.02s, or 55% of the unpruned network's"
_LATENCY = click.option("--budget", type=BudgetText("TIME", "latency"), help=f"{_LATENCY_HELP}.")
_LATENCIES = click.option(
    "--budget",
    type=BudgetText("TIME,...", "latency", several=True),
    help=f"{_LATENCY_HELP}. Several, such as 20%,40%,60%,80%, give the trade-off curve.",
)
_BUDGETS = (
    click.option(
        "--max-params", type=BudgetText("NUMBER", "parameters"), help="At most so many parameters: 2M, 500k, or 40%."
    ),
    click.option(
        "--max-flops",
        type=BudgetText("NUMBER", "flops"),
        help="At most so many multiply-accumulates (many call these FLOPs): 150M, 1.2G, or 50%.",
    ),
    click.option(
        "--max-memory",
        type=BudgetText("SIZE", "memory"),
        help="At most so much memory: 5MB, 800kB, or 40%. What counts is the weights as compiled and the feature maps "
        "that are needed at the same time.",
    ),
)


def budget_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say what to prune to; the command takes them as one list, ``budgets``."""
    return _with_budgets(command, _LATENCY)


def budgets_options(command: Callable[..., None]) -> Callable[..., None]:
    """As `budget_options`, but several budgets of latency may be given; ``latencies`` is empty or has them all."""

    @wraps(command)
    def with_latencies(*, budgets: list[Any], **others: Any) -> None:
        latencies = budgets[0] if isinstance(budgets[0], tuple) else ()
        command(budgets=budgets[1:] if latencies else budgets, latencies=latencies, **others)

    return _with_budgets(with_latencies, _LATENCIES)


def _with_budgets(command: Callable[..., None], latency: Decorator) -> Callable[..., None]:
    @wraps(command)
    def with_budgets(
        *, budget: Budget, max_params: Budget, max_flops: Budget, max_memory: Budget, **others: Any
    ) -> None:
        budgets = [each for each in (budget, max_params, max_flops, max_memory) if each is not None]
        if not budgets and others.get("max_accuracy_drop") is None and others.get("resume") is None:
            raise UserError(NOTHING_ASKED)
        command(budgets=budgets, **others)

    result: Callable[..., None] = with_budgets
    for option in reversed((latency, *_BUDGETS)):
        result = option(result)
    return result


class PrecisionText(click.Choice[Any]):
    """One of some precisions, or a mixture whose precisions may be named in any order."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the text; what plans cannot mix is a UserError that says what to give instead."""
        is_mixture = isinstance(value, str) and value.startswith(f"{MIXED}:") and MIXED in self.choices
        return mixture_of(value) if is_mixture else super().convert(value, param, ctx)


def precision_option_of(precisions: Sequence[NetworkPrecision], *, more: str = "") -> Decorator:
    """The option that names a network's precision."""
    return click.option(
        "--precision",
        type=PrecisionText(precisions),
        default=FP32,
        show_default=True,
        help="What the network computes in. half: bfloat16 or float16, whichever the device has. int8: bytes, wherever "
        f"there are kernels for them.{more}",
    )


precision_option = precision_option_of(NETWORK_PRECISIONS)
planned_precision_option = precision_option_of(
    PLANNED_PRECISIONS,
    more=" mixed: the plan chooses int8 or float32 for each channel group; mixed:int8,half: int8 or half.",
)
float_layers_option = click.option(
    "--float-layer",
    "float_layers",
    multiple=True,
    metavar="NAME",
    help="With --precision int8: a layer that may stay in float32, such as 'layer1.0.conv1'; can be repeated.",
)
weights_option = click.option(
    "--weights",
    metavar="WEIGHTS",
    help="Trained weights: 'pretrained' for those that torchvision or timm publish, or one of these by name "
    "(IMAGENET1K_V2, timm:NAME.TAG, hf-hub:ORG/NAME); a checkpoint file of yours (safetensors or torch.save); "
    "'embedded' (resnet20 only); 'none'. Default: random ones, or what your own code sets; 'embedded' with "
    "--data embedded.",
)
measured_weights_option = click.option(
    "--weights",
    metavar="WEIGHTS",
    help="The weights that the network will have, as for 'aap-hw plan'. They may say the size of its input and its "
    "number of classes; latencies do not depend on the numbers in them.",
)
trained_option = click.option(
    "--weights",
    metavar="FILE",
    help="A checkpoint of the pruned network, aap_hw.load(RUN), after code of yours has trained it; default: the "
    "weights that the run ended with.",
)
_DATA = (
    click.option(
        "--data",
        metavar="SOURCE",
        help="Images or other samples: embedded, cifar10:FOLDER, fashion-mnist:FOLDER, imagefolder:FOLDER, npz:FILE, "
        "or a function of yours as MODULE:FUNCTION.",
    ),
    click.option("--limit", type=click.IntRange(min=2), metavar="N", help="At most N images per split."),
    click.option(
        "--normalise",
        type=Normalisation(),
        help="Mean and deviation of each channel, for pixels between 0 and 1: 0.5,0.5,0.5/0.25,0.25,0.25; default: as "
        "the weights or the images have it.",
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
    metavar="N",
    help="Build a network that has a name for N classes; default: its usual number.",
)
calibration_option = click.option(
    "--calibration-images",
    type=click.IntRange(min=1),
    metavar="N",
    help="Rank filters by N images; default: from 16 at 224x224 to 512 at 32x32.",
)
score_option = click.option(
    "--score",
    type=click.Choice(SCORES),
    help="Filter importance criterion. read-attention (default): what a filter adds to what the next layers read. "
    "attention (default with --allocator threshold): the paper's mean activation, which has nothing to do with "
    "transformers.",
)
score_scale_option = click.option(
    "--score-scale",
    type=click.Choice(SCORE_SCALES),
    default="raw",
    show_default=True,
    help="How scores of different groups are made comparable. Only 'rank' changes what --allocator exact chooses.",
)
_ALLOCATORS = (
    click.option(
        "--allocator",
        type=click.Choice(ALLOCATORS),
        default="exact",
        show_default=True,
        help="How widths are chosen. exact: the plan that keeps the most within the budget. threshold: the paper's "
        "rule.",
    ),
    click.option(
        "--threshold-weights",
        type=click.Choice(THRESHOLD_WEIGHTS),
        help="What --allocator threshold weighs a group by; default: the first of these that has a budget, else "
        "parameters.",
    ),
)


depth_option = click.option(
    "--no-depth",
    "depth",
    flag_value=False,
    default=True,
    help="Keep every residual branch, however narrow; without this, whole branches may go.",
)

attention_cuts_option = click.option(
    "--attention-cuts",
    type=click.Choice(ATTENTION_CUTS),
    default="widths",
    show_default=True,
    help="In transformers: narrow all heads of a block alike (widths), or remove whole heads where the code allows it.",
)

renormalised_option = click.option(
    "--renormalised/--no-renormalised",
    default=None,
    help="Whether to cut channels that a norm averages over, as a layer norm does; default: only if the network is "
    "trained afterwards.",
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
    help="Cut only channel groups with such a name, like 'layer1.*', or kind, like 'kind:mlp'; can be repeated.",
)
skip_option = click.option(
    "--skip",
    multiple=True,
    metavar="GLOB",
    help="Do not cut channel groups with such a name or kind ('aap-hw plan' shows both); can be repeated.",
)
_UNMEASURED = (
    click.option("--allow-emulated", is_flag=True, help="Accept a table that was made on an emulated device."),
    click.option("--allow-estimated", is_flag=True, help="Accept a table that was estimated without the device."),
)


def unmeasured_options(command: Callable[..., None]) -> Callable[..., None]:
    """Whether a table may be used that was not measured on the device."""
    for option in reversed(_UNMEASURED):
        command = option(command)
    return command


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
    """The latency table that an option names."""
    from aap_hw.given import table_of

    return table_of(text)


def read_table_to_predict(text: str, model: str, precision: NetworkPrecision = FP32) -> LatencyTable:
    """The latency table that an option names, with a notice if its latencies are no longer those of today's kernels."""
    from aap_hw import ranks

    table = read_table(text)
    if table.is_outdated and ranks.is_first():
        asked = f"--device {table.device['name']} --model {model}{' --estimate' if table.is_estimated else ''}"
        asked += "" if precision == FP32 else f" --precision {precision}"
        notice(
            f"the latencies in {text} are of kernels as another version of aap-hw compiled them, so that predictions "
            f"may be off; make the table anew with 'aap-hw profile {asked}'"
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
