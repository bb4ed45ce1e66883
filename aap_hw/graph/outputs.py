"""The tensors that a network returns, however its code packs them: alone, in lists, under names.

Their order is that of an exported program's outputs. What else a network returns, such as None, is left out.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


def output_tensors(returned: object) -> list[Tensor]:
    """The tensors of what a network's ``forward`` returned."""
    return [leaf for leaf in pytree.tree_leaves(returned) if isinstance(leaf, Tensor)]


def output_names(returned: object) -> list[str]:
    """A name for each of them: ``logits`` for one alone, else ``output_`` and where it is, such as ``output_aux_0``.

    No two have the same.
    """
    count = len(output_tensors(returned))
    if count == 1:
        return ["logits"]
    try:
        leaves, _ = pytree.tree_flatten_with_path(returned)
    except ValueError:  # a type that PyTorch was told how to take apart, and not what the parts are called
        leaves = []
    names = [_name(path) for path, leaf in leaves if isinstance(leaf, Tensor)]
    return names if len(set(names)) == count else [f"output_{i}" for i in range(count)]


def _name(path: tuple[Any, ...]) -> str:
    # Keys of dictionaries, places in lists, fields of named tuples.
    steps = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path]
    return "_".join(["output", *steps])
