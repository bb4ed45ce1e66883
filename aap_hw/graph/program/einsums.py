"""Einsums as products of two tensors each, with a letter for every axis and the axes of the result named.

`torch.tensordot` and `torch.inner` are einsums, too.

``einsum("...id,...jd->...ij", q, k)`` names no axis before the last two, ``einsum("ij,jk", a, b)`` none of the result,
and one of three tensors is a product of the first two times the third, as PyTorch computes it. Only this form has
rules and kernels. A product that sums over no axis is one of elements. Left as they are: einsums of one tensor, and
those in which an axis of length 1 meets a longer one.
"""

from __future__ import annotations

import string

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from aap_hw.graph.program.call import Call, add_call, is_static, replace_call, shape_of

_ATEN = torch.ops.aten
_REST = "..."


def spell_out_einsums(program: ExportedProgram) -> None:
    """Replace each such einsum in the program's graph, in place."""
    for target in (_ATEN.inner.default, _ATEN.tensordot.default):
        for node in program.graph.find_nodes(op="call_function", target=target):
            _as_einsum(node)
    nodes = program.graph.find_nodes(op="call_function", target=_ATEN.einsum.default)
    for node in nodes:
        call = Call(node)
        tensors = list(call["tensors"])
        words = _words(call["equation"], tensors) if len(tensors) > 1 and all(map(is_static, tensors)) else None
        if words is None:
            continue
        *read, made = words
        left, letters = tensors[0], read[0]
        for place, (right, word) in enumerate(zip(tensors[1:], read[1:], strict=True), start=2):
            needed = {*made, *"".join(read[place:])}
            kept = made if place == len(tensors) else "".join(x for x in dict.fromkeys(letters + word) if x in needed)
            left = _product(node, (left, right), (letters, word), kept)
            letters = kept
        replace_call(node, left)
    if nodes:
        program.graph.lint()
        program.graph_module.recompile()


def _as_einsum(node: Node) -> None:
    """Replace a product that sums over given axes, or over the last ones."""
    call = Call(node)
    ranks = [len(shape_of(call[name])) for name in ("self", "other")]
    if not all(ranks):
        return
    left, right = string.ascii_lowercase[: ranks[0]], list(string.ascii_uppercase[: ranks[1]])
    summed = (call["dims_self"], call["dims_other"]) if call.name == "tensordot" else ([-1], [-1])
    for one, other in zip(*summed, strict=True):
        right[other] = left[one]
    made = [letter for letter in (*left, *right) if (letter in left) != (letter in right)]
    equation = f"{left},{''.join(right)}->{''.join(made)}"
    value = add_call(node, node, _ATEN.einsum.default, equation, [call["self"], call["other"]])
    if not value.meta["val"].is_contiguous():  # which the code may have relied on
        value = add_call(node, node, _ATEN.contiguous.default, value)
    replace_call(node, value)


def _product(node: Node, tensors: tuple[Node, Node], words: tuple[str, str], made: str) -> Node:
    """Two tensors multiplied, element by element if nothing is summed over and no axes change their order."""
    if any([letter for letter in made if letter in word] != list(word) for word in words):
        return add_call(node, node, _ATEN.einsum.default, f"{words[0]},{words[1]}->{made}", list(tensors))
    wide = []
    for tensor, word in zip(tensors, words, strict=True):
        first = min((made.index(letter) for letter in word), default=0)  # axes before it are there by broadcasting
        for place, letter in enumerate(made[first:]):
            if letter not in word:
                tensor = add_call(node, node, _ATEN.unsqueeze.default, tensor, place)
        wide.append(tensor)
    return add_call(node, node, _ATEN.mul.Tensor, *wide)


def _words(equation: str, tensors: list[Node]) -> list[str] | None:
    """A letter for each axis of each tensor, and of the result; None if letters cannot tell what is computed."""
    before, arrow, made = equation.replace(" ", "").partition("->")
    read = before.split(",")
    if not arrow:
        named = before.replace(_REST, "").replace(",", "")
        made = (_REST if _REST in before else "") + "".join(x for x in sorted(set(named)) if named.count(x) == 1)
    free = [letter for letter in string.ascii_letters if letter not in before]
    ranks = [len(shape_of(each)) - len(word.replace(_REST, "")) for word, each in zip(read, tensors, strict=True)]
    most = max((rank for word, rank in zip(read, ranks, strict=True) if _REST in word), default=0)
    if most > len(free):
        return None
    rest = "".join(free[:most])
    words = [word.replace(_REST, rest[most - rank :]) for word, rank in zip(read, ranks, strict=True)]
    lengths: dict[str, int] = {}
    for word, each in zip(words, tensors, strict=True):
        sizes = shape_of(each)
        if len(word) != len(sizes) or any(lengths.setdefault(x, n) != n for x, n in zip(word, sizes, strict=True)):
            return None
    return [*words, made.replace(_REST, rest)]
