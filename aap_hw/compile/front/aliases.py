"""Which values of an exported program share memory, so that all readers see what an in-place operator writes.

``torch.export`` keeps in-place operators. A later reader of the tensor itself reads the operator's result, but a reader
of a view or alias of it (``detach``, a slice, ``flatten``) does not. Those views are found here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from torch.fx import Node

from aap_hw.graph.program.call import is_tensor, storage_of


class Memory:
    """The nodes of a program by the storage that they live in."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._position = {node: i for i, node in enumerate(nodes)}
        self._sharing: dict[int, list[Node]] = defaultdict(list)
        for node in filter(is_tensor, nodes):
            self._sharing[storage_of(node.meta["val"])].append(node)

    def place_of(self, node: Node) -> int:
        """Position of a node in the program."""
        return self._position[node]

    def stale_after(self, node: Node) -> list[Node]:
        """Values made before ``node``, in its memory, that something reads after it."""
        now = self._position[node]
        return [
            other
            for other in self.sharing(node)
            if self._position[other] < now and any(self._position[user] > now for user in other.users)
        ]

    def sharing(self, node: Node) -> list[Node]:
        """Values in the memory of ``node``, itself among them, in the program's order."""
        return self._sharing[storage_of(node.meta["val"])] if is_tensor(node) else []


def writes_in_place(node: Node) -> bool:
    """Whether the operator of a node overwrites its first argument."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.name.endswith("_")


def readers_of(node: Node) -> set[Node]:
    """Nodes that read a value and have an effect; the checks that export inserts have none."""
    return {user for user in node.users if user.op != "call_function" or user.users or writes_in_place(user)}
