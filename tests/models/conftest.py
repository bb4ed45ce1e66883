"""An exported network as a file, and a copy of it to spoil."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.graph.ground_truth import lively
from tests.models.exporting import ANY_NUMBER, Net


@pytest.fixture(scope="module")
def original() -> nn.Module:
    model = lively(Net(), (4, 3, 8, 8))[0].float()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
        elif isinstance(module, nn.Dropout):
            module.p = 0.5
    return model


@pytest.fixture(scope="module")
def file(original: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "my net.pt2"
    torch.export.save(torch.export.export(original, (torch.zeros(2, 3, 8, 8),), **ANY_NUMBER), path)
    return path


@pytest.fixture
def copied(file: Path, tmp_path: Path) -> Path:
    return Path(tmp_path / file.name).write_bytes(file.read_bytes()) and tmp_path / file.name
