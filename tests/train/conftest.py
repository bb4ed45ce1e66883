"""Images of two classes that a small network learns to tell apart in seconds."""

import numpy as np
import pytest

from aap_hw.train.data import LabelledImages


@pytest.fixture(scope="module")
def stripes():
    """Horizontal against vertical stripes in noise: easy, but not for an untrained network."""
    random = np.random.default_rng(0)

    def draw(count):
        labels = np.arange(count) % 2
        wave = np.where(np.arange(12) // 3 % 2, 200, 20)
        images = np.stack([np.tile(wave, (12, 1)) if label else np.tile(wave, (12, 1)).T for label in labels])
        return np.clip(images + random.normal(0, 40, images.shape), 0, 255).astype(np.uint8), labels

    return LabelledImages(*draw(210), *draw(60), ("horizontal", "vertical"))
