"""A small network of inverted residuals and depthwise convolutions, trained here on the embedded images.

It is torchvision's MobileNetV2 with fewer and narrower blocks, for images of 32 x 32. A training takes a few minutes of
one core and is kept, so that another run begins with the same weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from aap_hw.train.data import LabelledImages

# Expansion, channels, blocks, stride.
BLOCKS = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 40, 2, 1], [6, 64, 2, 2]]
LAST = 192
SEED, BATCH, RATE = 0, 64, 0.05


def network() -> nn.Module:
    """The network with random weights: (N, 3, 32, 32) to scores of ten classes."""
    from torchvision.models import MobileNetV2
    from torchvision.ops.misc import Conv2dNormActivation

    found: nn.Module = MobileNetV2(num_classes=10, inverted_residual_setting=BLOCKS, dropout=0.0)
    blocks, head = found.get_submodule("features"), found.get_submodule("classifier")
    assert isinstance(blocks, nn.Sequential)
    assert isinstance(head, nn.Sequential)
    blocks[-1] = Conv2dNormActivation(BLOCKS[-1][1], LAST, kernel_size=1, activation_layer=nn.ReLU6)
    head[-1] = nn.Linear(LAST, 10)
    return found


def trained(data: LabelledImages, epochs: int, kept: Path, say: Any) -> Path:
    """A file of the network's weights after some epochs of training; one that is in the folder ``kept`` is taken."""
    from aap_hw.inputs import Inputs
    from aap_hw.train.loop import train
    from aap_hw.train.settings import TrainSettings

    path = kept / f"inverted_residuals-{epochs}-epochs.pt"
    if path.exists():
        return path
    kept.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    made = network()

    def on_epoch(epoch: int, of: int, loss: float, accuracy: float, seconds: float) -> None:
        say(f"inverted residuals, epoch {epoch} of {of}: {accuracy:.2f} %, loss {loss:.3f}, {seconds:.0f} s")

    settings = TrainSettings(epochs=epochs, batch_size=BATCH, learning_rate=RATE)
    train(made, data, settings, seed=SEED, inputs=Inputs.of((3, 32, 32)), on_epoch=on_epoch)
    torch.save(made.state_dict(), path)
    return path
