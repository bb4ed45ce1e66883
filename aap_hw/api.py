"""What the command line can do, as functions: the same names, the same values, the same result.

``aap_hw.profile``, ``plan``, ``prune``, ``resume``, ``deploy``, ``bundle`` and ``report``; ``plan_curve`` is ``plan``
with several budgets, and ``deploy_model`` and ``bundle_model`` are ``deploy`` with ``--model`` instead of a run. Each
takes texts as a person types them (``"60%"``, ``"20ms"``, ``"imagefolder:photos"``) or values, and raises
``aap_hw.UserError`` with one sentence for what a person can put right. What takes long tells how far it is through a
callback.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from aap_hw.compile.keys.precision import FP32, NetworkPrecision
from aap_hw.errors import UserError
from aap_hw.given import StrPath, budgets_of, origin_of, source_of, table_of, tell_of_published, to_deploy, to_profile

if TYPE_CHECKING:
    from aap_hw.compile.front.network import Network
    from aap_hw.deploy.deploying import Deployment
    from aap_hw.graph.program.inputs import Given
    from aap_hw.lut.progress import ProgressCallback
    from aap_hw.lut.table import LatencyTable
    from aap_hw.models.origin import Origin
    from aap_hw.policy import Budget
    from aap_hw.prune.baseline import Baseline
    from aap_hw.prune.curve import CurvePoint
    from aap_hw.prune.defaults import AttentionCuts
    from aap_hw.prune.job import Pruned
    from aap_hw.prune.planning import Plan
    from aap_hw.prune.proposal import Proposal
    from aap_hw.prune.steps import Event, OnEvent
    from aap_hw.prune.task import PruneSettings, Task
    from aap_hw.train.sources import ImageSource

# What tells budgets of different resources apart in the name of a run's folder.
_SUFFIX = {"latency": "", "parameters": "-params", "flops": "-flops", "memory": "-memory"}


@dataclass(frozen=True)
class Profile:
    """A table that is to be measured, or was.

    Attributes
    ----------
    path : its file.
    origin : the network.
    set_aside : what a table of another machine, or an estimated one, that was there is called now, if there was one.
    table : all of it, once it is measured.
    network : its kernels; `Network.slow_path` says which have no schedule.
    precision : what it computes in.
    """

    path: Path
    origin: Origin
    set_aside: Path | None
    network: Network
    table: LatencyTable | None = None
    precision: NetworkPrecision = FP32

    @property
    def dense_ms(self) -> float | None:
        """Latency of the unpruned network in ms, once it is measured, or estimated if the table is."""
        if self.table is None:
            return None
        asked = self.origin.model, self.origin.inputs, self.precision
        return self.table.slowdown(*asked).measured_us / 1e3 if self.table.is_estimated else self.table.dense_ms(*asked)

    @property
    def slow_share(self) -> float | None:
        """Share of the unpruned network's time that kernels without a schedule take, once it is measured."""
        from aap_hw.lut.predicting import kernel_latencies, slow_share

        if self.table is None:
            return None
        return slow_share(kernel_latencies(self.network, self.network.dense, self.table))


