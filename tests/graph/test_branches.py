"""Branches of whole modules are removed: attention and MLPs behind norms, with a factor, and YOLO's bottlenecks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from aap_hw.graph import ChannelGraph
from aap_hw.graph.check.self_check import checked_cut
from tests.graph.branches import BODIES, Behind, Mlp, Net, OnTokens, TransformerBlock


@pytest.mark.parametrize("kind", BODIES)
def test_net_without_a_branch_equals_the_net_whose_branch_is_masked(kind: str) -> None:
    torch.manual_seed(0)
    make, first = BODIES[kind]
    model, images = Net(make()).double().eval(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    graph = ChannelGraph.trace(model, (images,))
    assert [min(block.modules, key=list(dict(model.named_modules())).index) for block in graph.blocks] == first
    removed = graph.blocks[0]
    keep: dict[str, list[int]] = {name: [] for name in removed.groups}
    checked_cut(graph, model, keep | {"stem": list(range(0, graph.widths["stem"], 2))}, images)
    smaller = graph.cut(model, keep)
    for path in removed.modules:
        assert not list(smaller.get_submodule(path).parameters())
    with torch.no_grad():
        whole = model.get_submodule(removed.modules[-1])
        handle = whole.register_forward_hook(lambda _m, _i, out: torch.zeros_like(out))
        masked = model(images)
        handle.remove()
        assert (masked - model(images)).abs().max() > 1e-4
        torch.testing.assert_close(smaller(images), masked, rtol=0, atol=1e-12)
    again = ChannelGraph.trace(smaller, (images,))
    assert len(again.blocks) == len(first) - 1
    everything = graph.cut(model, {name: [] for block in graph.blocks for name in block.groups})
    assert len(ChannelGraph.trace(everything, (images,)).blocks) == 0


class Unpacked(Behind):
    """Unpacks what its own code packed."""

    def read(self, x: Tensor) -> Tensor:
        return {"result": self.mlp(x)}["result"]


class ReadsFirst(Behind):
    """Takes the first of what a module returns, which zeros in its place would be split for."""

    def read(self, x: Tensor) -> Tensor:
        return self.mlp(x)[0]


class ReadsAttribute(Behind):
    """Asks a layer for its weight, which zeros in its place have none of."""

    def read(self, x: Tensor) -> Tensor:
        return self.mlp(x.to(self.mlp.fc1.weight.dtype))


class ReturnsSeveral(Mlp):
    def forward(self, x: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return super().forward(x), None


class ReturnsDictionary(Mlp):
    def forward(self, x: Tensor) -> dict[int, Tensor]:  # type: ignore[override]
        return {0: super().forward(x)}


@pytest.mark.parametrize(
    ("block", "replaced"),
    [
        (Behind(Mlp()), ["norm", "mlp"]),
        (Unpacked(Mlp()), ["norm", "mlp"]),
        (ReadsFirst(ReturnsSeveral()), ["norm", "mlp.fc1", "mlp.fc2"]),
        (ReadsFirst(ReturnsDictionary()), ["norm", "mlp.fc1", "mlp.fc2"]),
        (ReadsAttribute(Mlp()), []),
    ],
    ids=["plain", "unpacked", "tuple", "dictionary", "attribute"],
)
def test_a_module_that_is_more_than_its_result_stays_and_others_go(block: nn.Module, replaced: list[str]) -> None:
    model, images = Net(OnTokens(Behind(Mlp()), block)).eval(), torch.randn(2, 3, 6, 6)
    graph = ChannelGraph.trace(model, (images,))
    first, *others = graph.blocks
    assert first.modules == ("body.blocks.0.norm", "body.blocks.0.mlp")
    assert [path for each in others for path in each.modules] == [f"body.blocks.1.{path}" for path in replaced]
    checked_cut(graph, model, {name: [] for each in others for name in each.groups}, images)


class InAList(nn.Module):
    """Keeps its blocks in a plain list, beside the names that make them the network's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.blocks = nn.Linear(3, 12), nn.Linear(12, 2), []
        for number in range(2):
            block = Mlp()
            self.add_module(f"block{number}", block)
            self.blocks.append(block)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)  # type: ignore[no-any-return]


def test_a_module_that_is_called_from_a_list_stays_and_its_layers_go() -> None:
    model, x = InAList().eval(), torch.randn(2, 5, 3)
    graph = ChannelGraph.trace(model, (x,))
    assert [block.modules for block in graph.blocks] == [(f"block{i}.fc1", f"block{i}.fc2") for i in range(2)]
    checked_cut(graph, model, {graph.blocks[0].name: []}, x)


class Sliced(nn.Module):
    """Calls some of its blocks, and has two names for its head."""

    def __init__(self, blocks: nn.ModuleList | nn.Sequential) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = nn.Linear(3, 12), blocks, nn.Linear(12, 2)
        self.alias = self.head

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks[1:]:
            x = block(x)
        return self.head(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("blocks", [nn.ModuleList, lambda blocks: nn.Sequential(*blocks)], ids=["list", "sequential"])
def test_blocks_of_a_slice_have_their_own_names(
    blocks: Callable[[list[nn.Module]], nn.ModuleList | nn.Sequential],
) -> None:
    model, x = Sliced(blocks([Mlp(), TransformerBlock()])).eval(), torch.randn(2, 5, 3)
    graph = ChannelGraph.trace(model, (x,))
    first, second = graph.blocks
    assert first.modules == ("blocks.1.norm1", "blocks.1.attn", "blocks.1.ls1")
    checked_cut(graph, model, {second.name: []}, x)
