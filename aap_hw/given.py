"""What a caller gives, as a text that a person types or as a value, turned into what the package works with."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aap_hw.compile.keys.precision import INT8, PLANNED_PRECISIONS
from aap_hw.errors import NOTHING_ASKED, UserError, closest

if TYPE_CHECKING:
    from aap_hw.compile.keys.precision import NetworkPrecision
    from aap_hw.device.profile import DeviceProfile
    from aap_hw.inputs import Given
    from aap_hw.lut.subject import Workload
    from aap_hw.lut.table import LatencyTable
    from aap_hw.models.origin import Origin
    from aap_hw.models.weights import WeightsFile
    from aap_hw.policy import Budget
    from aap_hw.prune.defaults import AttentionCuts
    from aap_hw.train.samples import Samples
    from aap_hw.train.sources import ImageSource

LOG = logging.getLogger(__name__)
StrPath = str | os.PathLike[str]
NO_SAMPLES = (
    "int8 needs samples of what the network will see, on which it measures the ranges of values: give --data or "
    "--example"
)


def table_of(lut: StrPath | LatencyTable) -> LatencyTable:
    """A latency table, or the one of a file, which may be the results of a check by folder (``aap_hw.pack``)."""
    from aap_hw.lut.file import OtherVersion
    from aap_hw.lut.finding import find_file, find_table
    from aap_hw.lut.table import LatencyTable

    if isinstance(lut, LatencyTable):
        return lut
    try:
        return find_table(os.fspath(lut))
    except OtherVersion:
        from aap_hw.pack.tables import is_results, read_check

        path = find_file(os.fspath(lut))
        if not is_results(path):
            raise
        return read_check(path)


def to_profile(
    device: str,
    out: StrPath | None,
    precision: str,
    float_layers: Collection[str],
    precisions: Sequence[str] = PLANNED_PRECISIONS,
) -> tuple[DeviceProfile, Path]:
    """The device that a table is wanted of, and the table's path: `out`, or ``lut/DEVICE.json``.

    Raises
    ------
    UserError : the precision is none of ``precisions`` or has no layers in float32, there is no such device, or the
        table's folder cannot be written to.
    """
    from aap_hw.device import load_profile
    from aap_hw.files import require_writable_folder
    from aap_hw.validation import one_of, require

    require(
        "profile",
        one_of("precision", precision, precisions),
        (precision == INT8 or not float_layers, "layers stay in float32 in a network in int8; add --precision int8"),
    )
    profile = load_profile(device)
    path = Path("lut") / f"{profile.name}.json" if out is None else Path(out)
    require_writable_folder(path.parent)
    return profile, path


def source_of(data: str | ImageSource | None) -> ImageSource | None:
    """Where images come from, if any are given. Raises UserError if it is neither a text nor a source."""
    from aap_hw.train.sources import ImageSource

    if data is not None and not isinstance(data, str | ImageSource):
        raise UserError(
            f"images are given by a text, such as 'imagefolder:photos', or an aap_hw.ImageSource, and not by a "
            f"{type(data).__name__}"
        )
    return ImageSource(data) if isinstance(data, str) else data


def budgets_of(
    latency: str | Budget | None,
    parameters: str | Budget | None,
    flops: str | Budget | None,
    memory: str | Budget | None,
    *,
    needed: bool = True,
) -> Sequence[Budget]:
    """The budgets that are given.

    Raises
    ------
    UserError : none is given and one is ``needed``, or one is no budget of its resource.
    """
    from aap_hw.policy import RESOURCES, Budget

    given: dict[str, object] = {"latency": latency, "parameters": parameters, "flops": flops, "memory": memory}
    budgets: list[Budget] = []
    for name, asked in given.items():
        if asked is None:
            continue
        resource = RESOURCES[name]
        budget = Budget.parse(asked, resource) if isinstance(asked, str) else asked
        if isinstance(budget, Budget) and budget.resource == resource:
            budgets.append(budget)
            continue
        wrong = f"given a budget of {budget.resource.name}" if isinstance(budget, Budget) else repr(asked)
        raise UserError(
            f"the budget of {name} is {wrong}; write it as text, for example {resource.examples[0]} or '55%'"
        )
    if needed and not budgets:
        raise UserError(NOTHING_ASKED)
    return budgets


def origin_of(
    model: object,
    input_shape: Given | None,
    example: str | None = None,
    weights: StrPath | None = None,
    classes: int | None = None,
    source: ImageSource | None = None,
    *,
    may_be_quantised: bool = False,
) -> Origin:
    """The network that is asked for; published weights are fetched.

    With the embedded images as ``source``, a network that was trained on them has its trained weights by default.

    Raises
    ------
    UserError : there is no such network or no such weights, they do not fit each other, or it is no text.
    """
    from aap_hw.models import zoo
    from aap_hw.models.origin import Origin
    from aap_hw.train.sources.example import inputs_given

    if not isinstance(model, str):
        raise UserError(
            f"a network is given by a text, from which a run makes it again, and not by a {type(model).__name__}; "
            "write a function that returns it and name that: 'FILE.py:FUNCTION' or 'PACKAGE.MODULE:FUNCTION'"
        )
    is_embedded = source is not None and source.text == "embedded"
    if weights is None and is_embedded and model in zoo.names() and zoo.entry(model).embedded:
        weights = "embedded"
    inputs = inputs_given(input_shape, example)
    given = weights_of(weights, model, classes)
    return Origin.of(model, inputs, given, classes, may_be_quantised=may_be_quantised)


def weights_of(weights: StrPath | None, model: str, classes: int | None = None) -> str | WeightsFile | None:
    """The weights that ``--weights`` names: ``embedded``, ``none``, a checkpoint's path, or a name of published ones.

    A file goes before a name that it looks like; a folder does not. Published weights are fetched.

    Raises
    ------
    UserError : there are no such weights, or not for this network and so many classes.
    """
    from aap_hw.models import published
    from aap_hw.models.checkpoints.files import distributed
    from aap_hw.models.source import find
    from aap_hw.models.weights import WeightsFile

    if weights is None or weights == "none":
        return None
    text = os.fspath(weights)
    if text == "embedded":
        return text
    path = Path(text)
    if path.is_file():
        return WeightsFile.at(text)
    if published.is_name(text):
        return published.file_of(find(model).text, text, classes)
    if path.is_dir():
        raise UserError(
            distributed(path)
            if (path / ".metadata").exists()
            else f"the weights {text} are a folder; give the file in it that holds the weights"
        )
    raise UserError(
        f"there are no weights '{text}': give the path of a checkpoint, 'pretrained', a name such as "
        f"IMAGENET1K_V1, timm:NAME.TAG or hf-hub:ORG/NAME, 'embedded' or 'none'"
        f"{closest(text, ['pretrained', 'embedded', 'none'])}"
    )


def workload_of(
    origin: Origin,
    attention_cuts: AttentionCuts,
    precision: NetworkPrecision,
    float_layers: Collection[str] = (),
) -> Workload:
    """The network that a device is to be profiled for, built; the values are those of ``aap_hw.profile``."""
    from aap_hw.lut.subject import Workload

    heads = attention_cuts == "heads"
    return Workload(origin.model, origin.build(), origin.inputs, heads, precision, tuple(float_layers))


def tell_of_published(origin: Origin) -> None:
    """Say, where a network gets random weights, which ones its library publishes for it."""
    from aap_hw import ranks
    from aap_hw.models import published, zoo

    if origin.weights is not None or not ranks.is_first():
        return
    told = "%s gets random weights, with which the choice of filters means nothing; --weights %s"
    if origin.model in zoo.names() and zoo.entry(origin.model).embedded:
        if origin.outputs in (None, zoo.entry(origin.model).classes):
            LOG.warning(told, origin.model, "embedded takes trained ones")
        return
    name = published.known(origin.model)
    if name is None:
        return
    if origin.outputs is None or published.find(origin.model, name).count == origin.outputs:
        LOG.warning(told, origin.model, f"pretrained takes those that are published for it ({name})")


def to_deploy(
    model: str,
    device: str,
    *,
    input_shape: Given | None,
    example: str | None,
    weights: StrPath | None,
    classes: int | None,
    data: str | ImageSource | None,
    precision: str | None,
    pixels: bool,
    out: StrPath | None,
) -> tuple[Origin, Samples, Path]:
    """A network, the samples to check it with, and the folder of its bundle.

    Raises
    ------
    UserError : the network or the samples cannot be used, or int8 or pixels lack the samples that they need.
    """
    from aap_hw.prune.samples import samples_for

    source = source_of(data)
    origin = origin_of(model, input_shape, example, weights, classes, source, may_be_quantised=True)
    if precision == "int8" and source is None and example is None and not origin.is_quantised:
        raise UserError(NO_SAMPLES)
    if pixels and source is None:
        raise UserError("with --pixels the network normalises its image as those of --data are; give --data")
    samples = samples_for(origin, source, example)
    return origin, samples, Path(f"bundle-{origin.short}-{device}") if out is None else Path(out)


def nobody(_: object) -> None:
    """The listener of a caller who gave none."""
