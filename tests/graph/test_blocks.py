"""A residual branch is removed exactly where that is legal, and what is left computes what a masked branch computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.graph.selection import select
from aap_hw.models import zoo
from tests.graph.blocks import REMOVABLE, Residual, conv, net
from tests.synthetic import resnet20

IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def trace(model: nn.Module) -> ChannelGraph:
    return ChannelGraph.trace(model, (IMAGES,))


@pytest.mark.parametrize("kind", REMOVABLE)
def test_net_without_a_branch_equals_the_net_whose_branch_is_masked(kind: str) -> None:
    model = net(REMOVABLE[kind], Residual(conv(8, 10), nn.ReLU(), conv(10, 8)))
    graph = trace(model)
    first, second = graph.blocks
    keep: dict[str, list[int]] = {name: [] for name in first.groups}
    smaller = graph.cut(model, {**keep, "0.0": range(5)})  # type: ignore[dict-item]
    with torch.no_grad():
        masked = graph.cut(model, {"0.0": range(5)})
        masked.get_submodule("2.branch").register_forward_hook(lambda _m, _i, out: torch.zeros_like(out))
        torch.testing.assert_close(smaller(IMAGES), masked(IMAGES), rtol=0, atol=0)
    assert type(smaller.get_submodule("2")) is Residual
    assert sum(p.numel() for p in smaller.get_submodule("2").parameters()) == 0
    assert sum(p.numel() for p in model.get_submodule("2").parameters()) > 0
    again = trace(smaller)
    assert [block.groups for block in again.blocks] == [second.groups]
    assert again.widths.keys() == graph.widths.keys() - set(first.groups)
    assert {group.name for group in again.groups if group.frozen} == {
        group.name for group in graph.groups if group.frozen
    }


def test_all_groups_within_a_branch_go_together() -> None:
    graph = trace(net(REMOVABLE["bottleneck"], REMOVABLE["excited"]))
    assert [len(block.groups) for block in graph.blocks] == [2, 2]
    first = graph.blocks[0].groups
    model = net(REMOVABLE["bottleneck"], REMOVABLE["excited"])
    by_one, by_all = graph.cut(model, {first[1]: []}), graph.cut(model, {name: [] for name in first})
    assert by_one.state_dict().keys() == by_all.state_dict().keys() < model.state_dict().keys()
    with pytest.raises(UserError, match="is to keep channels of a block that is removed"):
        graph.cut(model, {first[0]: [], first[1]: [0, 1]})


def test_branch_with_a_group_that_the_user_leaves_alone_stays() -> None:
    graph = trace(net(REMOVABLE["bottleneck"], REMOVABLE["excited"]))
    first, second = graph.blocks
    assert select(graph, skip=(first.groups[0],)).blocks == (second,)
    # Where only its width must stay, it can still go, by the others.
    fixed = graph.frozen({first.groups[0]: "is of one width"})
    assert [block.groups for block in fixed.blocks] == [first.groups[1:], second.groups]
    assert fixed.blocks[0].modules == first.modules


class Shared(nn.Module):
    """Two branches that use the same layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = conv(8, 6), conv(6, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block twice."""
        x = torch.relu(x + self.two(torch.relu(self.one(x))))
        return torch.relu(x + self.two(torch.relu(self.one(x))))


class Shifted(nn.Module):
    """A branch that ends in a sum with a parameter of the block's own, which stays when its layers go."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.shift = conv(8, 6), conv(6, 8), nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block."""
        return x + (self.two(torch.relu(self.one(x))) + self.shift)  # type: ignore[no-any-return]


class TwoSources(nn.Module):
    """A branch that reads more than the shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = conv(8, 8), conv(8, 6), conv(6, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block."""
        y = torch.relu(self.stem(x))
        return torch.relu(x + self.two(torch.relu(self.one(y)))) + y


class WeightTakenApart(nn.Module):
    """Both layers of the branch have their filters from one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Parameter(torch.randn(16, 8, 1, 1) / 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block."""
        first, second = self.filters.split([8, 8])
        return x + nn.functional.conv2d(torch.relu(nn.functional.conv2d(x, first)), second)


class WithFactors(nn.Module):
    """The branch multiplies its channels by numbers that it has put together."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.conv = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8)), conv(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block."""
        return x + self.conv(x) * torch.stack([self.one, self.two]).sum(0)[:, None, None]


@pytest.mark.parametrize(
    "block", [Shared(), Shifted(), TwoSources(), WeightTakenApart(), WithFactors()], ids=lambda b: type(b).__name__
)
def test_branch_that_cannot_go_alone_is_left(block: nn.Module) -> None:
    assert trace(net(block)).blocks == ()


def test_only_blocks_with_an_identity_shortcut_can_go() -> None:
    graphs = {"resnet20": resnet20()[1]} | {
        name: ChannelGraph.trace(zoo.build(name).module, (torch.zeros(1, 3, 64, 64),))
        for name in ("resnet18", "mobilenetv2")
    }
    found = {name: [block.name for block in graph.blocks] for name, graph in graphs.items()}
    assert found["resnet20"] == [
        f"layer{s}.{b}.conv1" for s, b in ((1, 0), (1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2))
    ]
    assert found["resnet18"] == [
        "layer1.0.conv1",
        "layer1.1.conv1",
        "layer2.1.conv1",
        "layer3.1.conv1",
        "layer4.1.conv1",
    ]
    assert [int(name.split(".")[1]) for name in found["mobilenetv2"]] == [3, 5, 6, 8, 9, 10, 12, 13, 15, 16]
