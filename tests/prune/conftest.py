"""The synthetic table and the shared ResNet-20 for the tests of this folder."""

from tests.synthetic import quick_baseline, table_file

__all__ = ["quick_baseline", "table_file"]
