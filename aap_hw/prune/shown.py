"""The samples that a network is shown: of a source, else an example, else embedded images, else made-up ones."""

from __future__ import annotations

from aap_hw.errors import UserError
from aap_hw.models.ceilings import ceilings
from aap_hw.models.origin import Origin
from aap_hw.train.arrays import MadeSamples
from aap_hw.train.samples import Samples
from aap_hw.train.sources import ImageSource
from aap_hw.train.sources.example import Example

EMBEDDED = ImageSource("embedded")


def samples_for(origin: Origin, source: ImageSource | None, example: str | None = None) -> Samples:
    """The samples of a source, or if there is none those that replace it; ``example`` as of `Example.read`.

    Raises
    ------
    UserError
        If they are missing, damaged, or do not fit the network.
    """
    if source is not None:
        return source.load(origin.inputs)
    if example is not None:
        read = Example.read(example)
        if read.inputs != origin.inputs:
            raise UserError(f"{example} holds {read.inputs.text} now, and the run began with {origin.inputs.text}")
        return read.samples
    if origin.inputs.image is not None:
        return EMBEDDED.load(origin.inputs)
    return MadeSamples(origin.inputs, ceilings(origin))
