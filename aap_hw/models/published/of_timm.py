"""Weights that timm publishes: files on the Hugging Face Hub or at an address, and a description in code."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from aap_hw.errors import UserError, closest
from aap_hw.foreign import reason
from aap_hw.models.published import DEFAULT, TIMM, Published
from aap_hw.models.published.caches import CHECKPOINTS, fetched_hub, fetched_url
from aap_hw.train.data import Normalisation
from aap_hw.train.preparation import Preparation

# What timm asks of a description when it puts a checkpoint into a network.
OF_CHECKPOINTS = ("num_classes", "input_size", "label_offset", "classifier", "first_conv")


def find(name: str, text: str) -> Published:
    """The weights ``text`` for timm's network ``name``, which may have a tag. Raises UserError if there are none."""
    import timm

    wanted = name if text == DEFAULT else text.removeprefix(TIMM)
    architecture = name.split(".")[0]
    if wanted.split(".")[0] != architecture:
        raise UserError(f"the weights {text} are not for timm:{name}; give --model timm:{wanted.split('.')[0]}")
    those = timm.list_pretrained(f"{architecture}.*") or timm.list_pretrained(architecture)
    config = _config(wanted)
    if config is None or not config.has_weights:
        there = f"; it has {', '.join(those)}" if those else ""
        raise UserError(f"timm has no weights '{wanted}' for {architecture}{there}{closest(wanted, those)}")
    full = f"{architecture}.{config.tag}" if config.tag else architecture
    what = f"the weights timm:{full}"
    return described(
        f"{TIMM}{full}",
        config.to_dict(),
        functools.partial(timm.create_model, full, pretrained=False),
        functools.partial(_fetch, config, what),
        functools.partial(filled, full, {}, {}, what),
    )


def known(name: str) -> str | None:
    """The name of timm's weights for a network."""
    config = _config(name)
    return f"{TIMM}{name.split('.')[0]}.{config.tag}" if config is not None and config.has_weights else None


def _config(name: str) -> Any:
    import timm

    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError:  # its answer to a tag that it does not know
        return None


def described(
    name: str, config: Mapping[str, Any], make: Any, fetch: Any, fill: Any, size: tuple[int, ...] | None = None
) -> Published:
    """What timm's configuration of some weights says."""
    count = config.get("num_classes") or None
    labels, folders = _labels(config)
    shape = tuple(size or config.get("input_size") or (3, 224, 224))
    return Published(
        name,
        (shape[0], shape[1], shape[2]),
        _preparation(config),
        labels,
        count,
        make,
        fetch,
        folders=folders,
        at_test=_preparation(config, "test_") if config.get("test_input_size") else None,
        filled=fill,
    )


def _preparation(config: Mapping[str, Any], test: str = "") -> Preparation:
    side = config.get(f"{test}input_size", (3, 224, 224))[-1]
    share = config.get(f"{test}crop_pct") or config.get("crop_pct") or 0.875
    normalisation = Normalisation(
        tuple(config.get("mean", (0.485, 0.456, 0.406))), tuple(config.get("std", (0.229, 0.224, 0.225)))
    )
    squash = config.get("crop_mode") == "squash"
    interpolation = config.get("interpolation") or "bicubic"
    return Preparation(side, math.floor(side / share), interpolation, normalisation, squash)


def _labels(config: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the classes are called in words and in folders; each empty if unknown."""
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    names = tuple(config.get("label_names") or ())
    if names:
        words = config.get("label_descriptions") or {}
        return tuple(words.get(name, name) for name in names), names
    subset = infer_imagenet_subset(dict(config))
    if subset is None:
        return (), ()
    info: Any = ImageNetInfo(subset)
    return tuple(info.label_descriptions()), tuple(info.label_names())


def _fetch(config: Any, what: str) -> Path:
    if config.hf_hub_id:
        names = (config.hf_hub_filename,) if config.hf_hub_filename else CHECKPOINTS
        return fetched_hub(config.hf_hub_id, names, what)
    return fetched_url(config.url, what)


def filled(
    name: str, arguments: Mapping[str, Any], config: Mapping[str, Any], what: str, state: Mapping[str, Tensor]
) -> nn.Module:
    """The network with a checkpoint's tensors, which timm renames and reshapes as those that it reads itself.

    What ``config`` says of the checkpoint, such as its number of classes, goes before timm's own word: if timm knew
    another number, it would leave the last layer out.
    """
    import timm

    said = {key: config[key] for key in OF_CHECKPOINTS if key in config}

    try:
        module: Any = timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay={**said, "state_dict": dict(state)}, **arguments
        )
    except (RuntimeError, KeyError, ValueError, TypeError) as problem:
        raise UserError(f"{what} do not fit timm:{name}: {reason(problem)}; fetch the file again") from problem
    for kept in (module.pretrained_cfg, module.default_cfg):  # or each copy of the network would have them twice
        kept.pop("state_dict", None)
    made: nn.Module = module
    return made
