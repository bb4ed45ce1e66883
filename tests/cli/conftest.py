"""For the tests of this folder: the synthetic table, the shared ResNet-20, and few images instead of all."""

from tests.synthetic import quick, quick_baseline, table_file

__all__ = ["quick", "quick_baseline", "table_file"]
