"""Recurrent layers after the product with their inputs, which is a linear layer over all steps at once.

A kernel reads that product, ``gates x hidden`` channels a step, and makes the ``hidden`` channels of each step's state.
Both lie as (N, steps, 1, C), or as (steps, N, 1, C) if the key says ``order=steps_first``. The first states are zeros
or, with ``first=given``, read, (N, hidden), as first cells are then. With ``cells=last`` there are N more rows in what
is made, behind those of the steps: the last cells. With ``states=projected`` an LSTM's states are products with a
constant (states, hidden), and as many channels as these products are made and fed back.
"""

from __future__ import annotations

import math

from aap_hw.compile.families.family import FAMILIES, Family, Shape, image_shape
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
"""Gates by operator: how many channels of the product belong to one channel of the state."""


def is_backwards(key: KernelKey) -> bool:
    """Whether a layer begins with the last step."""
    return key.attribute("direction") == "backwards"


def steps_first(key: KernelKey) -> bool:
    """Whether the order in memory is (steps, N, C), not (N, steps, C)."""
    return key.attribute("order") == "steps_first"


def is_given_first(key: KernelKey) -> bool:
    """Whether a layer reads what its state is before the first step."""
    return key.attribute("first") == "given"


def makes_cells(key: KernelKey) -> bool:
    """Whether a layer makes its last cells, too."""
    return key.attribute("cells") == "last"


def is_projected(key: KernelKey) -> bool:
    """Whether a constant matrix makes the states of what an LSTM would hand on."""
    return key.attribute("states") == "projected"


def hidden_units(address: Address) -> int:
    """Channels that each gate has."""
    return address.width_in // GATES[address.key.op]


def _output(address: Address) -> Shape:
    samples, steps, *_, hidden = image_shape(address.key, address.width_out)
    if makes_cells(address.key):
        return 1, samples * (steps + 1), 1, hidden
    return image_shape(address.key, hidden)


def _weight(address: Address) -> Shape:
    """Shape of the weight that multiplies the state: (gates x hidden, states)."""
    return address.width_in, address.width_out


def _taken(address: Address) -> list[Shape]:
    return [(address.width_out, hidden_units(address))] if is_projected(address.key) else []


def _multiplied(address: Address) -> int:
    return sum(map(math.prod, [_weight(address), *_taken(address)]))


def _multiply_accumulates(address: Address) -> int:
    batch, steps, *_ = image_shape(address.key, 1)
    return batch * steps * _multiplied(address)


def _constants(address: Address) -> int:
    return _multiplied(address) + address.width_in


FAMILIES.register(*GATES)(Family(_output, _multiply_accumulates, _constants, _weight, _taken))
