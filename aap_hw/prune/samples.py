"""The samples that a network is shown: of a source, else an example, else embedded images, else made-up ones.

Also those that filters are ranked by, and that a network is quantised on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from aap_hw import ranks
from aap_hw.errors import UserError
from aap_hw.foreign import own_line, reason
from aap_hw.graph.program.calling import input_names
from aap_hw.graph.program.inputs import Tensors, in_batches
from aap_hw.inputs import Inputs
from aap_hw.models.ceilings import ceilings
from aap_hw.models.origin import Origin
from aap_hw.train.arrays import ArraySamples, MadeSamples
from aap_hw.train.classes import as_classes_of
from aap_hw.train.data import LabelledImages
from aap_hw.train.samples import Samples
from aap_hw.train.sources import ImageSource
from aap_hw.train.sources.example import Example

EMBEDDED = ImageSource("embedded")


def samples_for(origin: Origin, source: ImageSource | None, example: str | None = None) -> Samples:
    """The samples of a source, or if there is none those that replace it; ``example`` as of `Example.read`.

    Pictures are prepared and labelled as the network's weights are published for, if they are.

    Raises
    ------
    UserError
        If they are missing, damaged, or do not fit the network.
    """
    known = origin.published
    how = None if known is None else known.prepared(origin.inputs)
    if source is not None:
        samples = source.load(origin.inputs, how=how)
        if known is not None and isinstance(samples, LabelledImages):
            samples = as_classes_of(samples, known.classes, known.folders)
        return _taken(samples, origin, source.text)
    if example is not None:
        read = Example.read(example)
        if read.inputs != origin.inputs:
            raise UserError(f"{example} holds {read.inputs.text} now, and the run began with {origin.inputs.text}")
        return _taken(read.samples, origin, example)
    if origin.inputs.image is not None:
        images = EMBEDDED.load(origin.inputs, how=how)
        return replace(images, stands_in=True) if isinstance(images, LabelledImages) else images
    return MadeSamples(origin.inputs, ceilings(origin))


def are_made_up(samples: Samples) -> bool:
    """Whether samples only take the place of those that the network will see, as nobody said what these are."""
    return isinstance(samples, MadeSamples) or (isinstance(samples, LabelledImages) and samples.stands_in)


def batch_size(inputs: Inputs) -> int:
    """Samples at a time that make a moderate number of pixels."""
    return max(1, min(64, (1 << 20) // inputs.positions))


def calibration_batches(
    data: Samples, inputs: Inputs, count: int, *, distributed: bool = False
) -> Iterator[tuple[Tensors, torch.Tensor]]:
    """Training samples and their labels, spread over the classes, a moderate number of pixels at a time.

    ``distributed`` gives this process its part of them only.

    Raises
    ------
    UserError : none of them can be read.
    """
    chosen = data.spread("train", count)
    if distributed:
        chosen = chosen[ranks.share_of(len(chosen))]
    size, readable = batch_size(inputs), False
    for start in range(0, len(chosen), size):
        stored, labels = data.stored("train", chosen[start : start + size])
        if len(labels):
            readable = True
            yield tuple(each.contiguous() for each in data.prepared(stored, inputs)), labels
    if not readable:
        raise UserError(f"none of the {len(chosen)} training images to rank filters by can be read; get them again")


def calibration_of(samples: Samples, inputs: Inputs, count: int) -> Iterator[Tensors]:
    """Training samples, spread over the classes, as batches of one, as the compiled network takes them."""
    for batch, _ in calibration_batches(samples, inputs, count):
        yield from in_batches(batch)


def _taken(samples: Samples, origin: Origin, where: str) -> Samples:
    """The samples, if the network takes the lowest and the highest of their whole numbers, which may be indices."""
    places = [place for place, one in enumerate(origin.inputs.each) if not one.is_float and one.dtype != "bool"]
    if not isinstance(samples, ArraySamples) or not places:
        return samples
    module = origin.build()
    for split in samples.splits:
        arrays = samples.arrays(split)
        for place in places:
            rows = arrays[place].reshape(len(arrays[place]), -1)
            for extreme in (rows.max(1).argmax(), rows.min(1).argmin()):
                try:
                    with torch.no_grad():
                        origin.call(module, samples.inputs(split, origin.inputs, [int(extreme)]))
                except Exception as error:  # its code may raise anything for an index that is too large
                    name = input_names(module, origin.inputs)[place]
                    raise UserError(
                        f"{origin.model} fails on sample {extreme} of {where}, whose {name} holds numbers from "
                        f"{rows[extreme].min()} to {rows[extreme].max()}: {reason(error)}{own_line(error)}; give it "
                        "numbers that it takes"
                    ) from error
    return samples
