"""Modules that the code takes from a slice, as in ``for layer in self.layers[1:]``, by their names in the model.

Where the model holds some module under two names, PyTorch calls those of a slice after it:
``layers.slice(1, None, None).0.conv``. The slice itself, which the code may call as a whole, has no name in the model.
"""

from __future__ import annotations

import ast
import re

from torch import nn
from torch.export import ExportedProgram

_OF_SLICE = re.compile(r"\.slice\(([^()]*)\)\.(\w+)")


def name_modules_of_slices(program: ExportedProgram, model: nn.Module) -> None:
    """Write the names of modules into the program's notes on whose code its operators are from, in place."""
    for node in program.graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        if any(_OF_SLICE.search(str(path)) for path, _ in stack.values()):
            named = {key: (_own_path(str(path), model), kind) for key, (path, kind) in stack.items()}
            node.meta["nn_module_stack"] = named


def _own_path(path: str, model: nn.Module) -> str:
    while found := _OF_SLICE.search(path):
        before, (bounds, name) = path[: found.start()], found.groups()
        holder = model.get_submodule(before)
        if isinstance(holder, nn.ModuleList):  # a slice of one numbers its modules anew
            name = str(range(len(holder))[slice(*ast.literal_eval(f"({bounds})"))][int(name)])
        path = f"{before}.{name}{path[found.end() :]}"
    return path
