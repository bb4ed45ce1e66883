"""Whether a mean, variance or length over channels is the statistic of a norm that the model's code writes out.

Recognised, over any axes:

- ``(x - mean(x)) / sqrt(mean((x - mean(x)) ** 2) + eps)``, also with ``var``, ``var_mean``, ``std`` or a length;
- ``x / sqrt(mean(x ** 2) + eps)``, a root mean square;
- ``x / norm(x)`` with whatever keeps it from 0, as `torch.nn.functional.normalize` does;
- ``x / (mean(x) + eps)``, the divisive norm of ConvNeXt V2 (arXiv 2301.00808, section 3.2).

All that reads the statistic must be such a norm of the very tensor that it was taken of: what may stand between is
listed in `_inverse`. A mean that is only taken away is none: what is left is not brought to a scale.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator

from torch.fx import Node

from aap_hw.graph.program.call import SAME_NUMBERS, Call, is_tensor, shape_of

_SAME = SAME_NUMBERS | {"clone", "contiguous", "type_as"}
# What leaves a statistic one number for all channels of its position, and of the same power.
_KEEPS = _SAME | {"clamp", "clamp_min", "maximum", "add", "mul", "expand_as", "expand", "unsqueeze"}
_SHAPED = frozenset({"reshape", "unsqueeze", "view"})
_POWERS = frozenset({"sqrt", "rsqrt", "pow", "reciprocal"})
_DEVIATIONS = frozenset({"std", "std_mean", "linalg_vector_norm"})
_VARIANCES = frozenset({"var", "var_mean"})


def is_of_norm(call: Call) -> bool:
    """Whether the result of a reduction is only used to normalise what was reduced."""
    node, source = call.node, plain(call.first)
    if call.name in _DEVIATIONS | _VARIANCES:
        power = 1.0 if call.name in _DEVIATIONS else 2.0
        several = not is_tensor(node)
        spreads = [user for user in node.users if user.args[1:] == (0,)] if several else [node]
        means = [user for user in node.users if user not in spreads] if several else []
        is_spread = bool(spreads) and all(_scales(each, source, power) for each in spreads)
        return is_spread and all(_is_taken_away(mean, source) for mean in means)
    if call.name not in ("mean", "sum"):
        return False
    # A mean of means may be the statistic of either.
    return any(_is_statistic(call, each) for each in dict.fromkeys((source, _reduced(source))))


def _is_statistic(call: Call, source: Node) -> bool:
    """Whether a mean or sum is only used to normalise what it was taken of, ``source`` or the root of that."""
    squared = _root(source)
    if squared is not None:
        return _scales(call.node, squared, 2.0)
    return call.name == "mean" and (_scales(call.node, source, 1.0) or _centres(call.node, source))


def meets_factor(statistic: Node) -> bool:
    """Whether a statistic of a norm is multiplied by a number of the code's on its way."""
    for user in statistic.users:
        name = Call(user).name if user.op == "call_function" and user.all_input_nodes == [statistic] else ""
        if name == "mul" or (name in _KEEPS | _POWERS and meets_factor(user)):
            return True
    return False


def plain(node: Node) -> Node:
    """What a node is another form of: the same values in another type or place."""
    while node.op == "call_function" and Call(node).name in _SAME:
        node = Call(node).first
    return node


def _reduced(node: Node) -> Node:
    """What a mean over some axes is taken of, if a node is one, or means of it over several axes in turn."""
    node = plain(node)
    while node.op == "call_function" and Call(node).name == "mean":
        node = plain(Call(node).first)
    return node


def _root(node: Node) -> Node | None:
    """What a node is the square of."""
    if node.op != "call_function":
        return None
    call = Call(node)
    if call.name == "square" or (call.name == "pow" and call.get("exponent") == 2):
        return plain(call.first)
    if call.name == "mul" and len(node.all_input_nodes) == 1 and node.args[0] is node.args[1]:
        return plain(call.first)
    return None


def _scales(node: Node, source: Node, power: float) -> bool:
    """Whether all that reads a statistic of `source`, to a power, divides it or `source` less its mean by it."""
    found = False
    for user in node.users:
        if user.op != "call_function" or not is_tensor(user):
            return False
        call = Call(user)
        match call.name:
            case "sqrt":
                after = power / 2
            case "rsqrt":
                after = -power / 2
            case "reciprocal":
                after = -power
            case "pow" if isinstance(call.get("exponent"), float | int):
                after = power * call["exponent"]
            case "div" | "mul" if _is_divided(user, node, source, power):
                found = True
                continue
            case name if name in _KEEPS and _is_kept(user, node, name):
                after = power
            case "mean" if user.args[0] is node:  # over further axes
                after = power
            case _:
                return False
        if not _scales(user, source, after):
            return False
        found = True
    return found


