"""One call of an op with its arguments by name, whether the graph gives them by position or by keyword.

Covers ops with a schema (aten and custom ones) and ``operator.getitem``; for anything else only the tensors
that go in are known, and `name` is empty.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_arg

# Operators that give the numbers that they get, in another type or place at most.
SAME_NUMBERS = frozenset({"_to_copy", "alias", "detach", "to"})
# Names of the operator that lays tensors side by side.
JOINS = frozenset({"cat", "concat", "concatenate"})
# Operators that ask of a tensor for its shape and type alone.
OF_SHAPE = frozenset({"full_like", "new_full", "new_ones", "new_zeros", "ones_like", "zeros_like"})
# Of `where`, the forms with a number; what ``&``, ``|`` and ``^`` call.
POINTWISE_WITHOUT_TAG = frozenset({"__and__", "__or__", "__xor__", "hardswish", "log_sigmoid", "where"})


def shape_of(node: Node) -> tuple[int, ...]:
    """Shape of a node that yields one tensor."""
    return tuple(node.meta["val"].shape)


def is_tensor(node: Node) -> bool:
    """Whether a node yields one tensor."""
    return isinstance(node.meta.get("val"), torch.Tensor)


def is_static(node: Node) -> bool:
    """Whether the lengths of all the tensors that a node yields are known, whatever the image holds, and not 0."""
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else [value]
    return all(
        type(size) is int and size > 0 for item in values if isinstance(item, torch.Tensor) for size in item.shape
    )


def is_empty(node: Node) -> bool:
    """Whether a node yields one tensor, of known lengths of which one is 0."""
    return is_tensor(node) and all(type(size) is int for size in shape_of(node)) and 0 in shape_of(node)


def added_by_padding(call: Call) -> list[tuple[int, int]]:
    """How many positions ``pad`` puts before and behind each axis of what it gets; negative ones are taken away."""
    given = call["pad"]
    pairs = list(zip(given[::2], given[1::2], strict=True))
    return [*[(0, 0)] * (len(shape_of(call.first)) - len(pairs)), *pairs[::-1]]


def storage_of(value: torch.Tensor) -> int:
    """A number for the memory that a tensor lives in. Those of a program are fake, and have no address."""
    return int(value.untyped_storage()._cdata)


def is_same_view(one: Node, other: Node) -> bool:
    """Whether two values in the same memory are the same elements in the same order."""
    a, b = one.meta["val"], other.meta["val"]
    return bool((a.shape, a.stride(), a.storage_offset()) == (b.shape, b.stride(), b.storage_offset()))


class Call:
    """A call node read through its schema.

    Parameters
    ----------
    node
        A ``call_function`` node.

    Attributes
    ----------
    name
        Name of an op of aten or torchvision without namespace, overload and the underscore of in-place variants;
        ``"getitem"``; or ``""`` for what is neither.
    pointwise
        Whether each element of the result depends only on the elements at its position.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.name = ""
        self.pointwise = False
        self._written: tuple[str, ...] = ()
        self._arguments: dict[str, Any] = {}
        if node.target is operator.getitem:
            self.name = "getitem"
            self._arguments = {"self": node.args[0], "index": node.args[1]}
        elif hasattr(node.target, "_schema"):
            known = _operator(node.target)
            self.name, self.pointwise, self._written = known.name, known.pointwise, known.written
            self._arguments = {**known.defaults, **node.kwargs, **dict(zip(known.defaults, node.args, strict=False))}

    def __getitem__(self, argument: str) -> Any:
        return self._arguments[argument]

    def get(self, argument: str, default: Any = None) -> Any:
        """The argument's value, or `default` if this overload has no such argument."""
        return self._arguments.get(argument, default)

    def names_of(self, value: Node) -> list[str]:
        """The arguments that are a node."""
        return [name for name, given in self._arguments.items() if given is value]

    @property
    def first(self) -> Node:
        """The first argument, which for most ops is the tensor that they transform."""
        value = next(iter(self._arguments.values()))
        assert isinstance(value, Node)
        return value

    @property
    def written(self) -> list[Node]:
        """The nodes whose values the op writes into."""
        found: list[Node] = []
        map_arg([self._arguments[name] for name in self._written], found.append)
        return found

    @property
    def tensors(self) -> list[Node]:
        """The distinct tensor nodes that go in, by position or by keyword."""
        return [node for node in self.node.all_input_nodes if is_tensor(node)]

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the result, for ops that yield one tensor."""
        return shape_of(self.node)

    @property
    def out_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of all the tensors that the op yields."""
        value = self.node.meta.get("val")
        values = value if isinstance(value, (tuple, list)) else [value]
        return [tuple(item.shape) for item in values if isinstance(item, torch.Tensor)]


def training_argument(node: Node) -> str | None:
    """Name of the argument that says whether the network trains; None if a call has none.

    Batch norms without statistics of their own take the batch's in evaluation, too, so theirs says something else.
    """
    call = Call(node)
    if call.get("running_mean", node) is None:
        return None
    return next((name for name in ("train", "training") if call.get(name) is not None), None)


def set_argument(node: Node, argument: str, value: Any) -> None:
    """Change an argument of a call, wherever it stands."""
    target: Any = node.target
    for place, each in enumerate(target._schema.arguments):
        if each.name == argument:
            if place < len(node.args):
                node.update_arg(place, value)
            else:
                node.update_kwarg(argument, value)


def add_call(before: Node, like: Node, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
    """A call ahead of another one, which is in the same place of the model's code as a third."""
    with before.graph.inserting_before(before):
        node = before.graph.call_function(function, args, kwargs)
    node.meta = dict(like.meta)
    calculate(node)
    return node


def replace_call(node: Node, value: Node) -> None:
    """Put a value in place of a call, under its name: outputs and scales of quantised values go by names."""
    node.replace_all_uses_with(value)
    node.graph.erase_node(node)
    value.name = node.name


def calculate(node: Node) -> None:
    """Replace the fake value of a call, of the kind that export gives it, by that for what it reads now."""
    value = node.meta["val"]
    fake = value[0] if isinstance(value, (tuple, list)) else value
    given: Any = map_arg((node.args, node.kwargs), lambda each: each.meta["val"])
    args, kwargs = given
    target: Any = node.target
    with fake.fake_mode, torch.no_grad():
        node.meta["val"] = target(*args, **kwargs)


@dataclass(frozen=True)
class _Operator:
    """What the schema of an op says: see `Call`. Schemas are slow to read, and programs call few different ops."""

    name: str
    pointwise: bool
    defaults: dict[str, Any]
    written: tuple[str, ...]


@cache
def _operator(target: Any) -> _Operator:
    arguments, (namespace, _, name) = target._schema.arguments, target._schema.name.partition("::")
    is_known = namespace in ("aten", "torchvision")
    name = (name if name.startswith("__") else name.removesuffix("_")) if is_known else ""
    # PyTorch lacks the tag for some in-place forms, as those of relu6, mish and gelu.
    plain = getattr(getattr(torch.ops.aten, name, None), target._overloadname, target)
    tagged = any(torch.Tag.pointwise in getattr(each, "tags", ()) for each in (target, plain))
    return _Operator(
        name,
        is_known and (tagged or name in POINTWISE_WITHOUT_TAG),
        {each.name: each.default_value for each in arguments},
        tuple(each.name for each in arguments if each.alias_info is not None and each.alias_info.is_write),
    )
