"""The columns of a table are channels, its rows are not, even where a linear layer shares the table.

Nor is any parameter cut that something else reads along another axis.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aap_hw.graph import ChannelGraph
from aap_hw.graph.check.self_check import checked_cut
from tests.compile.running import assert_compiled_equals_pytorch


class Tied(nn.Module):
    """A small language model, whose head is its table of embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.gru = nn.Embedding(20, 9), nn.GRU(9, 9, batch_first=True)
        self.head = nn.Linear(9, 20, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        return self.head(x + self.gru(x)[0])


class TiedByProduct(Tied):
    """The same by a product with the table turned over."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        return (x + self.gru(x)[0]) @ torch.transpose(self.table.weight.to(x.dtype), 0, 1)  # type: ignore[no-any-return]


def test_columns_of_a_tied_table_are_cut_and_its_rows_are_not(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, ids = Tied().double().eval(), torch.randint(0, 20, (2, 6))
    graph = ChannelGraph.trace(model, (ids,))
    reasons = {group.name: group.frozen for group in graph.groups}
    (free,) = (name for name, reason in reasons.items() if reason is None)
    assert any(
        "is a row of a table that is read by its number (nn.Embedding 'table'" in str(r) for r in reasons.values()
    )
    keep = {free: [0, 2, 3, 7]}
    smaller = checked_cut(graph, model, keep, ids)
    gone = [1, 4, 5, 6, 8]
    whole = copy.deepcopy(model)
    with torch.no_grad():
        whole.table.weight[:, gone] = 0  # read as zeros, and not read
        whole.gru.weight_hh_l0[:, gone] = 0
        assert (smaller(ids) - whole(ids)).abs().max() <= 1e-12
    assert smaller.table.embedding_dim == smaller.gru.input_size == smaller.gru.hidden_size == 4
    assert smaller.head.weight is smaller.table.weight
    assert repr(smaller.table) == "Embedding(20, 4)"
    assert_compiled_equals_pytorch(smaller.float(), ids[:1], tmp_path)


def test_a_product_with_the_table_turned_over_is_cut_alike() -> None:
    torch.manual_seed(0)
    model, ids = TiedByProduct().double().eval(), torch.randint(0, 20, (2, 6))
    graph = ChannelGraph.trace(model, (ids,))
    (free,) = (group.name for group in graph.groups if group.frozen is None)
    smaller, gone = checked_cut(graph, model, {free: [0, 2, 3, 7]}, ids), [1, 4, 5, 6, 8]
    with torch.no_grad():
        model.table.weight[:, gone] = 0
        model.gru.weight_hh_l0[:, gone] = 0
        assert (smaller(ids) - model(ids)).abs().max() <= 1e-12


class Codebook(nn.Module):
    """Rows that code takes by their numbers, and that are the filters of a layer as well."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(10, 6))
        self.stem, self.mix, self.skip, self.last = (nn.Linear(*sizes) for sizes in ((3, 6), (10, 4), (6, 4), (4, 2)))

    def forward(self, x: Tensor) -> Tensor:
        likely = F.linear(self.stem(x), self.rows).relu()
        taken = self.rows[(x[:, 0].abs() * 3).long().clamp(0, 9)]
        return self.last((self.mix(likely) + self.skip(taken)).relu())  # type: ignore[no-any-return]


class Mixed(nn.Module):
    """One layer for tokens and for channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.both, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.both(self.both(self.stem(x)).mT).mT)  # type: ignore[no-any-return]


def test_a_parameter_with_two_uses_is_cut_only_where_both_follow() -> None:
    torch.manual_seed(0)
    model, inputs = Codebook().double().eval(), torch.randn(8, 3, dtype=torch.float64)
    graph = ChannelGraph.trace(model, (inputs,))
    assert [group.name for group in graph.groups if group.frozen is None] == ["stem", "mix"]
    assert "is a row of a table that is read by its number" in str(graph.group("rows").frozen)
    checked_cut(graph, model, {"stem": [0, 2, 5], "mix": [1, 2]}, inputs)
    mixed = ChannelGraph.trace(Mixed().eval(), (torch.randn(1, 4, 3),))
    assert all("another axis" in str(mixed.group(name).frozen) for name in ("stem", "both"))
