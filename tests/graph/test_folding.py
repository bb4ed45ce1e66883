"""With its batch norms taken into its convolutions, a network computes what it did, also where it is watched."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from aap_hw import ChannelGraph
from aap_hw.attention.observer import Watcher
from aap_hw.graph.program.call import Call
from aap_hw.graph.program.folding import fold_norms


class Net(nn.Module):
    """Norms behind a convolution alone, behind one that others read too, and behind none."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, stride=2, bias=False), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.norms = nn.ModuleList([nn.BatchNorm2d(6), nn.BatchNorm2d(6, affine=False), nn.BatchNorm2d(6)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu_(self.norms[0](self.first(x)))
        y = self.second(x)
        return self.norms[2](torch.relu(self.norms[1](y) + y))  # type: ignore[no-any-return]


def seen(network: torch.fx.GraphModule, image: torch.Tensor) -> dict[str, torch.Tensor]:
    values: dict[str, torch.Tensor] = {}

    def see(name: str, value: object) -> None:
        if isinstance(value, torch.Tensor):
            values[name] = value.clone()

    Watcher(network, see).run(image)
    return values


@pytest.mark.parametrize("kept", [(), ("conv2d",)])
def test_folded_values_are_what_they_were_and_kept_ones_are_there(kept: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    model, image = Net(), torch.randn(1, 3, 9, 9)
    for _ in range(3):
        model(torch.randn(4, 3, 9, 9) * 3 + 1)  # statistics that are not 0 and 1
    network = ChannelGraph.trace(model.eval(), (image,)).program.module(check_guards=False)
    before = seen(network, image)
    fold_norms(network, kept)
    after = seen(network, image)
    norms = [
        node.name for node in network.graph.nodes if node.op == "call_function" and Call(node).name == "batch_norm"
    ]
    assert norms == (["batch_norm", "batch_norm_1", "batch_norm_2"] if kept else ["batch_norm_1", "batch_norm_2"])
    assert ("conv2d" in after) == bool(kept)
    for name in before.keys() & after.keys():
        torch.testing.assert_close(after[name], before[name], rtol=1e-5, atol=1e-5)
