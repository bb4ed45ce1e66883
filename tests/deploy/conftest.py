"""The synthetic table, the shared ResNet-20 and small disks for the tests of this folder, and a finished run."""

from pathlib import Path

import pytest

from aap_hw.policy import Budget
from aap_hw.prune.rounds import prune
from aap_hw.prune.run import RunFolder
from aap_hw.prune.task import PruneSettings, Task
from tests.disks import mounted
from tests.synthetic import ORIGIN, few_images, of_this_device, quick_baseline, table, table_file

__all__ = ["finished", "mounted", "quick_baseline", "table_file"]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of this device at half the latency of the table, cut and not trained."""
    task = Task(ORIGIN, table(**of_this_device()), few_images())
    pruned, summary = prune(task, [Budget.parse("50%")], PruneSettings(calibration_images=16))
    run = RunFolder(tmp_path_factory.mktemp("runs") / "half")
    run.create()
    run.save(pruned, summary)
    return run.path
