"""``aap_hw.profile``: a device's latency table, measured for a network over a connection.

Beside it, ``packing`` measures by a folder that is carried to the device, and ``estimating`` without the device.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from aap_hw.compile.keys.precision import FP32, NetworkPrecision
from aap_hw.given import StrPath, nobody, origin_of, to_profile, workload_of

if TYPE_CHECKING:
    from aap_hw.compile.front.network import Network
    from aap_hw.inputs import Given
    from aap_hw.lut.progress import ProgressCallback
    from aap_hw.lut.table import LatencyTable
    from aap_hw.models.origin import Origin
    from aap_hw.prune.defaults import AttentionCuts


@dataclass(frozen=True)
class Profile:
    """A latency table that is about to be measured, or has been.

    Attributes
    ----------
    path : the table's file.
    origin : the network.
    set_aside : the new name of a table that was in the way, of another machine or an estimated one; None if none was.
    network : the network's kernels; `Network.slow_path` says which have no schedule.
    table : the whole table, once it is measured.
    precision : what the network computes in.
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
    weights: StrPath | None = None,
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
        What the network takes: the shape of one sample, such as (C, H, W) for an image, or a text as for ``--input``,
        such as ``"ids:int64:128"``; by default what is usual for the network.
    example
        Real inputs, instead of ``input_shape``: a ``.npz`` file, or a function of yours; see
        ``aap_hw.train.sources.example``.
    weights, classes
        As for ``prune``. Weights may say the size of the input and the number of classes; they are fetched, and checked
        to fit, before anything is measured.
    out
        The table to write or extend; by default ``lut/DEVICE.json``. A table of another machine is moved aside from the
        default path; an estimated table is moved aside from any path.
    workers
        Processes that compile; by default one per core.
    use_cache
        Whether to look for compiled kernels in the user's cache folder, and to keep them there.
    attention_cuts
        What plans may cut in attention: ``"widths"`` of heads, or whole ``"heads"``. The two need different kernels.
    precision
        What the network computes in: ``"fp32"``, ``"half"`` or ``"int8"``; ``"mixed"`` for plans that choose int8 or
        float32 for each group, ``"mixed:int8,half"`` for int8 or half precision. One table holds them all.
    float_layers
        Layers of a network in int8 that may stay in float32, such as ``"layer1.0.conv1"``. Their kernels are measured
        in float32, too.
    on_start
        Called once with what is about to be measured, after the device and all files were found to be in order.
    on_progress
        Called with a ``Progress`` as points and networks are measured.
    on_notice
        Called with a sentence when one of several boards is lost or not used, or compiled kernels cannot be kept.

    Raises
    ------
    UserError : the device cannot be reached or has no kernels of the precision, or the table is of another device,
        damaged, or cannot be written.
    """
    from aap_hw.device.boards import Boards
    from aap_hw.lut.library_cache import users_cache
    from aap_hw.lut.opening import set_aside
    from aap_hw.lut.profiling import profile_model

    profile, path = to_profile(device, out, precision, float_layers)
    with closing(Boards(profile.reached_by(connect), on_notice or nobody)) as boards:
        origin = origin_of(model, input_shape, example, weights, classes)
        workload = workload_of(origin, attention_cuts, precision, float_layers)
        begun: list[Profile] = []

        def start(network: Network) -> None:
            # Only now, as a network that is refused must leave a table of another machine where it is.
            moved = set_aside(path, boards, others=out is None)
            begun.append(Profile(path, origin, moved, network, precision=precision))
            (on_start or nobody)(begun[0])

        report_to = on_progress or nobody
        cache = users_cache().usable(on_notice or nobody) if use_cache else None
        table = profile_model(
            workload,
            boards,
            path,
            on_network=start,
            on_progress=report_to,
            workers=workers,
            cache=cache,
        )
    return replace(begun[0], table=table)
