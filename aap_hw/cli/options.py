"""What several sub-commands ask for in the same words: a model, its input size, a device, a table, a budget."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from aap_hw.errors import UserError

if TYPE_CHECKING:
    from aap_hw.models.zoo import ZooModel

DEFAULT_MODEL = "mobilenetv2"


class InputShape(click.ParamType[tuple[int, ...]]):
    """``CxHxW``, such as ``3x224x224``."""

    name = "CxHxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Parse the text into three positive integers."""
        if isinstance(value, tuple):
            return value
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", value):
            self.fail(f"'{value}' is not an input size; write channels, height and width like 3x224x224", param, ctx)
        return tuple(int(part) for part in value.split("x"))


class BudgetText(click.ParamType[Any]):
    """A latency budget such as ``20ms``, ``0.02s`` or ``55%``."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the text into a Budget; bad text is a UserError that says what to type."""
        from aap_hw.policy.budget import Budget

        return Budget.parse(value) if isinstance(value, str) else value


device_option = click.option(
    "--device", required=True, metavar="NAME", help="A device profile's name, or the path of its TOML file."
)
input_option = click.option(
    "--input", "input_size", type=InputShape(), help="Input size; default: the model's usual one."
)
lut_option = click.option(
    "--lut",
    "lut_path",
    required=True,
    metavar="FILE",
    help="The device's latency table, from 'aap-hw profile'.",
)
budget_option = click.option(
    "--budget",
    required=True,
    type=BudgetText(),
    help="Latency to reach: 20ms, 0.02s, or 55% of the unpruned network's on the device.",
)


def build_model(name: str, input_size: tuple[int, ...] | None, weights: str | None = None) -> ZooModel:
    """The zoo's network, at another input size if one is given.

    Raises
    ------
    UserError : the model is unknown or cannot take that input.
    """
    from dataclasses import replace

    from aap_hw.models import zoo

    model = zoo.build(name, weights)
    if input_size is None:
        return model
    channels, height, width = input_size
    if channels != model.input_shape[0]:
        raise UserError(
            f"{name} takes images of {model.input_shape[0]} channels, not {channels}; "
            f"write --input {model.input_shape[0]}x{height}x{width}"
        )
    return replace(model, input_shape=(channels, height, width))


def input_text(shape: tuple[int, ...]) -> str:
    """``(3, 224, 224)`` as ``3x224x224``."""
    return "x".join(map(str, shape))
