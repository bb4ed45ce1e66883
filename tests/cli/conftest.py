"""For the tests of this folder: the synthetic table, the shared ResNet-20, and few images instead of all."""

import pytest

from tests.synthetic import few_images, quick_baseline, table_file

__all__ = ["quick", "quick_baseline", "table_file"]


@pytest.fixture
def quick(quick_baseline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """ResNet-20 is traced once for all tests, and a few embedded images stand for all."""
    monkeypatch.setattr("aap_hw.train.data.load_embedded", few_images)
