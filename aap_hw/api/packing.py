"""``aap_hw.pack_profile`` and ``aap_hw.unpack_profile``: a latency table by a folder that is carried to the device."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from aap_hw.api.profiling import Profile
from aap_hw.compile.keys.precision import FP32, NETWORK_PRECISIONS, NetworkPrecision
from aap_hw.given import StrPath, nobody, origin_of, to_profile, workload_of
from aap_hw.lut.library_cache import LibraryCache, users_cache
from aap_hw.pack import profiles
from aap_hw.pack.folder import Packed

if TYPE_CHECKING:
    from aap_hw.compile.front.network import Network
    from aap_hw.inputs import Given
    from aap_hw.lut.progress import ProgressCallback
    from aap_hw.models.origin import Origin
    from aap_hw.prune.defaults import AttentionCuts


class Options(TypedDict, total=False):
    """What a profile by folder takes beside device, model and folder: the parameters of ``aap_hw.profile``."""

    input_shape: Given | None
    example: str | None
    weights: StrPath | None
    classes: int | None
    out: StrPath | None
    workers: int | None
    use_cache: bool
    attention_cuts: AttentionCuts
    precision: NetworkPrecision
    float_layers: Collection[str]
    on_start: Callable[[Profile], None]
    on_progress: ProgressCallback
    on_notice: Callable[[str], None]


@dataclass(frozen=True)
class Unpacked:
    """A profile that came back in a folder.

    Attributes
    ----------
    profile : the table and what it is of.
    another : what has to be carried there, too, before the table is complete; None if nothing.
    """

    profile: Profile
    another: Packed | None


def pack_profile(device: str, model: str, folder: StrPath, **options: Unpack[Options]) -> Packed | None:
    """Compile what the device's table lacks of a network into a new folder, to be carried there and run.

    ``options`` are those of ``aap_hw.profile``, but for ``connect``. Returns None if the table lacks nothing.

    Raises
    ------
    UserError : the folder is there already, or the network has no kernels for the device.
    """
    asked, origin = _asked(device, model, options)

    def start(network: Network) -> None:
        options.get("on_start", nobody)(Profile(asked.path, origin, None, network, precision=asked.workload.precision))

    return profiles.pack_profile(
        asked,
        Path(folder),
        on_network=start,
        on_progress=options.get("on_progress", nobody),
        workers=options.get("workers"),
        cache=_cache(options),
    )


def unpack_profile(device: str, model: str, folder: StrPath, **options: Unpack[Options]) -> Unpacked:
    """Take the results that came back in a folder into the device's table.

    ``options`` are those that it was packed with. What the table then still lacks is packed into another folder beside
    it.

    Raises
    ------
    UserError : the folder is damaged, not finished or was packed for something else, or the table is.
    """
    asked, origin = _asked(device, model, options)
    begun: list[Profile] = []

    def start(network: Network, moved: Path | None) -> None:
        begun.append(Profile(asked.path, origin, moved, network, precision=asked.workload.precision))
        options.get("on_start", nobody)(begun[0])

    came = profiles.unpack_profile(
        asked,
        Path(folder),
        keep_others=options.get("out") is None,
        on_network=start,
        on_progress=options.get("on_progress", nobody),
        workers=options.get("workers"),
        cache=_cache(options),
    )
    return Unpacked(replace(begun[0], table=came.table), came.another)


def _asked(device: str, model: str, options: Options) -> tuple[profiles.Asked, Origin]:
    precision, floats = options.get("precision", FP32), tuple(options.get("float_layers", ()))
    description, path = to_profile(device, options.get("out"), precision, floats, NETWORK_PRECISIONS)
    shape, example = options.get("input_shape"), options.get("example")
    origin = origin_of(model, shape, example, options.get("weights"), options.get("classes"))
    workload = workload_of(origin, options.get("attention_cuts", "widths"), precision, floats)
    return profiles.Asked(workload, description, path), origin


def _cache(options: Options) -> LibraryCache | None:
    return users_cache().usable(options.get("on_notice", nobody)) if options.get("use_cache", True) else None
