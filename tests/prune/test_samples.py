"""Proves that a network is shown no whole numbers that it fails on, wherever among the samples they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aap_hw.errors import UserError
from aap_hw.models.origin import Origin
from aap_hw.prune.samples import samples_for
from aap_hw.train.sources import ImageSource

NETWORK = """
from torch import nn

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.scores = nn.Embedding(20, 8), nn.Linear(8, 2)

    def forward(self, ids):
        return self.scores(self.words(ids).mean(1))
"""


@pytest.mark.parametrize(
    ("split", "wrong", "sentence"),
    [
        ("train", 20, r"fails on sample 4 of npz:.*ids.npz, whose ids holds numbers from \d+ to 20: IndexError"),
        ("test", -1, r"fails on sample 4 of npz:.*ids.npz, whose ids holds numbers from -1 to \d+: IndexError"),
        ("test", 19, None),
    ],
)
def test_whole_numbers_that_the_network_fails_on_are_refused(
    split: str, wrong: int, sentence: str | None, tmp_path: Path
) -> None:
    (tmp_path / "words.py").write_text(NETWORK)
    arrays = {name: np.arange(9 * 5).reshape(9, 5) % 19 for name in ("ids_train", "ids_test")}
    arrays[f"ids_{split}"][4, 3] = wrong
    np.savez(tmp_path / "ids.npz", **arrays)  # type: ignore[arg-type]
    origin, source = Origin.of(f"{tmp_path}/words.py:Words", "ids:int64:5"), ImageSource(f"npz:{tmp_path}/ids.npz")
    if sentence is None:
        assert samples_for(origin, source).count("train") == 9
        return
    with pytest.raises(UserError, match=f"{sentence}.*; give it numbers that it takes"):
        samples_for(origin, source)
