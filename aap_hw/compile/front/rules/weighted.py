"""Kernels with weights, and what they take along: a bias, batch normalisation, a residual, and steps of an epilogue."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch.fx import Node

from aap_hw.compile.families.elementwise import ACTIVATIONS
from aap_hw.compile.front.aliases import writes_in_place
from aap_hw.compile.front.network import Normalization
from aap_hw.compile.front.program import is_transparent
from aap_hw.compile.front.rules.elementwise import has_running_statistics, normalization_of
from aap_hw.compile.front.rules.padding import Padded
from aap_hw.compile.front.rules.slow import RESHAPES
from aap_hw.compile.front.rules.steps import factor_of, step_behind, summand_of, turns_to_image
from aap_hw.graph.program.call import Call, shape_of

if TYPE_CHECKING:
    from aap_hw.compile.front.making import Partition


@dataclass(frozen=True)
class Layer:
    """What a kernel with weights reads.

    Attributes
    ----------
    image, weight, bias : nodes of the program.
    value : the name of the image's value, if it is not to be looked up.
    is_turned : whether the weight is (C_in, C_out), as in a product that is written by hand.
    added : another value of the shape of the result, that the operator itself adds.
    """

    image: Node
    weight: Node
    bias: Node | None = None
    value: str | None = None
    is_turned: bool = False
    added: Node | None = None

    @staticmethod
    def of(node: Node) -> Layer:
        """That of an operator which names them as all layers do."""
        call = Call(node)
        return Layer(call["input"], call["weight"], call["bias"])

    @staticmethod
    def padded(node: Node, read: Padded) -> Layer:
        """The same, of an image that the kernel pads."""
        return replace(Layer.of(node), image=read.image, value=read.value)


def weighted(partition: Partition, node: Node, op: str, layer: Layer, *, rows: bool = False, **attributes: Any) -> None:
    """Add a kernel with weights, and the element-wise chain behind it that only it feeds."""
    weight, bias = partition.parameter(layer.weight, node), partition.parameter(layer.bias, node)
    normalization: Normalization | None = None
    addition: tuple[Node, Node, bool] | None = None  # the operator, the value that it adds, and whether that is rows
    turned = False  # whether the rows are permuted to an image
    viewed = False  # whether vectors are viewed as rows
    steps, last = ["bias"], node
    if layer.added is not None:
        addition = node, layer.added, True
        steps.append("add")

    def takes(follower: Node) -> bool:
        """Whether the kernel takes along an operator that is not a function in its epilogue."""
        nonlocal bias, normalization, addition, turned, viewed
        name, as_rows = Call(follower).name, (rows or viewed) and not turned
        axis = -1 if as_rows else 1
        if name == "batch_norm" and is_plain() and last is node and not rows and has_running_statistics(follower):
            normalization = normalization_of(partition, follower)
        elif as_rows and turns_to_image(follower):
            turned = True
        elif layer.is_turned and not turned and _views_as_rows(partition, follower, last):
            viewed = not rows
        elif may_have_bias() and (summand := summand_of(partition, follower, last, axis)):
            bias = summand
        elif is_plain() and (factor := factor_of(partition, follower, last, axis)):
            normalization = replace(normalization or Normalization(), factor=factor)
        elif name == "add" and addition is None and (other := _residual(partition, follower, last, as_rows)):
            addition = follower, other, as_rows
            steps.append("add")
        else:
            return is_transparent(follower)
        return True

    def is_plain() -> bool:
        """Whether the value so far is the sum of products plus bias, and has no factor yet."""
        return steps == ["bias"] and (normalization is None or normalization.factor is None)

    def may_have_bias() -> bool:
        """Whether the value so far is the product alone, to which code that is written by hand adds the bias."""
        return layer.is_turned and bias is None and normalization is None and steps == ["bias"]

    while True:
        follower = partition.next_alone(last)
        if follower is not None and takes(follower):
            absorbed: tuple[Node, ...] = (follower,)
        elif step := step_behind(partition, last):
            absorbed = step.nodes
            steps.append(step.text)
        else:
            break
        partition.absorb(*absorbed)
        last = absorbed[-1]
        if steps[-1] in ACTIVATIONS:
            break
    if viewed:
        attributes["size"] = ()  # each row is a vector of its own still
    inputs = [layer.value or _read(partition, layer.image, node, rows=rows)]

    def emit() -> None:
        if addition is not None:
            reader, added, are_rows = addition
            inputs.append(_read(partition, added, reader, rows=are_rows))
        partition.emit(
            last,
            op,
            layer.image,
            inputs,
            rows=rows or viewed,
            turned=turned,
            weight=weight,
            bias=bias,
            normalization=normalization,
            is_turned=layer.is_turned,
            epilogue=tuple(steps),
            **attributes,
        )

    # The input is read as it is now, but a residual as it is when the program adds it.
    if addition is None or addition[0] is node:
        emit()
    else:
        partition.wait(addition[0], emit)


def _read(partition: Partition, value: Node, reader: Node, *, rows: bool) -> str:
    return (partition.placement.value_in_order if rows else partition.placement.value_of)(value, reader)


def _views_as_rows(partition: Partition, view: Node, vectors: Node) -> bool:
    """Whether a view changes nothing of the last axis of vectors (N, ..., C), and puts others before it."""
    if Call(view).name not in RESHAPES or view.meta["val"].dtype != vectors.meta["val"].dtype:
        return False
    made = partition.graph.width_of(view.name, -1)
    return (
        len(shape_of(view)) > 2
        and shape_of(view)[-1] == shape_of(vectors)[-1]
        and made == partition.graph.width_of(vectors.name, -1)
        and partition.has_fixed_rows(view)
    )


def _residual(partition: Partition, add: Node, this: Node, rows: bool) -> Node | None:
    """What ``add`` adds to ``this``, if it can be fused: another activation of the same shape."""
    others = [a for a in add.args if isinstance(a, Node) and a is not this]
    if len(others) != 1 or Call(add)["alpha"] != 1:
        return None
    if writes_in_place(add) and Call(add).first is not this and partition.memory.stale_after(add):
        return None
    fits = shape_of(others[0]) == shape_of(add) == shape_of(this) and is_residual(partition, others[0], rows=rows)
    return others[0] if fits else None


def is_residual(partition: Partition, value: Node, *, rows: bool) -> bool:
    """Whether a kernel can read and add a value: something holds it, and not in another order of axes."""
    is_held = not partition.is_parameter(value) and not partition.is_void(value)
    return is_held and (not rows or partition.placement.is_plain(value))
