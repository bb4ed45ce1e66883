"""Products of two tensors that the network computes: of matrices, einsum, attention.

An axis that is summed over has channels on both sides, as the queries and keys of attention have: channel d of one
meets channel d of the other and nothing else, so that they are cut together, and the sum lacks one term. Axes that both
sides have and that are not summed over (images, heads) are cut together, too. All other axes pass into the result,
which can have channels along one axis: where both factors bring one, as in linear attention, the first's are frozen.

Attention between channels (XCiT, arXiv 2106.09681, equation 2) is the exception: a matrix of channels by channels, each
row of which a softmax may normalise, times the values of its columns. Its columns are labelled across. The softmax is
taken over the columns that stay, so that their channels are renormalised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import TYPE_CHECKING

from torch.fx import Node

from aap_hw.graph.program.call import SAME_NUMBERS, Call, is_tensor, shape_of
from aap_hw.graph.walk.absorbing import absorbing
from aap_hw.graph.walk.labels import IntArray, Labels
from aap_hw.graph.walk.noted import Meeting
from aap_hw.graph.walk.rules.pointwise import merge
from aap_hw.graph.walk.rules.registry import Result, rule

if TYPE_CHECKING:
    from aap_hw.graph.walk.labelling import Labelling

_ADDING = {"addmm": ("mat1", "mat2"), "baddbmm": ("batch1", "batch2")}
_MATRIX_PRODUCTS = frozenset({"matmul", "bmm"})
_SOFTMAX = frozenset({"softmax", "_softmax"})
_SAME = SAME_NUMBERS | {"clone", "contiguous", "dropout"}
_SEVERAL = "is multiplied with channels that run along another axis"


@dataclass(frozen=True)
class Factor:
    """One side of a product.

    Parameters
    ----------
    labels, shape
        Of the tensor.
    axes
        A letter for each of its axes; axes of the same letter meet.
    node
        That yields it, if one does.
    across
        Labels along a second axis, of a matrix of channels by channels.
    """

    labels: Labels
    shape: tuple[int, ...]
    axes: str
    node: Node | None = None
    across: Labels | None = None

    @staticmethod
    def of(state: Labelling, node: Node, axes: str) -> Factor:
        """A node with its axes named."""
        across = state.across.get(node)
        return Factor(state.of(node), shape_of(node), axes, node, across if isinstance(across, Labels) else None)

    def with_heads(self, count: int) -> Factor:
        """Keys or values whose heads are so many, each of which was there once for several in a row."""
        dim = len(self.shape) - 3
        labels = self.labels.repeated(dim, count // self.shape[dim])
        return replace(self, labels=labels, shape=(*self.shape[:dim], count, *self.shape[dim + 1 :]))

    def channels(self, letter: str) -> IntArray | None:
        """Atoms along an axis; of an axis that is stretched to the other side's length there are none to follow."""
        dim = self.axes.find(letter)
        along = (each for each in (self.labels, self.across) if each is not None and dim in each.dims)
        return next((each.ids.ravel() for each in along if self.has(letter)), None)

    def has(self, letter: str) -> bool:
        """Whether it has values of its own at each place of an axis."""
        dim = self.axes.find(letter)
        return dim >= 0 and self.shape[dim] > 1


def product(state: Labelling, call: Call, left: Factor, right: Factor, made: str) -> Labels:
    """Labels of what two factors give when they are multiplied and summed over all letters that are not ``made``."""
    sides = (left, right)
    if any(len(side.labels.dims) > 1 for side in sides):
        return _frozen(state, call, sides, _SEVERAL, len(made))
    passing: dict[str, IntArray] = {}
    for letter in dict.fromkeys(left.axes + right.axes):
        found = [_free(state, side.channels(letter)) for side in sides]
        ids = next((each for each in found if each is not None), None)
        if ids is None:
            continue
        if found[0] is not None and found[1] is not None:
            state.tie(found[0], found[1], call)
            if letter not in made and left.node is not None and right.node is not None and left.across is None:
                state.products[call.node] = Meeting(call.node, left.node, right.node, ids)
        elif letter not in made:
            state.freeze(ids, "is summed over with other channels", call)
        elif left.has(letter) and right.has(letter):
            state.freeze(ids, "is combined with channels that cannot be cut", call)
        if letter in made and left.has(letter) and right.has(letter):
            state.side_by_side.append(ids)
        if letter in made:
            passing[letter] = ids
    if [*passing] == [*made[-2:]] and (matrix := _until_it_is_summed(call)):
        columns = Labels.along(len(made), len(made) - 1, passing.pop(made[-1]))
        for node in matrix:
            state.across[node] = columns
            if Call(node).name in _SOFTMAX:
                state.renormalise(columns, Call(node))
    return _passed(state, call, passing, made, is_outer={*left.axes, *right.axes} == {*made})


