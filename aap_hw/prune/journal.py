"""What a run has found out so far, on disk, so that a run that was killed goes on as if it never had been.

A run follows from what it was asked, from the measured latencies and from its training. So it is resumed by running it
again: what is in the journal is taken from there (measured latencies, plans, accuracies), a round's training goes on
from its checkpoint, and everything else comes out as before. The finished journal tells a report what each round saw.

Not covered: what a run was asked, and its events; see ``aap_hw.prune.run``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from aap_hw import ranks
from aap_hw.files import make_folder, remove_temporaries
from aap_hw.jsonlines import JsonLines, read_lines
from aap_hw.train.checkpoint import TrainState

JOURNAL = "journal.jsonl"
CHECKPOINTS = "checkpoints"


class Journal:
    """Values by name, and the state of each round's training.

    Until it is opened in a folder nothing is written: a run that is refused leaves no trace.
    """

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._log: JsonLines | None = None
        self._folder: Path | None = None

    def open(self, run: Path) -> None:
        """Take up the journal of a run's folder, or begin it there with what is known by now.

        Raises
        ------
        UserError : the journal is damaged, cannot be written, or another process has it.

        Of several processes that train together only the first one has the files; all know the values.
        """
        self._values = ranks.found_by_first(lambda: self._open(run))

    def _open(self, run: Path) -> dict[str, Any]:
        self._folder = run / CHECKPOINTS
        make_folder(self._folder)
        self._log = JsonLines(run / JOURNAL)
        for folder in (run, self._folder):
            remove_temporaries(folder)
        found = values_of(self._log.lines)
        for name, value in self._values.items():
            if name not in found:
                self._log.append({"name": name, "value": value})
        return {**self._values, **found}

    def close(self) -> None:
        """Close the file, and let other processes have it."""
        if self._log is not None:
            self._log.close()

    def recall(self, name: str, find: Callable[[], Any]) -> Any:
        """The value of a name as it was found before an interruption; else find it now, and write it down.

        ``find`` gives JSON values; what is returned went through JSON in either case.
        """
        if name not in self._values:
            self.note(name, find())
        return self._values[name]

    def note(self, name: str, value: Any) -> None:
        """Write down a value; of several processes, all go on with the first one's."""
        value = ranks.shared(json.loads(json.dumps(value)))
        if self._log is not None:
            self._log.append({"name": name, "value": value})
        self._values[name] = value

    def value(self, name: str) -> Any:
        """A value that is there."""
        return self._values[name]

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def training(self, number: int) -> TrainState | None:
        """How far the training of a round is, if it has begun and is still needed."""
        return ranks.found_by_first(lambda: self._training(number))

    def _training(self, number: int) -> TrainState | None:
        path = self._checkpoint(number)
        return None if path is None else TrainState.load(path, "delete the folder and begin the run anew")

    def save_training(self, number: int, state: TrainState) -> None:
        """Write a round's checkpoint in place of its last one."""
        if (path := self._checkpoint(number)) is not None:
            state.save(path)

    def keep_rounds(self, needed: Iterable[int], done: int) -> None:
        """Delete the checkpoints of the rounds up to ``done`` that are not needed any more."""
        for number in set(range(1, done + 1)) - set(needed):
            if (path := self._checkpoint(number)) is not None:
                path.unlink(missing_ok=True)

    def remove_checkpoints(self) -> None:
        """Delete all checkpoints: the run is saved."""
        if self._folder is not None:
            remove_checkpoints(self._folder.parent)

    def _checkpoint(self, number: int) -> Path | None:
        return None if self._folder is None else self._folder / f"round-{number}.safetensors"


def remove_checkpoints(run: Path) -> None:
    """Delete the checkpoints in a run's folder, if they are there and may be deleted: nobody goes on from them."""
    shutil.rmtree(run / CHECKPOINTS, ignore_errors=True)


def read_journal(run: Path) -> dict[str, Any]:
    """The values that a run has noted, by name; none if it has no journal."""
    return values_of(read_lines(run / JOURNAL))


def values_of(lines: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The values of a journal's lines by name."""
    return {line["name"]: line["value"] for line in lines if "name" in line and "value" in line}
