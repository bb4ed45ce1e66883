"""``aap_hw.estimate_profile``: a latency table for a device that is not there, estimated."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from aap_hw.api.profiling import Profile
from aap_hw.compile.keys.precision import FP32, NetworkPrecision
from aap_hw.estimate.estimator import estimator_of
from aap_hw.given import StrPath, nobody, origin_of, to_profile, workload_of
from aap_hw.lut.estimating import estimate_model

if TYPE_CHECKING:
    from aap_hw.compile.front.network import Network
    from aap_hw.inputs import Given
    from aap_hw.lut.progress import ProgressCallback
    from aap_hw.prune.defaults import AttentionCuts


def estimate_profile(
    device: str,
    model: str = "mobilenetv2",
    *,
    input_shape: Given | None = None,
    example: str | None = None,
    weights: StrPath | None = None,
    classes: int | None = None,
    out: StrPath | None = None,
    attention_cuts: AttentionCuts = "widths",
    precision: NetworkPrecision = FP32,
    float_layers: Collection[str] = (),
    on_start: Callable[[Profile], None] | None = None,
    on_progress: ProgressCallback | None = None,
) -> Profile:
    """Work out what each width of each kernel of a network may cost on a device that is not there, and write a table.

    The parameters are those of ``aap_hw.profile``. Nothing is measured: the table says so, and how far off the method
    was where it could be checked. A table that was measured is never replaced.

    Raises
    ------
    UserError : the method cannot estimate the device or one of the kernels, or the table cannot be extended or written.
    """
    profile, path = to_profile(device, out, precision, float_layers)
    estimator_of(profile)  # refuses a device before the network is built, which may take a while
    origin = origin_of(model, input_shape, example, weights, classes)
    begun: list[Profile] = []

    def start(network: Network, moved: Path | None) -> None:
        begun.append(Profile(path, origin, moved, network, precision=precision))
        (on_start or nobody)(begun[0])

    table = estimate_model(
        workload_of(origin, attention_cuts, precision, float_layers),
        profile,
        path,
        keep_others=out is None,
        on_network=start,
        on_progress=on_progress or nobody,
    )
    return replace(begun[0], table=table)
