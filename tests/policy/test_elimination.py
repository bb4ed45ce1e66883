"""Maximising out one node after the other finds what counting out every choice of labels finds."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aap_hw.policy.elimination import Elimination


@settings(max_examples=100)
@given(st.integers(0, 2**32))
def test_best_labels_and_the_best_with_each_equal_brute_force(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 4, size=rng.integers(1, 7)).tolist()
    every = list(itertools.combinations(range(len(sizes)), 2))
    pairs = [pair[:: rng.choice([-1, 1])] for pair in every if rng.random() < 0.5]
    ones = [rng.normal(size=size) for size in sizes]
    # Some pairs are worth nothing, or not named at all.
    twos = {pair: rng.normal(size=(sizes[pair[0]], sizes[pair[1]])) for pair in pairs if rng.random() < 0.8}
    worth = {
        labels: sum(one[i] for one, i in zip(ones, labels, strict=True))
        + sum(each[labels[g], labels[h]] for (g, h), each in twos.items())
        for labels in itertools.product(*map(range, sizes))
    }
    elimination = Elimination(sizes, pairs)
    total, labels = elimination.best(ones, twos)
    assert total == pytest.approx(max(worth.values()))
    assert worth[labels] == pytest.approx(total)
    for node, found in enumerate(elimination.best_with_each(ones, twos)):
        for label, most in enumerate(found):
            assert most == pytest.approx(max(each for at, each in worth.items() if at[node] == label))


def test_a_chain_needs_tables_of_two_nodes_and_a_clique_one_of_all():
    chain = [(i, i + 1) for i in range(9)]
    clique = list(itertools.combinations(range(10), 2))
    assert Elimination([3] * 10, chain).entries == 9 * 3**2 + 3
    assert Elimination([3] * 10, clique).entries == sum(3**i for i in range(1, 11))