def profile(
    device: str,
    model: str = "mobilenetv2",
    *,
    connect: str | None = None,
    input_shape: Given | None = None,
    example: str | None = None,
    weights: str | None = None,
    classes: int | None = None,
    out: StrPath | None = None,
    workers: int | None = None,
    use_cache: bool = True,
    attention_cuts: AttentionCuts = "widths",
    precision: NetworkPrecision = FP32,
    float_layers: Collection[str] = (),
    on_start: Callable[[Profile], None] | None = None,
    on_progress: ProgressCallback | None = None,
    on_notice: Callable[[str], None] | None = None,
) -> Profile:
    """Measure on a device what each width of each kernel of a network costs, and write the table.

    What is in the table already is not measured again; an interrupted call is taken up by the next one.

    Parameters
    ----------
    device
        A device profile's name, or the path of its TOML file.
    model
        Where the network comes from; see ``aap_hw.models.source``.
    connect
        How the device is reached, instead of as its profile says: ``"rpc://HOST:PORT"`` and the like.
    input_shape
        What the network takes: the shape of one sample, such as (C, H, W) of an image, or a text as of ``--input``,
        such as ``"ids:int64:128"``; by default what is usual for the network.
    example
        A ``.npz`` file or function of yours with real inputs, of whose shapes and types the network is then; see
        ``aap_hw.train.sources.example``.
    weights, classes
        As for ``prune``: weights may say the size of the input and the number of classes. They are fetched, and checked
        to fit, before anything is measured.
    out
        The table to write or extend; by default ``lut/DEVICE.json``. A table of another machine that is there is then
        renamed first; an estimated one is wherever it is.
    workers
        Processes that compile; by default one a core.
    use_cache
        Whether compiled kernels are looked for and kept in the user's cache folder.
    attention_cuts
        What plans may cut attention in, ``"widths"`` of heads or whole ``"heads"``: their kernels are other ones.
    precision
        What the network computes in: ``"fp32"``, ``"half"`` or ``"int8"``, or ``"mixed"`` for plans that choose int8
        or float32 for each group, ``"mixed:int8,half"`` for int8 or half precision. One table holds them all.
    float_layers
        Layers of the network in int8 that may stay in float32, such as ``"layer1.0.conv1"``: what their kernels cost is
        measured too.
    on_start
        Called once with what is about to be measured, when the device and all files are found to be in order.
    on_progress
        Called with a ``Progress`` as points and networks are measured.
    on_notice
        Called with a sentence when one of several boards is lost or not used, or compiled kernels cannot be kept.

    Raises
    ------
    UserError : the device cannot be reached or has no kernels of the precision, or the table is of another one,
        damaged, or cannot be written.
    """
    from aap_hw.device.boards import Boards
    from aap_hw.lut.library_cache import users_cache
    from aap_hw.lut.opening import set_aside
    from aap_hw.lut.profiling import profile_model

    profile, path = to_profile(device, out, precision, float_layers)
    with closing(Boards(profile.reached_by(connect), on_notice or _ignored)) as boards:
        origin = origin_of(model, input_shape, example, weights, classes)
        module = origin.build()
        begun: list[Profile] = []

        def start(network: Network) -> None:
            # Only now, as a network that is refused must leave a table of another machine where it is.
            moved = set_aside(path, boards, others=out is None)
            begun.append(Profile(path, origin, moved, network, precision=precision))
            (on_start or _ignored)(begun[0])

        report_to = on_progress or _ignored
        cache = users_cache().usable(on_notice or _ignored) if use_cache else None
        table = profile_model(
            origin.model,
            module,
            origin.inputs,
            boards,
            path,
            on_network=start,
            on_progress=report_to,
            workers=workers,
            cache=cache,
            heads=attention_cuts == "heads",
            precision=precision,
            floats=float_layers,
        )
    return replace(begun[0], table=table)


def plan(
    model: str,
    lut: StrPath | LatencyTable,
    budget: str | Budget | None = None,
    *,
    max_params: str | Budget | None = None,
    max_flops: str | Budget | None = None,
    max_memory: str | Budget | None = None,
    input_shape: Given | None = None,
    example: str | None = None,
    data: str | ImageSource | None = None,
    weights: str | None = None,
    classes: int | None = None,
    settings: PruneSettings | None = None,
    allow_emulated: bool = False,
    allow_estimated: bool = False,
) -> Proposal:
    """The widths that ``prune`` would choose in one step, without anything being cut.

    The parameters are those of ``prune``. Latencies are of ``settings.precision``, and so is the share of a budget.

    Raises
    ------
    UserError : the network, the table or the images cannot be used, or no plan keeps the budgets.
    """
    from aap_hw.prune.baseline import plan_once
    from aap_hw.prune.task import PruneSettings

    budgets = budgets_of(budget, max_params, max_flops, max_memory)
    task = _task_of(model, lut, input_shape, example, data, weights, classes, allow_emulated, allow_estimated)
    settings = settings or PruneSettings()
    dense, chosen = plan_once(task, budgets, settings)
    if weights is None:
        tell_of_published(task.origin)
    return _proposal(task, dense, chosen, budgets, settings)


