"""The columns of a table are channels, its rows are not, even where a linear layer shares the table."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
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
