"""Where images, or other samples, come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from aap_hw.cli.options.grouping import as_one
from aap_hw.cli.options.numbers import Whole
from aap_hw.errors import UserError

if TYPE_CHECKING:
    from aap_hw.train.sources import ImageSource


class NormalisationText(click.ParamType[Any]):
    """``0.5,0.5,0.5/0.25,0.25,0.25``: means and deviations of the channels."""

    name = "MEAN/STD"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the text into what images are normalised by."""
        from aap_hw.train.data import Normalisation

        if not isinstance(value, str):
            return value
        try:
            mean, std = (tuple(float(each) for each in part.split(",")) for part in value.split("/"))
        except ValueError:
            self.fail(f"'{value}' is not MEAN/STD; write for example 0.5,0.5,0.5/0.25,0.25,0.25", param, ctx)
        return Normalisation(mean, std)


def _source(data: str | None, limit: int | None, normalise: Any) -> ImageSource | None:
    """Where images come from; None if nobody said."""
    from aap_hw.train.sources import ImageSource

    if data is None and (limit is not None or normalise is not None):
        raise UserError("--limit and --normalise are about the images of --data; add --data")
    return None if data is None else ImageSource(data, limit, normalise)


data_options = as_one(
    "source",
    _source,
    click.option(
        "--data",
        metavar="SOURCE",
        help="Images or other samples: embedded, cifar10:FOLDER, fashion-mnist:FOLDER, imagefolder:FOLDER, npz:FILE, "
        "or a function of yours as MODULE:FUNCTION.",
    ),
    click.option("--limit", type=Whole(min=2), metavar="N", help="At most N images per split."),
    click.option(
        "--normalise",
        type=NormalisationText(),
        help="Mean and deviation of each channel, for pixels between 0 and 1: 0.5,0.5,0.5/0.25,0.25,0.25; default: as "
        "the weights or the images have it.",
    ),
)