def _until_it_is_summed(call: Call) -> list[Node]:
    """A product and what its value goes through until another product sums over its columns; empty if none does."""
    found = [call.node]
    while len(found[-1].users) == 1 and call.name in _MATRIX_PRODUCTS:
        (user,), last = found[-1].users, found[-1]
        reader = Call(user)
        if reader.name in _MATRIX_PRODUCTS:
            return found if reader.names_of(last) == ["self"] else []
        if not is_tensor(user) or shape_of(user) != shape_of(last):
            return []
        is_softmax = reader.name in _SOFTMAX and reader["dim"] % len(shape_of(user)) == len(shape_of(user)) - 1
        others = [each for each in user.all_input_nodes if each is not last]
        is_same = (reader.pointwise or reader.name in _SAME) and all(
            is_tensor(each) and set(shape_of(each)[-2:]) <= {1} for each in others
        )
        if not is_softmax and not is_same:
            return []
        found.append(user)
    return []


def _free(state: Labelling, ids: IntArray | None) -> IntArray | None:
    return None if ids is None or state.ties.is_frozen(ids) else ids


def _passed(
    state: Labelling, call: Call, passing: Mapping[str, IntArray], made: str, *, is_outer: bool = False
) -> Labels:
    """Labels along the one axis that the last factor has channels on; those along any other axis are frozen.

    Of a product without a sum, in which all channels meet all others, the longest axis stays.
    """
    in_order = [*passing] or [""]
    if is_outer:
        in_order.sort(key=lambda letter: passing[letter].size if letter else 0)
    *others, last = in_order
    for letter in others:
        state.freeze(passing[letter], _SEVERAL, call)
    return Labels.along(len(made), made.index(last), passing[last]) if last else Labels.none(len(made))


def _frozen(state: Labelling, call: Call, sides: Sequence[Factor], sentence: str, rank: int) -> Labels:
    for side in sides:
        state.freeze(side.labels, sentence, call)
    return Labels.none(rank)


def letters(rank: int, last: str) -> str:
    """Names of axes, of which the last are given; those before are named from the right, as broadcasting counts."""
    before = rank - len(last)
    return "".join(chr(ord("A") + place) for place in reversed(range(before))) + last


@rule("addmm", "baddbmm")
def product_and_sum(state: Labelling, call: Call) -> Result:
    """A product of matrices to which something is added, as the bias is in the Conv1D of GPT-2."""
    made, added = _matrices(state, call, *(call[name] for name in _ADDING[call.name])), call["self"]
    if (call["alpha"], call["beta"]) != (1, 1):
        state.doubt(call)  # which may be counts of channels
    if not isinstance(made, Labels):
        return made
    return merge(state, call, [made, state.of(added, [made])], [call.out_shape, shape_of(added)])


@rule("matmul", "bmm", "mm")
def matrix_product(state: Labelling, call: Call) -> Result:
    """Rows of the left side times columns of the right one."""
    return _matrices(state, call, call["self"], call["other" if call.name == "matmul" else "mat2"])


def _matrices(state: Labelling, call: Call, left: Node, right: Node) -> Result:
    """Labels of a product; a matrix of parameters on either side is a linear layer written by hand."""
    ranks = (len(shape_of(left)), len(shape_of(right)))
    if min(ranks) < 2:
        return state.not_understood(call)
    if _is_of_parameters(state, call, (left, right)):
        return Labels.none(max(ranks))
    matrix = state.matrix(right)
    if matrix is not None and not _mixes_places(state, call, matrix, left, ranks[0] - 1):
        name, read, filters = matrix
        state.tie(state.channels(left, ranks[0] - 1, call), state.parameter_axis(name, read, "in"), call)
        made = state.parameter_axis(name, filters, "out")
        state.produced(call.node, made)
        return Labels.along(ranks[0], ranks[0] - 1, made)
    matrix = state.matrix(left)
    if matrix is not None and not _mixes_places(state, call, matrix, right, ranks[1] - 2):
        name, filters, read = matrix
        state.tie(state.channels(right, ranks[1] - 2, call), state.parameter_axis(name, read, "in"), call)
        made = state.parameter_axis(name, filters, "out")
        state.produced(call.node, made)
        return Labels.along(ranks[1], ranks[1] - 2, made)
    sides = Factor.of(state, left, letters(ranks[0], "ik")), Factor.of(state, right, letters(ranks[1], "kj"))
    return product(state, call, *sides, letters(max(ranks), "ij"))


def _is_of_parameters(state: Labelling, call: Call, sides: Sequence[Node]) -> bool:
    """Whether a product is of parameters or new tensors alone: fewer terms would be another number, so they stay."""
    if not all(map(state.is_of_parameters, sides)) and not all(map(state.is_made_by_code, sides)):
        return False
    for side in sides:
        state.freeze(state.of(side), "is multiplied with parameters alone", call)
    return True


