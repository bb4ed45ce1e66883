"""Finds a network's samples and their labels among the named arrays of an archive or a function of the user's.

``x_train`` and ``y_train`` are those of a network with one input. With several inputs they are ``x1_train``,
``x2_train`` and so on, or have the input's own name in place of ``x``. ``train_x`` is understood as well. Arrays of a
split ``val`` are for validation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from aap_hw.errors import UserError
from aap_hw.inputs import Inputs
from aap_hw.train.arrays import Array, ArraySamples, fitted
from aap_hw.train.checks import check_labels
from aap_hw.train.samples import Split
from aap_hw.train.sources.archive import held
from aap_hw.train.sources.labels import class_numbers, names_of

ALONE, LABELS = ("x", "inputs", "images"), ("y", "labels")


def splits_of(arrays: Mapping[str, Any], stems: tuple[str, ...]) -> tuple[Split, ...]:
    """The splits that there are or should be: one for validation only if samples or labels are called so."""
    return ("train", "test") if name_of(arrays, "val", (*stems, *LABELS)) is None else ("train", "val", "test")


def name_of(arrays: Mapping[str, Any], split: str, stems: tuple[str, ...]) -> str | None:
    """The name of an array of a split, if there is one."""
    wanted = [name for stem in stems for name in (f"{stem}_{split}", f"{split}_{stem}")]
    return next((name for name in wanted if name in arrays), None)


def samples_of(arrays: Mapping[str, Any], inputs: Inputs, where: str) -> ArraySamples:
    """The samples of a network among some arrays, by their names.

    Samples without labels rank filters and train nothing; then those of ``train`` are enough.

    Raises
    ------
    UserError : one is missing or does not fit the network; ``where`` is what the sentence calls all of them.
    """
    stems = _stems(inputs)
    splits = splits_of(arrays, tuple(name for each in stems for name in each))
    labels = {split: name_of(arrays, split, LABELS) for split in splits}
    is_labelled = any(labels.values())
    names = {split: [name_of(arrays, split, each) for each in stems] for split in splits}
    if not is_labelled and not any(names["test"]):
        names["test"] = names["train"]
    if any(None in each for each in names.values()) or (is_labelled and None in labels.values()):
        wanted = [f"{each[0]}_{split}" for split in splits for each in stems]
        raise UserError(
            f"{where} holds {held(arrays)}; name its arrays {', '.join(wanted)}, and if there are classes "
            f"{', '.join(f'y_{split}' for split in splits[:-1])} and y_test"
        )
    found = {split: _fitted(arrays, [str(name) for name in names[split]], inputs, where) for split in splits}
    if not is_labelled:
        return ArraySamples(found["train"], found["test"], val=found.get("val"))
    numbers = [
        class_numbers(
            array_of(arrays[str(labels[split])], f"{labels[split]} of {where}"), f"{labels[split]} of {where}"
        )
        for split in splits
    ]
    classes = names_of(arrays, numbers, where)
    of = dict(zip(splits, numbers, strict=True))
    for split, each in of.items():
        check_labels(split, each, len(found[split][0]), len(classes))
    return ArraySamples(
        found["train"], found["test"], of["train"], of["test"], classes, found.get("val"), of.get("val")
    )


def _stems(inputs: Inputs) -> list[tuple[str, ...]]:
    """For each input, what its arrays may be called in front of the split; the first is what to say."""
    others = [ALONE] if len(inputs.each) == 1 else [(f"x{place}",) for place in range(1, len(inputs.each) + 1)]
    return [(one.name, *stems) if one.name else stems for one, stems in zip(inputs.each, others, strict=True)]


def _fitted(arrays: Mapping[str, Any], names: list[str], inputs: Inputs, where: str) -> tuple[Array, ...]:
    found = tuple(
        fitted(array_of(arrays[name], f"{name} of {where}"), one, f"{name} of {where}")
        for name, one in zip(names, inputs.each, strict=True)
    )
    if len({len(each) for each in found}) > 1:
        counts = ", ".join(f"{len(each)} of {name}" for name, each in zip(names, found, strict=True))
        raise UserError(f"{where} holds different numbers of samples for one network: {counts}")
    return found


def array_of(value: object, what: str) -> Array:
    """A tensor, an array or a list of numbers as an array. Raises UserError if it is none."""
    try:
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    except (TypeError, ValueError):
        array = None
    if array is None or (array.dtype == object and array.ndim == 0):
        raise UserError(f"{what} is a {type(value).__name__} and not an array of numbers; give a tensor or an array")
    return array
