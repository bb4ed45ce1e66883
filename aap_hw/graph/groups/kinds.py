"""What kind of channels a group holds, in the field's words, read off the network's graph.

The first of these that fits:

``output``
    What the network returns, such as its classes. Never cut.
``embedding``
    Rows of tokens (N, ..., C) that several layers add to, as a transformer's blocks do; or what an embedding table
    looks up.
``stream``
    Any other channels that several layers add to: the residual stream of a stage of ResNet or MobileNetV2.
``hidden``
    The state of a recurrent layer.
``query-key``
    What a product of two computed tensors is summed over, as the queries and keys of attention are: the width of a
    head, or of all heads alike.
``heads``
    What both sides of such a product have and it keeps apart: whole heads of attention.
``value``
    What such a product passes on from one side: the values of attention.
``mlp``
    Made and read by linear layers only: the middle of a transformer's MLP.
``inner``
    All others, mostly made by one convolution and read by the next: the middle of a bottleneck, the expansion of
    MobileNetV2. Depthwise convolutions pass channels on, so that they are of the kind of what they read.

Only graph and labels decide, not the names of modules.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Set

from torch.fx import Node

from aap_hw.graph.groups.groups import ChannelGroup
from aap_hw.graph.program.call import Call, is_tensor, shape_of
from aap_hw.graph.walk.rules.filled import FILLED

KINDS = ("output", "embedding", "stream", "hidden", "query-key", "heads", "value", "mlp", "inner")

Held = Mapping[str, Set[int]]
"""Names of the groups whose channels a value holds, each with the axes that they run along."""

_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})
_TRANSPOSED = frozenset({"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"})
_RECURRENT = frozenset(f"{name}{cell}" for name in ("lstm", "gru", "rnn_tanh", "rnn_relu") for cell in ("", "_cell"))
_PRODUCTS = frozenset({"matmul", "bmm", "mm", "addmm", "baddbmm", "einsum", "scaled_dot_product_attention"})
_SUMS = frozenset({"add", "sub", "rsub"})


def kinds_of(
    nodes: Iterable[Node], groups: Iterable[ChannelGroup], inputs: Set[str], held_by: Callable[[str], Held]
) -> dict[str, str]:
    """The kind of each group by its name.

    Parameters
    ----------
    nodes
        Those of an exported program, in its order.
    inputs
        Names of the nodes that stand for the network's inputs.
    held_by
        What a node's value holds, by its name.
    """
    walk = _Walk(held_by, inputs)
    for node in nodes:
        walk.visit(node)
    return {group.name: walk.kind(group.name) for group in groups}


class _Walk:
    """Collects of each group which layers make and read it, and what else is done with it.

    Parameters
    ----------
    held_by
        What a node's value holds, by its name.
    inputs
        Names of the nodes that stand for the network's inputs.
    """

    def __init__(self, held_by: Callable[[str], Held], inputs: Set[str]) -> None:
        self._held_by, self._inputs = held_by, inputs
        # Of each value that depends on the input: the layers that made what it holds, by group.
        self._sources: dict[Node, dict[str, frozenset[Node]]] = {}
        self._makers: dict[str, set[str]] = defaultdict(set)
        self._readers: dict[str, set[str]] = defaultdict(set)
        self._known: dict[str, set[str]] = defaultdict(set)

    def kind(self, name: str) -> str:
        """The kind of a group."""
        makers, readers, fits = self._makers[name], self._readers[name], set(self._known[name])
        fits.update(kind for kind, ops in (("embedding", {"embedding"}), ("hidden", _RECURRENT)) if makers & ops)
        if makers == readers == {"linear"}:
            fits.add("mlp")
        return next((kind for kind in KINDS if kind in fits), "inner")

    def visit(self, node: Node) -> None:
        """Take note of one operator; the ones that it reads were visited."""
        read = [source for source in node.all_input_nodes if source in self._sources]
        if node.op == "output":
            for source in read:
                self._note("output", self._sources[source])
        if node.op == "placeholder" and node.name in self._inputs:
            self._sources[node] = {}
        if node.op != "call_function" or not read:
            return
        call = Call(node)
        if call.name in FILLED:  # of what `new_zeros` reads, only the type counts
            return
        is_layer = _is_layer(call) or (call.name in _PRODUCTS and len(read) == 1 and len(call.tensors) > 1)
        self._trace(call, read, is_layer)
        if is_layer:
            for name in self._sources[read[0]]:
                self._readers[name].add(_layer_name(call))
        elif call.name in _SUMS and len(read) == 2:
            self._sum(call, *read)
        elif call.name in _PRODUCTS:
            self._product(call)

    def _note(self, kind: str, names: Iterable[str]) -> None:
        for name in names:
            self._known[name].add(kind)

    def _trace(self, call: Call, read: list[Node], is_layer: bool) -> None:
        """Which layers made what a value holds: the operator itself, or those whose channels it passes on."""
        made: dict[str, frozenset[Node]] = {}
        for name in self._held_by(call.node.name):
            passed = [self._sources[source][name] for source in read if name in self._sources[source]]
            if is_layer or not passed:
                made[name] = frozenset({call.node})
                self._makers[name].add(_layer_name(call))
            else:
                made[name] = frozenset().union(*passed)
        self._sources[call.node] = made

    def _sum(self, call: Call, left: Node, right: Node) -> None:
        """A residual sum has sides that different layers made; x + x ** 3 and x + x * gate(x) have not."""
        if shape_of(left) != shape_of(right):
            return
        rows = {len(call.out_shape) - 1} - {0, 1}
        for name, axes in self._held_by(call.node.name).items():
            sides = [self._sources[side].get(name, frozenset()) for side in (left, right)]
            if all(sides) and not sides[0] & sides[1]:
                self._note("embedding" if axes == rows else "stream", [name])

    def _product(self, call: Call) -> None:
        for node, own, other, made in _factors(call):
            for name, axes in self._held_by(node.name).items() if node in self._sources else ():
                letters = {own[axis] for axis in axes}
                is_shared = letters <= set(other)
                self._note("query-key" if letters - set(made) else "heads" if is_shared else "value", [name])


def _is_layer(call: Call) -> bool:
    """Whether an operator makes channels of those that it reads: a depthwise convolution passes them on."""
    if call.name in _CONVOLUTIONS:
        return bool(call["groups"] == 1 or shape_of(call["weight"])[1] > 1)
    if call.name in _TRANSPOSED:
        return bool(call["groups"] == 1 or call["groups"] != shape_of(call["weight"])[0])
    return call.name in ("linear", "embedding") or call.name in _RECURRENT


def _layer_name(call: Call) -> str:
    return "linear" if call.name in _PRODUCTS else call.name


def _factors(call: Call) -> Iterator[tuple[Node, str, str, str]]:
    """Each factor of a product: its node, and letters for its axes, the other factor's, and those of what they make."""
    if call.name == "scaled_dot_product_attention":
        query, key, value = call["query"], call["key"], call["value"]
        queries, keys, values = _letters(query, "le"), _letters(key, "se"), _letters(value, "sv")
        weights = _letters(query, "ls")
        yield from ((query, queries, keys, weights), (key, keys, queries, weights))
        yield value, values, weights, _letters(query, "lv")
        return
    if call.name == "einsum":
        operands, equation = call["tensors"], str(call["equation"]).replace(" ", "")
        words, _, made = equation.partition("->")
        letters = words.split(",")
    else:
        adding = {"addmm": ("mat1", "mat2"), "baddbmm": ("batch1", "batch2")}.get(call.name)
        operands = [call[name] for name in adding] if adding else [call.node.args[0], call.node.args[1]]
        letters = [_letters(operands[0], "ik"), _letters(operands[1], "kj")]
        made = max((each[:-2] for each in letters), key=len) + "ij"
    if len(operands) == len(letters) == 2 and all(map(len, letters)):
        yield operands[0], letters[0], letters[1], made
        yield operands[1], letters[1], letters[0], made


def _letters(node: Node, last: str) -> str:
    """A letter for each axis: the last are given, those before are named from the right, as broadcasting counts."""
    before = len(shape_of(node)) - len(last) if is_tensor(node) else 0
    return "".join(chr(ord("A") + place) for place in reversed(range(before))) + last
