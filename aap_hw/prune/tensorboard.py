"""A run's figures for TensorBoard: loss and accuracy by epoch, latency and attention kept by round."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from aap_hw.device.description import MEASURED
from aap_hw.errors import UserError
from aap_hw.prune.events import Event

FOLDER = "tensorboard"


def require_tensorboard() -> None:
    """Raise UserError if TensorBoard's package is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            "--tensorboard takes the package tensorboard; install it with: pip install 'aap-hw[tensorboard]'"
        )


class TensorBoardLog:
    """Events of a run, written to a folder inside its own.

    A run that is resumed sends the events of before again, so that what was written before is written anew.
    """

    def __init__(self, run: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second

        shutil.rmtree(run / FOLDER, ignore_errors=True)
        self._writer = SummaryWriter(run / FOLDER)
        self._round = self._epochs = 0
        self._predicted = "predicted"

    def add(self, event: Event) -> None:
        """Take up an event."""
        match event.name:
            case "start" if event.figures["provenance"] != MEASURED:
                self._predicted = event.figures["provenance"]
            case "cut":
                self._round = event.figures["round"]
                self._scalar(f"{self._predicted}_ms", event.figures["predicted_ms"], self._round)
                for name in ("measured_ms", "kept_attention"):
                    self._scalar(name, event.figures[name], self._round)
            case "epoch":
                self._epochs += 1
                for name in ("loss", "accuracy"):
                    self._scalar(name, event.figures[name], self._epochs)
            case "quantised":
                self._scalar("float_accuracy", event.figures["accuracy_float"], self._round)
            case "round":
                self._scalar("round_accuracy", event.figures.get("accuracy"), self._round)
            case "tested":
                self._scalar("test_accuracy", event.figures["accuracy_pruned"], self._round)

    def close(self) -> None:
        """Write all that is not written yet."""
        self._writer.close()

    def _scalar(self, name: str, value: float | None, step: int) -> None:
        if value is not None:
            self._writer.add_scalar(name, value, step)
