"""What a walk through a program notes: labels, which channels belong together, and what is said of them.

Labels are kept per node and atoms per axis of a parameter. The correctness of a cut may depend on numbers in the
model's own code: at some nodes (`doubtful`), and some of these are known to count channels (`literals`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from torch.fx import Node

from aap_hw.graph.program.call import Call
from aap_hw.graph.program.source import explain
from aap_hw.graph.walk.absorbing import Rows
from aap_hw.graph.walk.labels import IntArray, Labels
from aap_hw.graph.walk.noted import Divided, Literal, Meeting, Producer, Renormalised
from aap_hw.graph.walk.rules.registry import Result
from aap_hw.graph.walk.ties import Ties


class Notes:
    """Notes of one walk; at its beginning there are none."""

    def __init__(self) -> None:
        self.ties = Ties()
        self.labels: dict[Node, Result] = {}
        self.across: dict[Node, Result] = {}
        self.axes: dict[tuple[str, int], IntArray] = {}
        self.roles: dict[tuple[str, int], str] = {}
        self.producers: list[Producer] = []
        self.doubtful: list[Node] = []
        self.numbers: list[Node] = []
        self.literals: list[Literal] = []
        self.divided: list[Divided] = []
        self.renormalised: list[Renormalised] = []
        self.products: dict[Node, Meeting] = {}
        self.splits: dict[Node, tuple[int, ...]] = {}
        self.whole_heads: dict[Node, IntArray] = {}
        self.side_by_side: list[IntArray] = []
        self.roots: dict[Node, Node] = {}
        self.by_chance: dict[Node, None] = {}
        self.unsupported: Counter[str] = Counter()

    # What the rules say.

    def tie(self, left: IntArray, right: IntArray, call: Call) -> None:
        """Cut `left` and `right` only together; a partner that cannot be cut freezes the other."""
        self.ties.tie(left, right, explain("is combined with channels that cannot be cut", call.node))

    def produced(self, node: Node, ids: IntArray) -> None:
        """Note that the filters of `node` make the channels `ids`."""
        self.producers.append(Producer(node, ids))

    def is_made(self, labels: Labels) -> bool:
        """Whether a layer makes the channels, and nothing is known that forbids to cut them."""
        if self.ties.is_frozen(labels.ids):
            return False
        return any(np.isin(labels.ids, producer.ids).any() for producer in self.producers)

    def freeze(self, channels: Labels | IntArray, sentence: str, call: Call) -> None:
        """Forbid cutting any of the channels; the reason is `sentence` and where `call` stands."""
        ids = channels.ids if isinstance(channels, Labels) else channels
        self.ties.freeze(ids, explain(sentence, call.node))

    def renormalise(self, labels: Labels, call: Call, sentence: str = "is normalised over") -> None:
        """Note that `call` normalises over these channels, so that a cut changes what it makes of the others."""
        self.renormalised.append(Renormalised(call.node, labels.ids, explain(sentence, call.node)))

    def doubt(self, call: Call) -> None:
        """Note that the model's own code may hold a channel count as a number here: to be tried out."""
        self.doubtful.append(call.node)

    def number(self, call: Call) -> None:
        """Note that the code passes a number here that is no length: rarely a count of channels, but worth a trial."""
        self.numbers.append(call.node)

    def literal(self, call: Call, counts: Sequence[tuple[int, IntArray]]) -> None:
        """Note that numbers which the code passes count atoms, so that they must follow when these are cut."""
        self.literals.append(Literal(call.node, tuple(counts)))
        self.doubt(call)

    def length(self, call: Call, dim: int, number: int, ids: IntArray) -> None:
        """Note that the code passes the length of an axis of a view or new tensor, which may follow when `ids` go."""
        self.literals.append(Literal(call.node, ((number, ids),), dim))
        self.doubt(call)

    def rescaled(self, node: Node, rows: tuple[Rows, ...], ids: IntArray) -> None:
        """Note that attention divides by the root of how many `ids` there are, for which `rows` can make up."""
        self.divided.append(Divided(node, rows, ids))

    def mark(self) -> tuple[tuple[int, int], int, int, int]:
        """How much has been tied, frozen, made up for and taken for chance so far, for `back_to`."""
        return self.ties.mark(), len(self.divided), len(self.roots), len(self.by_chance)

    def back_to(self, mark: tuple[tuple[int, int], int, int, int]) -> None:
        """Forget what was tied, frozen, made up for and taken for chance since."""
        of_ties, divided, roots, by_chance = mark
        self.ties.back_to(of_ties)
        del self.divided[divided:]
        for node in [*self.roots][roots:]:
            del self.roots[node]
        for node in [*self.by_chance][by_chance:]:
            del self.by_chance[node]