def plan_curve(
    model: str,
    lut: StrPath | LatencyTable,
    budgets: Sequence[str | Budget],
    *,
    max_params: str | Budget | None = None,
    max_flops: str | Budget | None = None,
    max_memory: str | Budget | None = None,
    input_shape: Given | None = None,
    example: str | None = None,
    data: str | ImageSource | None = None,
    weights: str | None = None,
    classes: int | None = None,
    settings: PruneSettings | None = None,
    allow_emulated: bool = False,
    allow_estimated: bool = False,
) -> list[CurvePoint]:
    """What ``plan`` would choose for each of several budgets of latency: the network is traced and scored once.

    Parameters
    ----------
    budgets
        Budgets of latency, such as ``["20%", "40%", "60%"]`` or ``["5ms", "8ms"]``; the points keep their order. The
        other budgets hold for every point.

    Raises
    ------
    UserError : none of the budgets can be kept, all are kept unpruned, or as for ``plan``.
    """
    from aap_hw.prune.curve import CurvePoint, plans_for
    from aap_hw.prune.planning import Plan
    from aap_hw.prune.task import PruneSettings

    if not budgets:
        raise UserError("a curve needs budgets of latency; give some, such as ['20%', '40%', '60%']")
    others = budgets_of(None, max_params, max_flops, max_memory, needed=False)
    latencies = [budgets_of(each, None, None, None)[0] for each in budgets]
    task = _task_of(model, lut, input_shape, example, data, weights, classes, allow_emulated, allow_estimated)
    settings = settings or PruneSettings()
    dense, found = plans_for(task, latencies, others, settings)
    if weights is None:
        tell_of_published(task.origin)
    return [
        CurvePoint(latency, _proposal(task, dense, each, [latency, *others], settings))
        if isinstance(each, Plan)
        else CurvePoint(latency, None, str(each or ""))
        for latency, each in zip(latencies, found, strict=True)
    ]


def _task_of(
    model: str,
    lut: StrPath | LatencyTable,
    input_shape: Given | None,
    example: str | None,
    data: str | ImageSource | None,
    weights: str | None,
    classes: int | None,
    allow_emulated: bool,
    allow_estimated: bool,
) -> Task:
    from aap_hw.prune.shown import samples_for
    from aap_hw.prune.task import Task

    table, source = table_of(lut), source_of(data)
    origin = origin_of(model, input_shape, example, weights, classes, source)
    # As `prune` does, which trains on the images of a source.
    samples, allowed = samples_for(origin, source, example), (allow_emulated, allow_estimated)
    return Task(origin, table, samples, source is not None, None, *allowed)


def _proposal(
    task: Task, dense: Baseline, chosen: Plan, budgets: Sequence[Budget], settings: PruneSettings
) -> Proposal:
    from aap_hw.lut.fidelity import table_error
    from aap_hw.lut.provenance import Estimate
    from aap_hw.prune.proposal import Proposal
    from aap_hw.train.arrays import MadeSamples

    error = table_error(task.table, task.origin.model, task.origin.inputs, settings.precision)
    made_up = isinstance(task.data, MadeSamples)
    estimate, precision = Estimate.of(task.table), settings.precision
    return Proposal(task.origin.model, dense, chosen, budgets, task.table.device, error, made_up, precision, estimate)


