"""What a kernel computes, defined once for all back ends: its arguments, and the value at each index of its output.

Each back end writes its own loops around a definition. Kernels with weights, and those that sum over a whole image or
over all channels, have none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aap_hw.compile.code.function import Argument
from aap_hw.compile.families import Shape
from aap_hw.compile.keys.address import Address
from aap_hw.registry import Registry


@dataclass(frozen=True)
class Definition:
    """A kernel by its values.

    Attributes
    ----------
    arguments : what it reads, in calling order.
    shape : of what it makes.
    value : ``value(inputs, *index)`` is the value at an index of the output; each of the inputs is called with an index
        of its own.
    literals : values of the arguments that belong to the code.
    """

    arguments: tuple[Argument, ...]
    shape: Shape
    value: Callable[..., Any]
    literals: tuple[np.ndarray, ...] = field(default=(), compare=False)


DEFINITIONS: Registry[Callable[[Address], Definition]] = Registry()
"""Definitions by operator; importing the package fills it."""
