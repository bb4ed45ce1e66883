"""Which residual branches can be removed, found by running the network without them.

What a module returns beside a tensor, and what other code reads of it, is not in the exported program.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

from torch import Tensor, nn

from aap_hw.graph.cut import surgery
from aap_hw.graph.groups.blocks import Block
from aap_hw.graph.program.calling import Names
from aap_hw.graph.program.copying import copied
from aap_hw.graph.program.exporting import run
from aap_hw.graph.program.inputs import Tensors
from aap_hw.graph.program.outputs import output_tensors

Shapes = list[tuple[int, ...]]


def removable_blocks(
    blocks_if: Callable[[Collection[str]], Sequence[Block]], model: nn.Module, inputs: Tensors, names: Names = ()
) -> Sequence[Block]:
    """The branches without which a network runs and returns as much as before.

    Parameters
    ----------
    blocks_if
        The branches that can be removed if some modules stay, by their paths.
    """
    stay: set[str] = set()
    shapes: Shapes | None = None
    while blocks := blocks_if(stay):
        if shapes is None:
            shapes, odd = _shapes_and_odd_modules(model, inputs, names)
            stay |= odd
            continue
        runs = partial(_runs_without, model, inputs, names, shapes)
        if runs(blocks):
            break
        failing = [block for block in blocks if not runs([block])] or blocks
        stay |= {path for block in failing for path in block.modules}
    return blocks


def _shapes_and_odd_modules(model: nn.Module, inputs: Tensors, names: Names) -> tuple[Shapes, set[str]]:
    """Shapes of a network's outputs, and the modules that return anything but one tensor, or attention and weights."""
    whole, odd = copied(model), set[str]()

    def look(path: str, module: nn.Module, _: object, returned: object) -> None:
        if not isinstance(returned, Tensor) and not isinstance(module, nn.MultiheadAttention):
            odd.add(path)

    for path, module in whole.named_modules(remove_duplicate=False):
        module.register_forward_hook(partial(look, path))
    return _shapes(run(whole.eval(), inputs, names)), odd


def _runs_without(model: nn.Module, inputs: Tensors, names: Names, shapes: Shapes, blocks: Iterable[Block]) -> bool:
    """Whether the network runs without some branches, and its outputs have the shapes that they had.

    All that stands where they were must be called: code that keeps a layer in a list as well calls that one.
    """
    smaller = copied(model)
    paths = [path for block in blocks for path in block.modules]
    unused = set(paths)
    try:
        surgery.remove(smaller, paths)
        for path in paths:
            smaller.get_submodule(path).register_forward_hook(lambda *_, path=path: unused.discard(path))
        return _shapes(run(smaller.eval(), inputs, names)) == shapes and not unused
    except Exception as error:  # whatever the model's code raises where it misses something
        logging.getLogger(__name__).debug("a branch stays, as the network without it fails: %s", error)
        return False


def _shapes(returned: object) -> Shapes:
    return [tuple(tensor.shape) for tensor in output_tensors(returned)]