def prune(
    model: str,
    lut: StrPath | LatencyTable,
    budget: str | Budget | None = None,
    *,
    max_params: str | Budget | None = None,
    max_flops: str | Budget | None = None,
    max_memory: str | Budget | None = None,
    max_accuracy_drop: float | None = None,
    input_shape: Given | None = None,
    example: str | None = None,
    data: str | ImageSource | None = None,
    download: bool = False,
    train: bool = True,
    weights: str | None = None,
    classes: int | None = None,
    settings: PruneSettings | None = None,
    allow_emulated: bool = False,
    allow_estimated: bool = False,
    device: str | None = None,
    connect: str | None = None,
    out: StrPath | None = None,
    tensorboard: bool = False,
    on_event: OnEvent | None = None,
) -> Pruned:
    """Prune a network until it meets its budgets, keeping an accuracy if that is asked for, and save the run.

    Parameters
    ----------
    model
        Where the network comes from; see ``aap_hw.models.source``.
    lut
        The device's latency table, the path of its file, or the name of one that ships with the package.
    budget, max_params, max_flops, max_memory
        What to prune to, as text or value: ``"20ms"``, ``"55%"``, ``"2M"``, ``"5MB"``. One at least, unless
        ``max_accuracy_drop`` is given.
    max_accuracy_drop
        Percentage points of accuracy that may be lost, beside budgets or instead of them: then the network gets as
        fast as they allow.
    input_shape, example
        As of ``profile``. Without ``data``, the inputs of the example tell which filters matter, and check the result.
    data, download
        Images (``aap_hw.train.sources``) that tell which filters matter and are trained on, fetched first if that is
        wanted; None cuts once by the example, the embedded images or made inputs and trains nothing.
    train
        False to cut once by ``data`` and train nothing: code of yours does.
    weights
        A checkpoint's path, a name (``aap_hw.models.published``: ``"pretrained"``, ``"IMAGENET1K_V2"``,
        ``"timm:NAME.TAG"``, ``"hf-hub:ORG/NAME"``), ``"embedded"`` or ``"none"``. None takes embedded ones where
        embedded images are used. Published weights also say how pictures are prepared and what classes are called.
    settings
        Rounds, training, score, allocator, seed, and what may be cut.
    allow_emulated, allow_estimated
        Accept a table that was measured on an emulator, or that was estimated without any device.
    device
        The profile's name or path of the table's device, which the result is measured on; by default the profile that
        is called as the table's device.
    connect
        How that device is reached, instead of as its profile says: ``"rpc://HOST:PORT"`` and the like.
    out
        The run's folder; by default ``runs/MODEL-DEVICE-BUDGET``.
    tensorboard
        Write the run's figures for TensorBoard into its folder, too.
    on_event
        Called with each ``Event`` of the run; an exception it raises ends the run, which ``resume`` goes on with.

    Raises
    ------
    UserError : the folder holds a run, an input cannot be used, the device is not the table's, or no plan keeps the
        budgets.
    """
    from aap_hw.prune.job import Job, Limit, start
    from aap_hw.prune.task import PruneSettings

    budgets = budgets_of(budget, max_params, max_flops, max_memory, needed=max_accuracy_drop is None)
    table, source = table_of(lut), source_of(data)
    if download and source is None:
        raise UserError("--download fetches the images of --data; say which")
    settings = settings or PruneSettings()
    origin = origin_of(model, input_shape, example, weights, classes, source)
    limits = {each.resource.name: Limit(each.amount, each.relative) for each in budgets}
    job = Job(
        origin,
        source,
        limits,
        max_accuracy_drop,
        settings,
        allow_emulated,
        connect,
        tensorboard,
        device,
        train=train,
        example=example,
        allow_estimated=allow_estimated,
    )
    asked = [str(each).replace("%", "pct") + _SUFFIX[each.resource.name] for each in budgets]
    parts = [origin.short, table.device["name"], *asked]
    parts += [] if max_accuracy_drop is None else [f"{max_accuracy_drop:g}-drop"]
    parts += [settings.precision] if settings.precision != "fp32" else []
    parts += [settings.score] if settings.score else []
    parts += [settings.allocator] if settings.allocator != "exact" else []
    folder = Path("runs") / "-".join(parts) if out is None else Path(out)

    def tell(event: Event) -> None:
        if event.name == "start" and weights is None:  # nothing is wrong with what was asked for
            tell_of_published(origin)
        (on_event or _ignored)(event)

    return start(job, table, folder, tell, download=download)


def resume(run: StrPath, *, connect: str | None = None, on_event: OnEvent | None = None) -> Pruned:
    """Go on with a run that was ended early, to the result that it would have had.

    Its events of before, but for steps, are sent again. Meanwhile the working folder is the one that the run was begun
    in, so that its relative paths mean what they meant. Code that it was begun with, a network's or a function that
    gives the images, is run again, with all your rights.

    Parameters
    ----------
    connect
        How the device is reached from now on, if its address has changed since.

    Raises
    ------
    UserError : there is no unfinished run, or its files are damaged.
    """
    from aap_hw.prune import job

    return job.resume(Path(run), on_event or _ignored, connect)


def deploy(
    run: StrPath,
    device: str,
    *,
    connect: str | None = None,
    weights: StrPath | None = None,
    data: str | ImageSource | None = None,
    precision: str | None = None,
    pixels: bool = False,
    out: StrPath | None = None,
    on_notice: Callable[[str], None] | None = None,
) -> Deployment:
    """Compile a run's network for a device, check it there against PyTorch, time it, and write its bundle.

    Code that the run was begun with, a network's or a function that gives the images, is run again, with all your
    rights.

    Parameters
    ----------
    run
        Folder of a finished run.
    device, connect
        As of ``profile``.
    weights
        A checkpoint of the cut network, ``aap_hw.load(run)``, which code of yours has trained; by default the run's.
    data
        Images to check it with; by default those that the run was pruned with, else the embedded ones.
    precision
        ``"fp32"``, ``"half"``, or ``"int8"``, for which ranges of values are measured on training images; by default
        what the run was pruned for.
    pixels
        In int8, let the network take bytes (1, H, W, C) from 0 to 255 and normalise them itself.
    out
        The bundle's folder; by default ``RUN/bundle-DEVICE``.
    on_notice
        Called with a sentence when a board is lost, or taken by others, and waited for.

    Raises
    ------
    UserError : the run is of another device, the weights of another network, or the device cannot be reached.
    Fault : the compiled network does not compute what PyTorch does.
    """
    from aap_hw.deploy.deploying import deploy as deploy_run
    from aap_hw.device import load_profile
    from aap_hw.device.boards import PATIENCE_S, Boards
    from aap_hw.prune.job import samples_of
    from aap_hw.prune.run import RunFolder

    description = load_profile(device).reached_by(connect)
    samples = samples_of(Path(run), source_of(data))
    with closing(Boards(description, on_notice or _ignored, PATIENCE_S)) as boards:
        folder = None if out is None else Path(out)
        return deploy_run(RunFolder.at(run, weights), boards, samples, folder, precision, pixels=pixels)


