"""No rule overlooks an argument of its operator: what is not named in a rule's file is known not to matter.

A new version of PyTorch may add arguments to operators, and a rule that does not know one would drop it without a word.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from functools import cache
from types import ModuleType

import torch

from aap_hw.compile.front import einsums, rules
from aap_hw.compile.front.rules import RULES
from aap_hw.compile.front.rules.slow import IGNORED

# Said by the shape of the result, which all rules read.
OF_THE_RESULT = {
    *("output_size", "ceil_mode", "start_dim", "end_dim", "sizes", "shape", "other", "implicit", "keepdim", "chunks"),
    *("split_size", "split_sizes", "sections", "indices", "tensor_indices_or_sections", "size"),
}
OF_TRAINING = {"momentum", "padding_idx", "scale_grad_by_freq", "sparse", "sparse_grad"}
# What is random is refused before any rule is called, and so are packed sequences.
REFUSED = {"train", "dropout", "dropout_p", "batch_sizes"}
# Rules sort stably, and read both operands of a product; another type of it is for GPUs.
KNOWN = OF_THE_RESULT | OF_TRAINING | REFUSED | IGNORED | {"stable", "sorted", "mat2", "vec", "tensor", "out_dtype"}
READ = (f"{rules.__name__}.", einsums.__name__)
# Arguments of functions of Python's lists, which no program has.
OF_LISTS = {"el", "reverse"}


@cache
def named_in(module: ModuleType) -> frozenset[str]:
    """The strings in a module, and in the modules of rules and of equations that it imports from."""
    tree, found = ast.parse(inspect.getsource(module)), set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(READ):
            name = node.module.rpartition(".")[2]
            if name not in ("slow", "registry"):
                found |= named_in(importlib.import_module(node.module))
    return frozenset(found)


def arguments_of(operator: str) -> Iterator[str]:
    """The arguments behind the first of all overloads that take a tensor first and write into none that is given."""
    packet = getattr(torch.ops.aten, operator, None)
    for overload in packet.overloads() if packet is not None else ():
        arguments = getattr(packet, overload)._schema.arguments
        is_of_lists = overload.endswith("_list")  # of Python, which programs do not have
        if "Tensor" in str(arguments[0].type) and not is_of_lists and not any(each.is_out for each in arguments):
            yield from (each.name for each in arguments[1:])


def test_no_argument_is_overlooked() -> None:
    overlooked = {
        f"{operator}({argument})"
        for operator, rule in RULES.items()
        for argument in arguments_of(operator)
        if argument not in KNOWN | OF_LISTS | named_in(inspect.getmodule(rule.make))
    }
    assert overlooked == set()
