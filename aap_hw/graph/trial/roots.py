"""The factor of attention that a model's code computes from a shape: ``q * q.shape[-1] ** -0.5``.

The code may pass the number as a tensor: ``weights / torch.full([], q.shape[-1] ** 0.5)``, as that of GPT-2 does.
It changes with the width of queries and keys as PyTorch's own does, and is made up for in the same way; see `scaling`.
That a number is such a root shows when a trial cut changes it. Only the largest products may be divided, or their mean,
as YOLO-World does: of products that are twice as large, so is that. Queries and keys may have half of the factor each:
``(q * s ** -0.25) @ (k * s ** -0.25).mT``, as Whisper and the networks of diffusion models do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch.fx import Node

from aap_hw.graph.groups.groups import Grouping
from aap_hw.graph.groups.widths import width_of_ids
from aap_hw.graph.program.call import Call
from aap_hw.graph.program.source import own_frames
from aap_hw.graph.walk.absorbing import Rows, absorbing, is_number, moved
from aap_hw.graph.walk.labelling import Labelling
from aap_hw.graph.walk.labels import IntArray

_OPERANDS = {
    "matmul": ("self", "other"), "bmm": ("self", "mat2"), "baddbmm": ("batch1", "batch2"), "einsum": ("0", "1"),
}  # fmt: skip
# What is twice as large for values that are.
_POSITIVE = frozenset({"amax", "amin", "max", "mean", "min", "relu", "sum"})


@dataclass(frozen=True, eq=False)
class Root:
    """A product with a number, before or behind a product of queries and keys.

    Parameters
    ----------
    node
        Where the number is.
    divides
        Whether something is divided by it.
    product
        Where queries and keys meet.
    ids
        Atoms along the axis that is summed over.
    is_half
        Whether queries and keys have half of the factor each, which is the root of the root then.
    """

    node: Node
    divides: bool
    product: Node
    ids: IntArray
    is_half: bool = False

    @staticmethod
    def at(labelling: Labelling, node: Node) -> Root | None:
        """What a node may be by its place."""
        if (root := Root._alone_at(labelling, node)) is None:
            return None
        equal = [each for each in labelling.labels if each.op == "call_function" and each.args[1:] == node.args[1:]]
        others = [other for each in equal if each is not node and (other := Root._alone_at(labelling, each))]
        shared = [other for other in others if other.product is root.product and other.divides == root.divides]
        return replace(root, is_half=len(shared) == 1)

    @staticmethod
    def _alone_at(labelling: Labelling, node: Node) -> Root | None:
        number = node.args[1] if len(node.args) == 2 else None
        user = next(iter(node.users)) if is_number(node) else node
        if Call(user).name not in ("mul", "div") or not isinstance(number, (int, float)):
            return None
        if Call(user).get("rounding_mode") is not None:
            return None
        for product in (_behind(labelling, user), _before(labelling, user)):
            if product is not None and Call(product).name in _OPERANDS:
                return Root(node, Call(user).name == "div", product, labelling.products[product].ids)
        return None

    def explains(self, new: Node, grouping: Grouping, widths: Mapping[str, int]) -> bool:
        """Whether the number has changed as the root of the width has, and nothing else."""
        width = width_of_ids(self.ids, grouping)
        old_number, number = self.node.args[1], new.args[1]
        if not width.terms or not isinstance(old_number, (int, float)) or not isinstance(number, (int, float)):
            return False
        ratio = (width.at(widths) / self.ids.size) ** (0.25 if self.is_half else 0.5)
        return math.isclose(number, old_number * (ratio if self.divides else 1 / ratio), rel_tol=1e-9)


def take_up(labelling: Labelling, root: Root) -> bool:
    """Let the weights before a product make up for a root, here and in all blocks alike; whether that is possible.

    Not in blocks whose products keep their width, as those whose whole heads are cut.
    """
    alike = [node for node in labelling.labels if node.op == "call_function" and _is_like(node, root.node)]
    if root.node in labelling.roots:
        return False
    rows: dict[Root, tuple[Rows, ...]] = {}
    for each in filter(None, (Root.at(labelling, node) for node in alike)):
        for operand in _OPERANDS[Call(each.product).name]:
            if taken := absorbing(labelling, each.product, operand):
                rows[each] = taken
                break
        else:
            return False
    for each, taken in rows.items():
        if not each.is_half or each.product not in labelling.roots.values():  # one of two halves makes up for both
            labelling.rescaled(each.product, taken, each.ids)
        labelling.roots[each.node] = each.product
    return True


def _is_like(node: Node, other: Node) -> bool:
    return node.target == other.target and list(own_frames(node)) == list(own_frames(other))


def _behind(labelling: Labelling, node: Node) -> Node | None:
    """The product that a node's value goes to, by moves alone."""
    while len(node.users) == 1:
        user = next(iter(node.users))
        if user in labelling.products:
            return user
        if moved(user) is not node:
            return None
        node = user
    return None


def _before(labelling: Labelling, node: Node) -> Node | None:
    """The product that a node's value comes from, by moves or as a maximum or mean, and that goes nowhere else.

    A mask that is added at once would be divided, too, and no weight makes up for that.
    """
    while (source := moved(node) or _as_large(node)) is not None and len(_used(source)) == 1:
        if source in labelling.products:
            return None if Call(source).name == "baddbmm" else source
        node = source
    return None


def _as_large(node: Node) -> Node | None:
    """What a node is as many times as large as, such as that which it is the maximum of; not for a maximum's place."""
    is_place = any(Call(user).name == "getitem" and user.args[1] != 0 for user in _used(node))
    sources = node.all_input_nodes
    return sources[0] if Call(node).name in _POSITIVE and len(sources) == 1 and not is_place else None


def _used(node: Node) -> list[Node]:
    """Those that read a node, but for results of several that nobody reads."""
    return [user for user in node.users if user.users or Call(user).name != "getitem"]
