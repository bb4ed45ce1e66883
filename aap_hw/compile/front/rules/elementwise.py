"""Operators that keep each channel where it is and have keys of their own: activations, sums, batch normalisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.fx import Node

from aap_hw.compile.families.elementwise import ACTIVATIONS
from aap_hw.compile.families.expression import Expression, Term
from aap_hw.compile.front.aliases import writes_in_place
from aap_hw.compile.front.network import Normalization
from aap_hw.compile.front.rules.registry import Takes, rule
from aap_hw.compile.front.rules.steps import step_behind
from aap_hw.graph.program.call import Call, shape_of

if TYPE_CHECKING:
    from aap_hw.compile.front.making import Partition


def with_activation(partition: Partition, node: Node) -> tuple[Node, tuple[str, ...]]:
    """A node with the activation behind it, if that is its only reader: the last node of the two, and the epilogue."""
    if writes_in_place(node) and partition.memory.stale_after(node):
        return node, ()
    step = step_behind(partition, node)
    if step is None:
        return node, ()
    partition.absorb(*step.nodes)
    return step.nodes[-1], (step.text,)


@dataclass(frozen=True)
class Operand:
    """What an element-wise expression reads: a value of the network, or a constant of the model, under a name."""

    node: Node
    value: str
    shape: tuple[int, ...]
    is_constant: bool = False

    @property
    def name(self) -> str:
        """Its variable in the expression, which names the value too: in-place operators give a node new ones."""
        return f"{self.node.name} {self.value} {self.shape}"


def emit_alone(
    partition: Partition, node: Node, expression: Expression, operands: Mapping[str, Operand], *, is_image: bool
) -> bool:
    """Add the kernel of an expression that has a key of its own; returns whether it has.

    These are activations, sums and products of tensors of one shape, perhaps with an activation behind them, and images
    times a factor for each channel.
    """
    steps: tuple[str, ...] = ()
    match expression:
        case Term(step, (Term() as inner,)) if step in ACTIVATIONS:
            steps, expression = (step,), inner
    match expression:
        case Term(op, names) if (op in ACTIVATIONS and not steps) or op in ("add", "mul"):
            if not all(isinstance(name, str) and not operands[name].is_constant for name in names):
                return False
        case _:
            return False
    read = [operands[str(name)] for name in names]
    shape, shapes = shape_of(node), [each.shape for each in read]
    factors = *shape[:2], *[1] * (len(shape) - 2)
    if op == "mul" and is_image and {*shapes} == {shape, factors} != {shape}:
        op, read = "scale_channels", sorted(read, key=lambda each: each.shape != shape)
    elif {*shapes} != {shape} or len(shape) < 2:
        return False
    rows = not is_image and len(shape) > 2
    if rows and not partition.has_fixed_rows(node):
        return False
    partition.emit(node, op, read[0].node, [each.value for each in read], rows=rows, epilogue=steps)
    return True


@rule("batch_norm", takes=Takes.ROWS)
def batch_norm(partition: Partition, node: Node) -> None:
    """A batch normalisation that no convolution before it can take along."""
    image, normalization = Call(node)["input"], normalization_of(partition, node)
    inputs = [partition.placement.value_of(image, node)]
    last, steps = with_activation(partition, node)
    partition.emit(last, "affine", image, inputs, normalization=normalization, epilogue=steps)


def has_running_statistics(node: Node) -> bool:
    """Whether a batch normalisation is by statistics that it has, not by those of the batch."""
    call = Call(node)
    return call["running_mean"] is not None and call["running_var"] is not None and not call["training"]


def normalization_of(partition: Partition, node: Node) -> Normalization:
    """The parameters of a batch normalisation."""
    call = Call(node)
    mean = partition.parameter(call["running_mean"], node)
    variance = partition.parameter(call["running_var"], node)
    if mean is None or variance is None or call["training"]:
        raise partition.refused("batch normalisation without running statistics has no kernel", node)
    scale, shift = partition.parameter(call["weight"], node), partition.parameter(call["bias"], node)
    return Normalization(scale, shift, mean, variance, call["eps"])
