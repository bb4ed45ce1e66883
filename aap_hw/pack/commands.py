"""Profiles by folder as functions: ``aap_hw.pack_profile`` and ``aap_hw.unpack_profile``.

They take what ``aap_hw.profile`` takes, and a folder in place of a connection.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from aap_hw.api import Profile
from aap_hw.compile.keys.precision import FP32, INT8, NETWORK_PRECISIONS, NetworkPrecision
from aap_hw.device import load_profile
from aap_hw.files import require_writable_folder
from aap_hw.given import StrPath, origin_of
from aap_hw.lut.library_cache import users_cache
from aap_hw.pack import profiles
from aap_hw.pack.folder import Packed
from aap_hw.validation import one_of, require

if TYPE_CHECKING:
    from aap_hw.compile.front.network import Network
    from aap_hw.graph.program.inputs import Given
    from aap_hw.lut.progress import ProgressCallback
    from aap_hw.models.origin import Origin
    from aap_hw.prune.defaults import AttentionCuts


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


def pack_profile(
    device: str,
    model: str,
    folder: StrPath,
    *,
    input_shape: Given | None = None,
    example: str | None = None,
    out: StrPath | None = None,
    workers: int | None = None,
    use_cache: bool = True,
    attention_cuts: AttentionCuts = "widths",
    precision: NetworkPrecision = FP32,
    float_layers: Collection[str] = (),
    on_start: Callable[[Profile], None] = lambda _: None,
    on_progress: ProgressCallback = lambda _: None,
    on_notice: Callable[[str], None] = lambda _: None,
) -> Packed | None:
    """Compile what the device's table lacks of a network into a new folder, to be carried there and run.

    Returns None if the table lacks nothing.

    Raises
    ------
    UserError : the folder is there already, or the network has no kernels for the device.
    """
    asked, origin = _asked(device, model, input_shape, example, out, attention_cuts, precision, float_layers)
    return profiles.pack_profile(
        asked,
        Path(folder),
        on_network=lambda network: on_start(Profile(asked.path, origin, None, network, precision=precision)),
        on_progress=on_progress,
        workers=workers,
        cache=users_cache().usable(on_notice) if use_cache else None,
    )


def unpack_profile(
    device: str,
    model: str,
    folder: StrPath,
    *,
    input_shape: Given | None = None,
    example: str | None = None,
    out: StrPath | None = None,
    workers: int | None = None,
    use_cache: bool = True,
    attention_cuts: AttentionCuts = "widths",
    precision: NetworkPrecision = FP32,
    float_layers: Collection[str] = (),
    on_start: Callable[[Profile], None] = lambda _: None,
    on_progress: ProgressCallback = lambda _: None,
    on_notice: Callable[[str], None] = lambda _: None,
) -> Unpacked:
    """Take the results that came back in a folder into the device's table.

    What the table then still lacks is packed into another folder beside it.

    Raises
    ------
    UserError : the folder is damaged, not finished or was packed for something else, or the table is.
    """
    asked, origin = _asked(device, model, input_shape, example, out, attention_cuts, precision, float_layers)
    begun: list[Profile] = []

    def start(network: Network, moved: Path | None) -> None:
        begun.append(Profile(asked.path, origin, moved, network, precision=precision))
        on_start(begun[0])

    done = profiles.unpack_profile(
        asked,
        Path(folder),
        keep_others=out is None,
        on_network=start,
        on_progress=on_progress,
        workers=workers,
        cache=users_cache().usable(on_notice) if use_cache else None,
    )
    return Unpacked(replace(begun[0], table=done.table), done.another)


def _asked(
    device: str,
    model: str,
    input_shape: Given | None,
    example: str | None,
    out: StrPath | None,
    attention_cuts: AttentionCuts,
    precision: NetworkPrecision,
    float_layers: Collection[str],
) -> tuple[profiles.Asked, Origin]:
    require(
        "profile",
        one_of("precision", precision, NETWORK_PRECISIONS),
        (precision == INT8 or not float_layers, "layers stay in float32 in a network in int8; add --precision int8"),
    )
    description = load_profile(device)
    path = Path("lut") / f"{description.name}.json" if out is None else Path(out)
    require_writable_folder(path.parent)
    origin = origin_of(model, input_shape, example)
    asked = profiles.Asked(
        origin.model,
        origin.build(),
        origin.inputs,
        description,
        path,
        attention_cuts == "heads",
        precision,
        tuple(float_layers),
    )
    return asked, origin
