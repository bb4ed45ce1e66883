"""A network for words in raw sound, and sounds to try it with: four convolutions in one dimension.

After M5 of Dai et al., "Very deep convolutional neural networks for raw waveforms", ICASSP 2017.
"""

from __future__ import annotations

import sys

import numpy as np
from torch import nn

# Half a second at 8 kHz.
SAMPLES, RATE = 4000, 8000
WORDS = 8


def make() -> nn.Module:
    """Sound (N, 1, SAMPLES) to a score for each word (N, WORDS)."""
    layers: list[nn.Module] = []
    for read, made, kernel, stride in ((1, 32, 80, 8), (32, 32, 3, 1), (32, 64, 3, 1), (64, 64, 3, 1)):
        layers += [nn.Conv1d(read, made, kernel, stride), nn.BatchNorm1d(made), nn.ReLU(), nn.MaxPool1d(4)]
    return nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, WORDS))


def sounds(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """So many "words" (N, 1, SAMPLES) and which ones they are: each is three tones in an order of its own, in noise."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, WORDS, count)
    tones = np.random.default_rng(0).uniform(300, 2500, (WORDS, 3))  # the same words for every seed
    time = np.arange(SAMPLES) / RATE
    parts = np.minimum(time // (SAMPLES / RATE / 3), 2).astype(int)
    pitch = random.uniform(0.95, 1.05, (count, 1))  # nobody speaks twice alike
    spoken = np.sin(2 * np.pi * tones[labels][:, parts] * pitch * time + random.uniform(0, 6, (count, 1)))
    noisy = 0.5 * spoken + 0.5 * random.standard_normal((count, SAMPLES))
    return noisy[:, None].astype(np.float32), labels


def write(path: str, train: int, test: int) -> None:
    """The archive that ``--data npz:PATH`` reads."""
    (x_train, y_train), (x_test, y_test) = sounds(train, 1), sounds(test, 2)
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)


if __name__ == "__main__":
    write(sys.argv[1] if len(sys.argv) > 1 else "words.npz", 2000, 400)
