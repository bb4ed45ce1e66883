"""One step of a recurrent layer for one channel of its state, as PyTorch defines it, for any device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aap_hw.compile.code.approximations import tanh
from aap_hw.compile.code.expressions import relu, sigmoid
from aap_hw.compile.code.function import Argument
from aap_hw.compile.families import Shape, image_shape
from aap_hw.compile.families.recurrent import hidden_units, is_given_first, is_projected
from aap_hw.compile.keys.address import Address

Gate = Callable[[int], Any]


def next_state(op: str, read: Gate, fed_back: Gate, state: Any, cell: Any) -> tuple[Any, Any]:
    """The state after a step and, for an LSTM, the cell.

    Parameters
    ----------
    op : ``lstm``, ``gru``, ``rnn_tanh`` or ``rnn_relu``.
    read, fed_back : by gate, in PyTorch's order: the terms of the input and of the previous state, with biases.
    state, cell : those of the previous step.
    """
    match op:
        case "lstm":
            into, kept, new, out = (read(gate) + fed_back(gate) for gate in range(4))
            cell = sigmoid(kept) * cell + sigmoid(into) * tanh(new)
            return sigmoid(out) * tanh(cell), cell
        case "gru":
            reset, kept = (sigmoid(read(gate) + fed_back(gate)) for gate in range(2))
            new = tanh(read(2) + reset * fed_back(2))
            return new + kept * (state - new), None
    return (relu if op == "rnn_relu" else tanh)(read(0) + fed_back(0)), None


def recurrent_arguments(address: Address, weight: Shape) -> tuple[Argument, ...]:
    """What a kernel reads: the products of all steps, first states, the packed weight of the state, and its bias.

    Last comes what projects the states, as the model has it.
    """
    key, gates, units, states = address.key, address.width_in, hidden_units(address), address.width_out
    first = [states, units][: is_given_first(key) * (2 if key.op == "lstm" else 1)]
    return (
        Argument("activation", image_shape(key, gates), type=key.types.read),
        *[Argument("residual", (key.batch, channels), type=key.types.read) for channels in first],
        Argument("weight", weight, type=key.types.weight),
        Argument("bias", (gates,), type=key.types.sum),
        *[Argument("constant", (states, units), type=key.types.weight)] * is_projected(key),
    )
