"""For the tests of this folder: the synthetic table, the shared ResNet-20, small disks, a finished run, and a network
whose float32, half and int8 forms compile in a second.
"""

from pathlib import Path

import pytest

from aap_hw.deploy import deployable, run_form
from aap_hw.policy import Budget
from aap_hw.prune.rounds import prune
from aap_hw.prune.run import RunFolder
from aap_hw.prune.task import PruneSettings, Task
from tests.disks import mounted
from tests.synthetic import ORIGIN, few_images, of_this_device, quick_baseline, table, table_file

__all__ = ["finished", "folder", "mounted", "quick_baseline", "table_file"]

NET = """
import torch
from torch import nn

def make():
    torch.manual_seed(2)
    layers = nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(8, 10))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with ``net.py:make``, a network for images of 3x16x16; only few images are checked."""
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.setattr(deployable, "CHECKED_PIXELS", 40 * 16 * 16)
    monkeypatch.setattr(run_form, "CALIBRATION_IMAGES", 16)
    monkeypatch.setattr("aap_hw.train.data.load_embedded", few_images)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of this device at half the latency of the table, cut and not trained."""
    task = Task(ORIGIN, table(**of_this_device()), few_images())
    pruned, summary = prune(task, [Budget.parse("50%")], PruneSettings(calibration_images=16))
    run = RunFolder(tmp_path_factory.mktemp("runs") / "half")
    run.create()
    run.save(pruned, summary)
    return run.path
