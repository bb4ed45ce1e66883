"""Places of calls in a model's code, by which a view is found again in another export."""

from __future__ import annotations

from collections import Counter
from typing import TypeAlias

from torch.export import ExportedProgram
from torch.fx import Node

from aap_hw.graph.program.source import own_frames, path_of

Place: TypeAlias = tuple[object, ...]


def places_of(program: ExportedProgram) -> dict[Node, Place]:
    """Where in the model's code each call is, told so that it is found again in another export, also of a cut model.

    A place is the path of a module, a line, an operator, and how many calls of the kind come before it.
    """
    found: dict[Node, Place] = {}
    before = Counter[Place]()
    for node in program.graph.nodes:
        if node.op == "call_function":
            alike = path_of(node), next(own_frames(node), None), str(node.target)
            found[node] = (*alike, before[alike])
            before[alike] += 1
    return found
