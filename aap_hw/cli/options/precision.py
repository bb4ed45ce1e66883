"""What a network computes in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from aap_hw.cli.options.grouping import Decorator
from aap_hw.compile.keys.precision import (
    FP32,
    MIXED,
    NETWORK_PRECISIONS,
    PLANNED_PRECISIONS,
    NetworkPrecision,
    mixture_of,
)


class PrecisionText(click.Choice[Any]):
    """One of some precisions, or a mixture whose precisions may be named in any order."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the text; what plans cannot mix is a UserError that says what to give instead."""
        is_mixture = isinstance(value, str) and value.startswith(f"{MIXED}:") and MIXED in self.choices
        return mixture_of(value) if is_mixture else super().convert(value, param, ctx)


def _precision_option_of(precisions: Sequence[NetworkPrecision], *, more: str = "") -> Decorator:
    return click.option(
        "--precision",
        type=PrecisionText(precisions),
        default=FP32,
        show_default=True,
        help="What the network computes in. half: bfloat16 or float16, whichever the device has. int8: bytes, wherever "
        f"there are kernels for them.{more}",
    )


precision_option = _precision_option_of(NETWORK_PRECISIONS)
planned_precision_option = _precision_option_of(
    PLANNED_PRECISIONS,
    more=" mixed: the plan chooses int8 or float32 for each channel group; mixed:int8,half: int8 or half.",
)
float_layers_option = click.option(
    "--float-layer",
    "float_layers",
    multiple=True,
    metavar="NAME",
    help="With --precision int8: a layer that may stay in float32, such as 'layer1.0.conv1'; can be repeated.",
)