def _mixes_places(state: Labelling, call: Call, matrix: tuple[str, int, int], other: Node, summed: int) -> bool:
    """Whether a matrix of parameters, as that of a graph's edges, mixes places of each channel alone.

    Channels pass, then, and nothing of the matrix can go.
    """
    labels = state.of(other)
    if summed in labels.dims or not state.is_made(labels):
        return False
    name, *dims = matrix
    for dim in dims:
        axis = state.parameter_axis(name, dim, "fixed")
        state.freeze(axis, "is made along another axis than that of the channels", call)
    return True


@rule("einsum")
def einsum(state: Labelling, call: Call) -> Result:
    """Axes by their letters; of two tensors, each with distinct letters. One may be the weights of layers."""
    equation, operands = str(call["equation"]).replace(" ", ""), call["tensors"]
    words, arrow, made = equation.partition("->")
    sides = words.split(",")
    if not arrow or "." in equation or len(operands) != 2 or len(sides) != 2:
        return state.not_understood(call)
    if any(len(set(word)) < len(word) for word in (*sides, made)):
        return state.not_understood(call)
    if _is_of_parameters(state, call, operands):
        return Labels.none(len(made))
    for (weight, of_weight), (other, of_other) in permutations(zip(operands, sides, strict=True)):
        name, summed, new = state.weight_name(weight), set(of_weight) & set(of_other), set(of_weight) & set(made)
        if name is not None and len(of_weight) == 2 and len(summed) == len(new) == 1 and not summed & new:
            (read,), (filters,) = summed, new
            if _mixes_places(state, call, (name, 0, 1), other, of_other.index(read)):
                continue
            channels = state.channels(other, of_other.index(read), call)
            state.tie(channels, state.parameter_axis(name, of_weight.index(read), "in"), call)
            ids = state.parameter_axis(name, of_weight.index(filters), "out")
            state.produced(call.node, ids)
            return Labels.along(len(made), made.index(filters), ids)
        if name is not None and len(of_weight) > 2:
            labels = _layers(state, call, (name, of_weight), (other, of_other), made)
            if labels is not None:
                return labels
    left, right = (Factor.of(state, node, word) for node, word in zip(operands, sides, strict=True))
    return product(state, call, left, right, made)


def _layers(state: Labelling, call: Call, weight: tuple[str, str], read: tuple[Node, str], made: str) -> Labels | None:
    """Labels of what a parameter of several axes makes of channels, as experts side by side; None if it is no layer.

    Of what it makes, the last axis holds the channels, and nothing else of it can go.
    """
    (name, letters), (other, of_other) = weight, read
    new = [letter for letter in made if letter in letters and letter not in of_other]
    channels = [of_other[dim] for dim in state.of(other).dims]
    summed = [letter for letter in letters if letter in of_other and letter not in made]
    is_whole = set(channels) <= set(summed) and set(letters) <= {*made, *of_other}
    if not new or not summed or len(channels) > 1 or not is_whole:
        return None
    for dim, letter in enumerate(letters):
        if letter not in (*channels, new[-1]):
            sentence = "is made along another axis than that of the channels"
            state.freeze(state.parameter_axis(name, dim, "fixed"), sentence, call)
    for letter in channels:
        ids = state.channels(other, of_other.index(letter), call)
        state.tie(ids, state.parameter_axis(name, letters.index(letter), "in"), call)
    filters = state.parameter_axis(name, letters.index(new[-1]), "out")
    state.produced(call.node, filters)
    return Labels.along(len(made), made.index(new[-1]), filters)


@rule("scaled_dot_product_attention")
def attention(state: Labelling, call: Call) -> Result:
    """softmax(Q Kᵀ scale + mask) V: channels of queries and keys meet, those of the values pass.

    Without a scale, PyTorch divides by the root of the width of the queries, which a cut changes: the rows of the
    weights that make the queries must make up for it.
    """
    query, key, value, mask = (call[name] for name in ("query", "key", "value", "attn_mask"))
    rank = max(len(shape_of(each)) for each in (query, key, value))
    if min(len(shape_of(each)) for each in (query, key, value)) < 2:
        return state.not_understood(call)
    q, k, v = (
        Factor.of(state, node, letters(len(shape_of(node)), last))
        for node, last in ((query, "le"), (key, "se"), (value, "sv"))
    )
    if call.get("enable_gqa"):
        k, v = (each.with_heads(q.shape[-3]) for each in (k, v))
    width = q.channels("e")
    if width is not None and call.get("scale") is None:
        taken = absorbing(state, call.node, "query") or absorbing(state, call.node, "key")
        if taken is None:
            state.freeze(width, "is divided by the root of its width, which no weight before it can make up for", call)
        else:
            state.rescaled(call.node, taken, width)
    weights = product(state, call, q, k, letters(rank, "ls"))
    shape = (*call.out_shape[:-1], shape_of(key)[-2])
    if mask is not None and is_tensor(mask):
        weights = merge(state, call, [weights, state.of(mask)], [shape, shape_of(mask)])
    if rank - 1 in weights.dims:
        state.freeze(weights, "is normalised or accumulated over channels", call)
    return product(state, call, Factor(weights, shape, letters(rank, "ls")), v, letters(rank, "lv"))
