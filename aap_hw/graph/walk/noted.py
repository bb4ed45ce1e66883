"""What is noted of single nodes while a program is walked: who makes channels, and what must follow a cut."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from aap_hw.graph.walk.absorbing import Rows
from aap_hw.graph.walk.labels import IntArray


@dataclass(frozen=True)
class Producer:
    """A convolution or linear layer whose filters make channels.

    Parameters
    ----------
    node
        Its node in the graph.
    ids
        Atom of each of its output channels.
    """

    node: Node
    ids: IntArray


@dataclass(frozen=True)
class Literal:
    """A node to which the model's code passes channel counts as numbers.

    Parameters
    ----------
    node
        The node, a split for example.
    counts
        Pairs of a number that it gets and the atoms that the number counts.
    dim
        Which length of a view or new tensor the only number is: the code may ask another one for it, so that it follows
        by itself.
    """

    node: Node
    counts: tuple[tuple[int, IntArray], ...]
    dim: int | None = None


@dataclass(frozen=True)
class Renormalised:
    """A norm over channels.

    Parameters
    ----------
    node
        Where it is taken.
    ids
        Atoms of the channels.
    sentence
        What is said of them, for the user to read.
    """

    node: Node
    ids: IntArray
    sentence: str


@dataclass(frozen=True)
class Divided:
    """Attention that divides by the root of a width by itself.

    Parameters
    ----------
    node
        Its node.
    rows
        What makes up for it in a cut network.
    ids
        Atoms that the width counts.
    """

    node: Node
    rows: tuple[Rows, ...]
    ids: IntArray


@dataclass(frozen=True, eq=False)
class Meeting:
    """Channels of two activations that are multiplied with each other and summed over, as those of queries and keys.

    Parameters
    ----------
    node
        Where they meet.
    left, right
        The activations.
    ids
        Atoms along the axis that is summed over.
    """

    node: Node
    left: Node
    right: Node
    ids: IntArray
