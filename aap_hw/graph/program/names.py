"""Names of a model's tensors."""

from __future__ import annotations

from torch import nn


def canonical_names(model: nn.Module) -> dict[str, str]:
    """For every name of a parameter or buffer, the first name under which the same tensor is known."""
    first: dict[int, str] = {}
    names: dict[str, str] = {}
    for pairs in (
        model.named_parameters(remove_duplicate=False),
        model.named_buffers(remove_duplicate=False),
    ):
        for name, tensor in pairs:
            names[name] = first.setdefault(id(tensor), name)
    return names
