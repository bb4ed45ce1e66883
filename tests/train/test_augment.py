"""Augmentation makes the copies that it says and no others, and the same ones however a batch is shared."""

import numpy as np
import pytest
import torch

from aap_hw.train.augment import Draws, blend, draw_share, training_batch, vary
from aap_hw.train.data import LabelledImages
from aap_hw.train.settings import Augmentation


def draws(count, **how):
    return Draws.of(count, Augmentation(**how), torch.Generator().manual_seed(0), crops=False)


def test_augmentation_yields_shifted_and_mirrored_copies_and_all_of_them():
    image = torch.arange(1, 13, dtype=torch.uint8).reshape(1, 3, 4)
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))
    shifted = [padded[:, y : y + 3, x : x + 4] for y in range(3) for x in range(3)]
    # The shift comes last: a mirrored image is shifted by the same steps.
    flipped = torch.nn.functional.pad(image.flip(2), (1, 1, 1, 1))
    shifted += [flipped[:, y : y + 3, x : x + 4] for y in range(3) for x in range(3)]
    possible = {copy.numpy().tobytes() for copy in shifted}
    made = vary(image.expand(500, 1, 3, 4), draws(500, flip=True, crop_padding=1), 1)
    assert made.shape == (500, 1, 3, 4)
    assert {copy.contiguous().numpy().tobytes() for copy in made} == possible


def test_half_of_the_images_are_mirrored_and_every_shift_is_as_likely():
    drawn = draws(5000, crop_padding=2)
    assert drawn.mirrored.float().mean().item() == pytest.approx(0.5, abs=0.03)
    for shifts in (drawn.down, drawn.right):
        assert shifts.flatten().bincount(minlength=5).tolist() == pytest.approx([1000] * 5, abs=120)


def test_no_augmentation_changes_nothing():
    images = torch.randint(0, 256, (5, 2, 6, 7), dtype=torch.uint8)
    assert torch.equal(vary(images, draws(5, flip=False, crop_padding=0), 0), images)


def test_parts_of_a_batch_are_varied_as_the_whole_is():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (9, 3, 6, 6), np.uint8)
    data = LabelledImages(images, np.arange(9), images, np.arange(9), tuple("abcdefghi"))
    how, chosen = Augmentation(), torch.randperm(9)
    drawn = draws(9)
    (whole,), labels = training_batch(data, chosen, how, drawn)
    parts = [training_batch(data, chosen[part], how, drawn[part]) for part in (slice(0, 4), slice(4, 9))]
    assert torch.equal(torch.cat([images for (images,), _ in parts]), whole)
    assert torch.equal(torch.cat([labels for _, labels in parts]), labels)


def test_blending_keeps_the_share_of_each_and_takes_the_rest_from_its_counterpart():
    inputs = torch.tensor([[1.0], [2.0], [4.0]])
    assert torch.allclose(blend(inputs, 0.75), torch.tensor([[1.75], [2.0], [3.25]]))
    assert blend(inputs, 1.0) is inputs


def test_shares_are_drawn_from_a_beta_distribution():
    generator = torch.Generator().manual_seed(0)
    shares = np.array([draw_share(0.4, generator) for _ in range(4000)])
    assert shares.mean() == pytest.approx(0.5, abs=0.02)
    # Of Beta(a, a): 1 / (4 (2a + 1)).
    assert shares.var() == pytest.approx(1 / (4 * 1.8), abs=0.01)
    assert draw_share(0.0, generator) == 1.0
