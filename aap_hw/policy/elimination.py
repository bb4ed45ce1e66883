"""The best labels where each is worth something on its own and some worth something in pairs, and nothing is limited.

Exact, by maximising out one node after the other (bucket elimination: Dechter 1999, "Bucket elimination: a unifying
framework for reasoning"). A node costs a table over itself and its neighbours, which then become neighbours of each
other. So it is quick for graphs that are nearly chains, which networks of residual blocks are, and out of the question
for dense ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aap_hw.policy.problem import FloatArray, Plan

Pair = tuple[int, int]


@dataclass(frozen=True)
class _Bucket:
    """A node with the neighbours that it has when its turn comes.

    Attributes
    ----------
    neighbours : in the order in which they will be maximised out.
    shape : of the table of the node, on the first axis, and its neighbours.
    pairs : those of the node and a neighbour, whether the node is the second, and the shape that puts them onto the
        table.
    children : the nodes whose result is a table over some of these axes, with the shape that puts it there.
    """

    node: int
    neighbours: tuple[int, ...]
    shape: tuple[int, ...]
    pairs: tuple[tuple[Pair, bool, tuple[int, ...]], ...]
    children: list[tuple[int, tuple[int, ...]]]


class Elimination:
    """An order for the nodes of one graph, made once and used for any values.

    Parameters
    ----------
    sizes
        How many labels each node has.
    pairs
        The nodes that are worth something in pairs, each pair once.
    """

    def __init__(self, sizes: Sequence[int], pairs: Iterable[Pair]) -> None:
        self._sizes = tuple(sizes)
        neighbours: list[set[int]] = [set() for _ in sizes]
        linked: dict[int, list[Pair]] = {}
        self._decided: list[Pair] = []
        for g, h in pairs:
            if 1 in (sizes[g], sizes[h]):  # nothing is left to choose of one, so that the other is on its own
                self._decided.append((g, h))
                continue
            neighbours[g].add(h)
            neighbours[h].add(g)
            for node in (g, h):
                linked.setdefault(node, []).append((g, h))
        order, scopes = self._order(neighbours)
        place = {node: i for i, node in enumerate(order)}
        self._buckets: list[_Bucket] = []
        for node in order:
            others = tuple(sorted(scopes[node], key=place.__getitem__))
            axes = (node, *others)
            own = [pair for pair in linked.get(node, ()) if {*pair} <= {*axes}]
            shaped = tuple((pair, pair[1] == node, self._shape(axes, pair)) for pair in own)
            self._buckets.append(_Bucket(node, others, tuple(sizes[each] for each in axes), shaped, []))
        for bucket in self._buckets:
            if bucket.neighbours:
                parent = self._buckets[place[bucket.neighbours[0]]]
                axes = (parent.node, *parent.neighbours)
                parent.children.append((bucket.node, self._shape(axes, bucket.neighbours)))

    @property
    def entries(self) -> int:
        """Numbers in all tables together: what a call takes, in time and memory."""
        return sum(math.prod(bucket.shape) for bucket in self._buckets)

    def best(self, ones: Sequence[FloatArray], twos: Mapping[Pair, FloatArray]) -> tuple[float, Plan]:
        """The highest sum that any labels have, and the labels.

        Parameters
        ----------
        ones
            What each label of each node is worth.
        twos
            What the labels of pairs are worth together, finite, with one axis for either node. A pair that is missing
            is worth nothing.
        """
        tables, results = self._tables(ones, twos)
        labels = [0] * len(self._sizes)
        for bucket in reversed(self._buckets):
            at = tuple(labels[other] for other in bucket.neighbours)
            labels[bucket.node] = int(np.argmax(np.moveaxis(tables[bucket.node], 0, -1)[at]))
        return self._total(results), tuple(labels)

    def best_with_each(self, ones: Sequence[FloatArray], twos: Mapping[Pair, FloatArray]) -> list[FloatArray]:
        """For each label of each node the highest sum of any labels with it; the parameters are those of `best`."""
        tables, results = self._tables(ones, twos)
        total = self._total(results)
        # What everything that is not in a bucket or below it adds, by the labels of its neighbours.
        others: dict[int, FloatArray] = {}
        found: list[FloatArray] = [np.zeros(0)] * len(self._sizes)
        for bucket in reversed(self._buckets):
            node = bucket.node
            whole = tables[node]
            whole = whole + (others[node] if bucket.neighbours else total - results[node])
            found[node] = whole.max(axis=tuple(range(1, whole.ndim)))
            for child, shape in bucket.children:
                gone = tuple(axis for axis, size in enumerate(shape) if size == 1 and whole.shape[axis] > 1)
                kept = whole.max(axis=gone, keepdims=True).reshape(results[child].shape)
                others[child] = kept - results[child]
        return found

    def _tables(
        self, ones: Sequence[FloatArray], twos: Mapping[Pair, FloatArray]
    ) -> tuple[dict[int, FloatArray], dict[int, FloatArray]]:
        """By node: the table over it and its neighbours, and what is left of it without the node."""
        ones = list(ones)
        for g, h in self._decided:
            if (together := twos.get((g, h))) is not None:
                on, added = (h, together[0]) if self._sizes[g] == 1 else (g, together[:, 0])
                ones[on] = ones[on] + added
        tables: dict[int, FloatArray] = {}
        results: dict[int, FloatArray] = {}
        for bucket in self._buckets:
            table = np.zeros(bucket.shape)
            table += ones[bucket.node].reshape(-1, *[1] * len(bucket.neighbours))
            for pair, is_turned, shape in bucket.pairs:
                if (together := twos.get(pair)) is not None:
                    table += (together.T if is_turned else together).reshape(shape)
            for child, shape in bucket.children:
                table += results[child].reshape(shape)
            tables[bucket.node] = table
            results[bucket.node] = table.max(axis=0)
        return tables, results

    def _total(self, results: Mapping[int, FloatArray]) -> float:
        return math.fsum(float(results[bucket.node]) for bucket in self._buckets if not bucket.neighbours)

    def _shape(self, axes: Sequence[int], some: Sequence[int]) -> tuple[int, ...]:
        """What puts a table over some of the axes, which are in the same order, onto all of them."""
        return tuple(self._sizes[axis] if axis in some else 1 for axis in axes)

    def _order(self, neighbours: Sequence[set[int]]) -> tuple[list[int], dict[int, set[int]]]:
        """The node with the smallest table first, and so on; and the neighbours that each then has."""
        left = {node: set(others) for node, others in enumerate(neighbours)}
        cost = {node: self._entries(node, others) for node, others in left.items()}
        order, scopes = [], {}
        while cost:
            node = min(cost, key=cost.__getitem__)
            del cost[node]
            order.append(node)
            scopes[node] = left.pop(node)
            for other in scopes[node]:
                left[other] |= scopes[node]
                left[other] -= {node, other}
            cost |= {other: self._entries(other, left[other]) for other in scopes[node]}
        return order, scopes

    def _entries(self, node: int, others: Iterable[int]) -> int:
        return math.prod((self._sizes[each] for each in others), start=self._sizes[node])