def bundle(
    run: StrPath,
    device: str,
    *,
    weights: StrPath | None = None,
    data: str | ImageSource | None = None,
    precision: str | None = None,
    pixels: bool = False,
    out: StrPath | None = None,
) -> Path:
    """Compile a run's network for a device that is not at hand, and write its bundle; the bundle's folder.

    Code that the run was begun with is run again, as by ``deploy``, whose parameters these are.

    Raises
    ------
    UserError : the run is of another device, the weights of another network, or there is no compiler for it.
    """
    from aap_hw.deploy.deploying import bundle_unseen
    from aap_hw.device import load_profile
    from aap_hw.prune.job import samples_of
    from aap_hw.prune.run import RunFolder

    samples = samples_of(Path(run), source_of(data))
    folder = None if out is None else Path(out)
    return bundle_unseen(RunFolder.at(run, weights), load_profile(device), samples, folder, precision, pixels=pixels)


def deploy_model(
    model: str,
    device: str,
    *,
    connect: str | None = None,
    input_shape: Given | None = None,
    example: str | None = None,
    weights: str | None = None,
    classes: int | None = None,
    data: str | ImageSource | None = None,
    precision: str | None = None,
    pixels: bool = False,
    out: StrPath | None = None,
    on_notice: Callable[[str], None] | None = None,
) -> Deployment:
    """Compile a network as it is for a device, check it there against PyTorch, time it, and write its bundle.

    Parameters
    ----------
    model, input_shape, example, weights, classes, data
        As of ``prune``. The network may be a ``.pt2`` file that is quantised already.
    device, connect, on_notice
        As of ``deploy``.
    precision
        ``"half"``, or ``"int8"``, which quantises the network on training samples of ``data`` or ``example``; by
        default it stays as it is.
    pixels
        As of ``deploy``.
    out
        The bundle's folder; by default ``bundle-MODEL-DEVICE``.

    Raises
    ------
    UserError : the network or the samples cannot be used, or the device cannot be reached.
    Fault : the compiled network does not compute what PyTorch does.
    """
    from aap_hw.deploy.deploying import deploy_model as deploy_origin
    from aap_hw.device import load_profile
    from aap_hw.device.boards import PATIENCE_S, Boards

    description = load_profile(device).reached_by(connect)
    origin, samples, folder = to_deploy(
        model, input_shape, example, weights, classes, data, precision, pixels, out, description.name
    )
    with closing(Boards(description, on_notice or _ignored, PATIENCE_S)) as boards:
        return deploy_origin(origin, boards, samples, folder, precision, pixels=pixels)


def bundle_model(
    model: str,
    device: str,
    *,
    input_shape: Given | None = None,
    example: str | None = None,
    weights: str | None = None,
    classes: int | None = None,
    data: str | ImageSource | None = None,
    precision: str | None = None,
    pixels: bool = False,
    out: StrPath | None = None,
) -> Path:
    """Compile a network as it is for a device that is not at hand, and write its bundle; the bundle's folder.

    The parameters are those of ``deploy_model``.

    Raises
    ------
    UserError : the network or the samples cannot be used, or there is no compiler for the device.
    """
    from aap_hw.deploy.deploying import bundle_model_unseen
    from aap_hw.device import load_profile

    profile = load_profile(device)
    origin, samples, folder = to_deploy(
        model, input_shape, example, weights, classes, data, precision, pixels, out, profile.name
    )
    return bundle_model_unseen(origin, profile, samples, folder, precision, pixels=pixels)


def report(*runs: StrPath, out: StrPath | None = None) -> Path:
    """Write the report of a run, or the comparison of several, as one HTML file; the file.

    Raises
    ------
    UserError : a folder holds no finished run, or the file cannot be written.
    """
    from aap_hw.report.writing import write_report

    return write_report([Path(run) for run in runs], None if out is None else Path(out))


def _ignored(_: object) -> None:
    """Nobody wants to know."""
