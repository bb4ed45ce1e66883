"""The script that trains the embedded network finds out first what would make its half an hour be in vain."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).parent.parent / "scripts" / "train_embedded_resnet20.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """It is interrupted as soon as it trains."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which it sets itself, for good
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    spec = importlib.util.spec_from_file_location("train_embedded_resnet20", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def interrupted(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train", interrupted)
    return module


def test_folder_to_write_to_is_there_before_it_trains(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "--out", str(tmp_path / "new" / "folder")])
    assert script.main() == 130
    assert (tmp_path / "new" / "folder").is_dir()


def test_folder_that_cannot_be_made_is_refused_before_it_trains(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["train", "--out", str(tmp_path / "file" / "folder")])
    assert script.main() == 2
    assert "file is not a folder; choose another" in capsys.readouterr().err
