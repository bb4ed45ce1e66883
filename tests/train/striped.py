"""A small network and settings to learn the images of `conftest.stripes` with."""

import torch
from torch import nn

from aap_hw.inputs import Inputs
from aap_hw.train.settings import Augmentation, Schedule, TrainSettings

SHAPE = Inputs.of((3, 12, 12))
QUICK = TrainSettings(
    epochs=2,
    batch_size=20,
    learning_rate=0.05,
    schedule=Schedule(warmup_epochs=0.5),
    augmentation=Augmentation(crop_padding=1),
)


def small_model(seed=0, dropout=0.1):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(32, 2),
        )