def _is_divided(user: Node, statistic: Node, source: Node, power: float) -> bool:
    left, right = user.args[0], user.args[1]
    if power == 1 and Call(user).name == "div":
        return right is statistic and isinstance(left, Node) and _is_of(_unscaled(left), source)
    if power == -1 and Call(user).name == "mul":
        other = left if right is statistic else right
        return isinstance(other, Node) and _is_of(_unscaled(other), source)
    return False


def _unscaled(node: Node) -> Node:
    """What a node is times parameters, which code may multiply first: ``gamma * (x - mean) / spread``."""
    while node.op == "call_function" and Call(node).name == "mul":
        left, right = ([each for each in node.args if isinstance(each, Node)] * 2)[:2]
        factors = [each for each in (left, right) if _is_of_parameter(each)]
        if left is right or len(factors) != 1:
            break
        node = right if factors[0] is left else left
    return node


def _is_of_parameter(node: Node) -> bool:
    """Whether a node is something that the network keeps, or is given, in another shape at most."""
    while node.op == "call_function" and Call(node).name in _SAME | _SHAPED:
        node = Call(node).first
    return node.op == "placeholder"


def _is_kept(user: Node, statistic: Node, name: str) -> bool:
    """Whether a statistic stays one: a number is added or multiplied, it is repeated, or takes another type."""
    others = [node for node in user.all_input_nodes if node is not statistic]
    if user.args[:2] == (statistic, statistic):
        return False
    if user.args[:1] != (statistic,) and name not in ("add", "mul", "maximum"):
        return False
    if name in ("expand_as", "type_as"):
        return True
    return all(is_tensor(other) and max(shape_of(other), default=1) == 1 for other in others)


def _is_of(node: Node, source: Node) -> bool:
    """Whether a node is `source`, but for a mean that is taken away of either."""
    here = plain(node)
    return (_whole(here) or here) is (_whole(source) or source)


def _whole(node: Node) -> Node | None:
    """What a node is less its mean."""
    if node.op != "call_function" or Call(node).name != "sub" or not isinstance(node.args[1], Node):
        return None
    source, mean = plain(Call(node).first), plain(node.args[1])
    if mean.op == "call_function" and mean.target is operator.getitem:  # of ``torch.var_mean``
        mean = Call(mean)["self"]
    is_mean = mean.op == "call_function" and Call(mean).name in ("mean", "var_mean", "std_mean")
    return source if is_mean and _reduced(Call(mean).first) is source else None


def _is_taken_away(mean: Node, source: Node) -> bool:
    """Whether all that reads a mean of `source` takes it away from it."""
    for user in mean.users:
        if user.op != "call_function":
            return False
        if Call(user).name in _SAME or (Call(user).name == "mean" and Call(user).first is mean):
            if not _is_taken_away(user, source):
                return False
        elif _whole(user) is not source or user.args[1] is not mean:
            return False
    return True


def _centres(mean: Node, source: Node) -> bool:
    """Whether a mean is taken away, and what is left, or the whole, is divided by how far it spreads."""
    if not mean.users or not _is_taken_away(mean, source):
        return False
    axes = _axes(mean)
    spreads = [each for each in _spreads(source) if axes and _axes(each) == axes]
    for user in _forms(mean, _SAME | {"mean"}):
        spreads += [
            each
            for centred in user.users
            if _whole(centred) is source
            for each in _spreads(centred)
            if _axes(each) == axes
        ]
    return any(is_of_norm(Call(each)) for each in spreads)


def _forms(node: Node, further: frozenset[str] = _SAME) -> Iterator[Node]:
    """A node, and what has its values in another type or place, or comes from it by ``further`` operators."""
    yield node
    for user in node.users:
        if user.op == "call_function" and Call(user).name in further:
            yield from _forms(user, further)


def _spreads(node: Node) -> Iterator[Node]:
    """Variances and the like of a node."""
    for form in _forms(node):
        for user in form.users:
            if user.op != "call_function":
                continue
            if Call(user).name in _DEVIATIONS | _VARIANCES and user.args[0] is form:
                yield user
            elif _root(user) is not None:
                yield from (
                    further
                    for square in _forms(user)
                    for each in square.users
                    if each.op == "call_function" and Call(each).name in ("mean", "sum")
                    for further in _forms(each, _SAME | {"mean"})
                )


def _axes(node: Node) -> frozenset[int]:
    """The axes that a reduction is over."""
    call = Call(node)
    rank, dims = len(shape_of(call.first)), call.get("dim")
    return frozenset(dim % rank for dim in ([dims] if isinstance(dims, int) else dims or range(rank)))
