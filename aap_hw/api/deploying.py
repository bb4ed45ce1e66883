"""``aap_hw.deploy``, ``bundle``, ``deploy_model`` and ``bundle_model``: from a run, or any network, to its bundle."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from aap_hw.given import StrPath, nobody, source_of, to_deploy

if TYPE_CHECKING:
    from aap_hw.deploy.deploying import Deployment
    from aap_hw.inputs import Given
    from aap_hw.train.sources import ImageSource


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

    Code that the run was begun with, such as a network's or a function that gives images, runs again, with all your
    rights.

    Parameters
    ----------
    run
        Folder of a finished run.
    device, connect
        As for ``profile``.
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
        Called with a sentence when a board is lost, or is taken by others and waited for.

    Raises
    ------
    UserError : the run is for another device, the weights are of another network, or the device cannot be reached.
    Fault : the compiled network does not compute what PyTorch does.
    """
    from aap_hw.deploy.deploying import deploy as deploy_run
    from aap_hw.device import load_profile
    from aap_hw.device.boards import PATIENCE_S, Boards
    from aap_hw.prune.job import samples_of
    from aap_hw.prune.run import RunFolder

    description = load_profile(device).reached_by(connect)
    samples = samples_of(Path(run), source_of(data))
    with closing(Boards(description, on_notice or nobody, PATIENCE_S)) as boards:
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
    UserError : the run is for another device, the weights are of another network, or there is no compiler for it.
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
    weights: StrPath | None = None,
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
        As for ``prune``. The network may be a ``.pt2`` file that is quantised already.
    device, connect, on_notice
        As for ``deploy``.
    precision
        ``"half"``, or ``"int8"``, which quantises the network on training samples of ``data`` or ``example``; by
        default it stays as it is.
    pixels
        As for ``deploy``.
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
        model,
        description.name,
        input_shape=input_shape,
        example=example,
        weights=weights,
        classes=classes,
        data=data,
        precision=precision,
        pixels=pixels,
        out=out,
    )
    with closing(Boards(description, on_notice or nobody, PATIENCE_S)) as boards:
        return deploy_origin(origin, boards, samples, folder, precision, pixels=pixels)


def bundle_model(
    model: str,
    device: str,
    *,
    input_shape: Given | None = None,
    example: str | None = None,
    weights: StrPath | None = None,
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
        model,
        profile.name,
        input_shape=input_shape,
        example=example,
        weights=weights,
        classes=classes,
        data=data,
        precision=precision,
        pixels=pixels,
        out=out,
    )
    return bundle_model_unseen(origin, profile, samples, folder, precision, pixels=pixels)
