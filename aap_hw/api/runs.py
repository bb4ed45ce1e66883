"""``aap_hw.prune``, ``resume`` and ``report``: a run, begun, gone on with, and shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aap_hw.errors import UserError
from aap_hw.given import StrPath, budgets_of, nobody, origin_of, source_of, table_of, tell_of_published

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aap_hw.inputs import Given
    from aap_hw.lut.table import LatencyTable
    from aap_hw.policy import Budget
    from aap_hw.prune.events import Event, OnEvent
    from aap_hw.prune.job import Pruned
    from aap_hw.prune.task import PruneSettings
    from aap_hw.train.sources import ImageSource

# What tells budgets of different resources apart in the name of a run's folder.
_SUFFIX = {"latency": "", "parameters": "-params", "flops": "-flops", "memory": "-memory"}


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
    weights: StrPath | None = None,
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
        As for ``profile``. Without ``data``, filters are ranked by the example, and the result is checked with it.
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
        raise UserError("--download fetches the images of --data; add --data")
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
    network = f"{origin.short}-{table.device['name']}"
    folder = _usual_folder(network, budgets, max_accuracy_drop, settings) if out is None else Path(out)

    def tell(event: Event) -> None:
        if event.name == "start" and weights is None:  # nothing is wrong with what was asked for
            tell_of_published(origin)
        (on_event or nobody)(event)

    return start(job, table, folder, tell, download=download)


def _usual_folder(
    network: str, budgets: Sequence[Budget], max_accuracy_drop: float | None, settings: PruneSettings
) -> Path:
    """Below ``runs``, by what is asked for, but for what is usual."""
    parts = [network, *(str(each).replace("%", "pct") + _SUFFIX[each.resource.name] for each in budgets)]
    parts += [] if max_accuracy_drop is None else [f"{max_accuracy_drop:g}-drop"]
    parts += [settings.precision] if settings.precision != "fp32" else []
    parts += [settings.score] if settings.score else []
    parts += [settings.allocator] if settings.allocator != "exact" else []
    return Path("runs", "-".join(parts))


def resume(run: StrPath, *, connect: str | None = None, on_event: OnEvent | None = None) -> Pruned:
    """Go on with a run that was ended early, to the result that it would have had.

    Earlier events are sent again, except those of single steps. Until it ends, the working folder is the one that the
    run was begun in, so that relative paths mean what they meant. Code that the run was begun with, such as a network's
    or a function that gives images, runs again, with all your rights.

    Parameters
    ----------
    run
        The run's folder.
    connect
        How the device is reached from now on, if its address has changed since.
    on_event
        As for ``prune``.

    Raises
    ------
    UserError : there is no unfinished run, or its files are damaged.
    """
    from aap_hw.prune import job

    return job.resume(Path(run), on_event or nobody, connect)


def report(*runs: StrPath, out: StrPath | None = None) -> Path:
    """Write the report of a run, or the comparison of several, as one HTML file; the file.

    By default it is ``report.html`` in the run's folder, or ``comparison.html`` beside the folder of the first run.

    Raises
    ------
    UserError : a folder holds no finished run, or the file cannot be written.
    """
    from aap_hw.report.writing import write_report

    return write_report([Path(run) for run in runs], None if out is None else Path(out))
