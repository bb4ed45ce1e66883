"""A classifier's accuracy, with denormals flushed as in training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from aap_hw import ranks
from aap_hw.activity import doing
from aap_hw.errors import UserError
from aap_hw.graph.program.calling import called
from aap_hw.graph.program.outputs import class_scores
from aap_hw.inputs import Inputs
from aap_hw.train.placing import image_layout, in_evaluation, laid_out, placed
from aap_hw.train.samples import Samples, Split


@torch.no_grad()
@doing("finding the accuracy")
def evaluate(
    model: nn.Module,
    data: Samples,
    inputs: Inputs,
    *,
    split: Split = "test",
    batch_size: int = 250,
) -> float:
    """Share of the samples that the model classifies correctly, in percent; its mode and device are left as they were.

    Several processes evaluate a part each, and all get the figure for the whole.

    Raises
    ------
    UserError : not one of the images can be read.
    """
    mine = ranks.share_of(data.count(split))
    tally = torch.zeros(2, dtype=torch.int64)
    device = ranks.device()
    with flushed_denormals(), placed(model, device), in_evaluation(model):
        layout = image_layout(model, inputs)
        for start in range(mine.start, mine.stop, batch_size):
            stored, labels = data.stored(split, range(start, min(start + batch_size, mine.stop)))
            if not len(labels):
                continue
            shown = data.prepared(tuple(each.to(device) for each in stored), inputs)
            outputs = class_scores(called(model, laid_out(shown, layout), inputs.names))
            right = int((outputs.argmax(1).cpu() == labels).sum())
            tally += torch.tensor([right, len(labels)])
    correct, seen = ranks.summed(tally).tolist()
    if not seen:
        raise UserError(f"none of the {data.count(split)} {split} images can be read, so there is no accuracy")
    return float(100.0 * correct / seen)


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Numbers below about 1e-38 count as zero inside; they make a CPU network up to ten times slower."""
    smallest = torch.tensor([torch.finfo(torch.float32).tiny])
    already_flushed = bool((smallest / 2 == 0).item())
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(already_flushed)
