"""What PyTorch makes of a recurrent layer whose products of the input are given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def states(
    layer: nn.RNNBase, products: Tensor, first: list[Tensor], *, backwards: bool
) -> tuple[Tensor, Tensor | None]:
    """(N, steps, hidden) in float64, and the last cells, where the products of the input are given, not computed."""
    wide = type(layer)(products.shape[-1], layer.hidden_size, batch_first=True, **ways_of(layer)).double()
    wide.load_state_dict({**layer.state_dict(), "weight_ih_l0": torch.eye(products.shape[-1])})
    nn.init.zeros_(wide.bias_ih_l0)  # type: ignore[arg-type]
    turned = products.double().flip(1) if backwards else products.double()
    given = [each[None].double() for each in first]
    with torch.no_grad():
        made, last = wide(turned, tuple(given) if isinstance(layer, nn.LSTM) else given[0]) if given else wide(turned)
    return made.flip(1) if backwards else made, last[1][0] if isinstance(layer, nn.LSTM) else None


def ways_of(layer: nn.RNNBase) -> dict[str, Any]:
    if isinstance(layer, nn.RNN):
        return {"nonlinearity": layer.nonlinearity}
    return {"proj_size": layer.proj_size} if isinstance(layer, nn.LSTM) else {}
