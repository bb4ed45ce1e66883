"""Weights in a repository of the Hugging Face Hub: a network of timm's with its description, or a bare checkpoint."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from aap_hw.errors import UserError
from aap_hw.foreign import reason
from aap_hw.models.published import HUB, Published, of_timm
from aap_hw.models.published.caches import CHECKPOINTS, fetched_hub


def find(architecture: str | None, repository: str) -> Published:
    """The weights of a repository, for timm's network ``architecture`` or, if that is None, for any other.

    Raises
    ------
    UserError : they are for another network of timm's, or the description is damaged, cannot be fetched, or says more
        about the network than how it is built.
    """
    name, what = f"{HUB}{repository}", f"the weights {HUB}{repository}"
    fetch = functools.partial(fetched_hub, repository, CHECKPOINTS, what)
    if architecture is None:
        return Published(name, None, None, (), None, None, fetch)
    import timm

    file = fetched_hub(repository, ("config.json",), f"the description of {what}")
    config, arguments = _read(file)
    theirs, ours = config.get("architecture"), architecture.split(".")[0]
    if theirs != ours:
        raise UserError(f"{what} are for {theirs}, not for timm:{ours}; give --model timm:{theirs}")
    _require_building_only(arguments, what)
    pretrained = config.get("pretrained_cfg", config)
    # As timm reads it: what is said beside the description of the weights comes before it.
    beside = {key: config[key] for key in ("num_classes", "label_names", "label_descriptions") if key in config}
    merged = {**pretrained, **beside}
    given = {"num_classes": merged.get("num_classes"), **arguments}
    make: Callable[[], nn.Module] = functools.partial(timm.create_model, ours, pretrained=False, **given)
    fill: Callable[[Mapping[str, Tensor]], nn.Module] = functools.partial(of_timm.filled, ours, given, merged, what)
    return of_timm.described(name, merged, make, fetch, fill)


def _require_building_only(arguments: Mapping[str, Any], what: str) -> None:
    """Refuse arguments that decide which file the weights come from, or how much of it has to fit."""
    import timm

    own = inspect.signature(timm.create_model).parameters
    foreign = sorted(name for name in arguments if name in own or name.startswith("pretrained"))
    if foreign:
        raise UserError(
            f"the description of {what} sets {', '.join(foreign)} in its model_args, and so could name a file of yours "
            "as the weights; fetch the weights yourself and give their path"
        )


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        config = json.loads(file.read_text("utf-8"))
        return dict(config), dict(config.get("model_args") or {})
    except (OSError, ValueError, AttributeError, TypeError) as problem:
        raise UserError(
            f"{file} does not describe a network ({reason(problem)}); delete it and fetch it again"
        ) from problem
