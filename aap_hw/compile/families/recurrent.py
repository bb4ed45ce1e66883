"""Recurrent layers without what they make of their inputs, which is a linear layer over all steps at once.

A kernel reads that product, ``gates x hidden`` channels a step, and makes the ``hidden`` channels of each step's state.
An image of it is (N, steps, 1, C), or the same with the steps first where the key says ``order=steps_first``.
"""

from __future__ import annotations

import math

from aap_hw.compile.families.family import FAMILIES, Family, Shape, image_shape
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
"""How many channels a layer computes for each of its state, by operator."""


def is_backwards(key: KernelKey) -> bool:
    """Whether a layer begins with the last step."""
    return key.attribute("direction") == "backwards"


def steps_first(key: KernelKey) -> bool:
    """Whether the samples of a step lie side by side, and not the steps of a sample."""
    return key.attribute("order") == "steps_first"


def _output(address: Address) -> Shape:
    return image_shape(address.key, address.width_out)


def _weight(address: Address) -> Shape:
    """That of the state: (gates x hidden, hidden)."""
    return address.width_in, address.width_out


def _multiply_accumulates(address: Address) -> int:
    batch, steps, *_ = image_shape(address.key, 1)
    return batch * steps * math.prod(_weight(address))


def _constants(address: Address) -> int:
    return math.prod(_weight(address)) + address.width_in


FAMILIES.register(*GATES)(Family(_output, _multiply_accumulates, _constants, _weight))
