"""A run from what was asked of it to its folder: begun, told about, saved, and resumed after whatever ended it early.

``config.json`` holds what was asked and ``table.json`` the latencies that it was asked with: with the journal, all that
a run that was killed needs to go on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pydantic

from aap_hw import ranks
from aap_hw.device.board import BoardLost
from aap_hw.errors import NOTHING_ASKED, UserError
from aap_hw.files import WriteError, read_text, write_atomic
from aap_hw.foreign import reason
from aap_hw.graph.check.self_check import CutMismatchError
from aap_hw.interrupts import interruptible
from aap_hw.lut.file import load_table, save_table
from aap_hw.lut.table import LatencyTable
from aap_hw.models.origin import Origin
from aap_hw.policy import RESOURCES, Budget
from aap_hw.prune.accuracy import prune_within
from aap_hw.prune.baseline import DENSE_MS
from aap_hw.prune.device import device_of
from aap_hw.prune.environment import note_environment
from aap_hw.prune.events import Event, EventLog, OnEvent
from aap_hw.prune.journal import Journal, remove_checkpoints
from aap_hw.prune.rounds import prune
from aap_hw.prune.run import PrunedNetwork, RunFolder, resume_command
from aap_hw.prune.samples import EMBEDDED, samples_for
from aap_hw.prune.task import PruneSettings, Task
from aap_hw.prune.tensorboard import TensorBoardLog, require_tensorboard
from aap_hw.starting_folder import working_in
from aap_hw.train.samples import Samples
from aap_hw.train.sources import ImageSource

CONFIG, TABLE = "config.json", "table.json"
# What a journal calls whether the run measures on its device.
MEASURES = "measures"


@dataclass(frozen=True)
class Limit:
    """A budget without its resource: an amount in the resource's unit, or a share of the unpruned network's."""

    amount: float
    relative: bool


@dataclass(frozen=True)
class Job:
    """What a run is asked for.

    Attributes
    ----------
    data : where the images come from; None trains nothing, and shows the network what `samples_for` finds.
    budgets : by the resource's name; none if only an accuracy is to be kept.
    max_accuracy_drop : percentage points of accuracy that may be lost, beside budgets or instead of them.
    device : the profile's name or path of the device to measure on; None takes the one called as the table's device.
    connect_to : where the device is, if not where its profile says.
    tensorboard : write the run's figures for TensorBoard, too.
    folder : the folder that relative paths, and modules that are named, start from.
    train : train on the images; else they only tell which filters matter, and the network is cut once, as it is
        without images.
    example : what ``--example`` named, which stands in for ``data`` where there is none.
    allow_emulated, allow_estimated : accept a table whose latencies are of an emulator, or were estimated.
    """

    origin: Origin
    data: ImageSource | None = None
    budgets: Mapping[str, Limit] = field(default_factory=dict)
    max_accuracy_drop: float | None = None
    settings: PruneSettings = field(default_factory=PruneSettings)
    allow_emulated: bool = False
    connect_to: str | None = None
    tensorboard: bool = False
    device: str | None = None
    folder: str = field(default_factory=lambda: str(Path.cwd()))
    train: bool = True
    example: str | None = None
    allow_estimated: bool = False

    def __post_init__(self) -> None:
        if not self.budgets and self.max_accuracy_drop is None:
            raise UserError(NOTHING_ASKED)
        if self.settings.qat and (self.data is None or not self.train):
            raise UserError(
                "qat rounds all values while the network trains, and nothing trains without --data or with "
                "--no-training; leave --qat out, or train"
            )

    def as_json(self) -> dict[str, Any]:
        """The job as JSON values."""
        values = asdict(self)
        values["origin"]["inputs"] = self.origin.inputs.as_json()
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Job:
        """The job that ``as_json`` was of. Raises ``KeyError`` or ``pydantic.ValidationError`` if it was of none."""
        origin = dict(values["origin"])
        if "input_shape" in origin:  # of a run that was begun when all networks took one image
            origin["inputs"] = origin.pop("input_shape")
        return _VALIDATOR.validate_python({**values, "origin": origin})


_VALIDATOR = pydantic.TypeAdapter(Job)


@dataclass(frozen=True)
class Pruned:
    """A finished run.

    Attributes
    ----------
    folder : where it is.
    network : the pruned network, and how it came about.
    summary : its figures, as of ``summary.json``.
    device : name or path of its device's profile.
    connect_to : where the device is, if not where its profile says.
    """

    folder: Path
    network: PrunedNetwork
    summary: dict[str, Any]
    device: str
    connect_to: str | None


def start(
    job: Job, table: LatencyTable, folder: Path, on_event: OnEvent = lambda _: None, *, download: bool = False
) -> Pruned:
    """Do a job in a folder that is free for it. Nothing is written before it is certain that there is something to do.

    Parameters
    ----------
    download
        Fetch the images first if they are not there.

    Raises
    ------
    UserError : the folder holds a run, or the job cannot be done; see ``prune`` and ``prune_within``.
    """
    run = RunFolder(folder)
    ranks.found_by_first(run.check_free)
    if download and job.data is not None:
        source = job.data
        ranks.found_by_first(lambda: bool(source.load(job.origin.inputs, download=True)))
    return _Execution(run, job, table, on_event).finish()


def resume(folder: Path, on_event: OnEvent = lambda _: None, connect_to: str | None = None) -> Pruned:
    """Go on with a run that was ended early, to the result that it would have had.

    Meanwhile the working folder is the one that the run was begun in, so that its relative paths mean what they meant.

    Parameters
    ----------
    connect_to
        Where the device is now; the run remembers it.

    Raises
    ------
    UserError : there is no run that was begun and not finished, or its files are damaged.
    """
    run = RunFolder(folder.absolute())
    if not (folder / CONFIG).exists():
        raise UserError(
            f"{folder} holds no run that was begun, so there is nothing to resume; begin it with its command"
        )
    if run.is_finished:
        remove_checkpoints(folder)
        raise UserError(
            f"the run in {folder} is finished, so there is nothing to resume; look at it with 'aap-hw report'"
        )
    job, table = _job_in(folder), load_table(folder / TABLE)
    if connect_to is not None:
        job = replace(job, connect_to=connect_to)
    with working_in(job.folder):
        execution = _Execution(run, job, table, on_event)
        execution.open()
        if connect_to is not None:
            ranks.found_by_first(execution.note_job)
        return replace(execution.finish(), folder=folder)


def samples_of(folder: Path, source: ImageSource | None = None) -> Samples:
    """The samples to try a run's network on: those given, or else those that it was pruned with.

    Raises
    ------
    UserError : they are not there any more.
    """
    if not (folder / CONFIG).exists():
        return (source or EMBEDDED).load((3, 32, 32))
    job = _job_in(folder)
    if source is not None:
        return samples_for(job.origin, source)
    with working_in(job.folder):
        return samples_for(job.origin, job.data, job.example)


def _job_in(folder: Path) -> Job:
    text = read_text(folder / CONFIG, "configuration")
    try:
        return Job.from_json(json.loads(text))
    except (ValueError, KeyError, TypeError, UserError) as problem:
        raise UserError(
            f"{folder / CONFIG} is damaged ({reason(problem)}); delete the folder and begin the run anew"
        ) from problem


class _Execution:
    """One process's share of a run."""

    def __init__(self, run: RunFolder, job: Job, table: LatencyTable, on_event: OnEvent) -> None:
        self._run, self._job, self._table, self._on_event = run, job, table, on_event
        self._journal = Journal()
        self._log: EventLog | None = None
        self._is_open = False
        self._tensorboard: TensorBoardLog | None = None
        if job.tensorboard:
            require_tensorboard()
        self._device, self._why_predicted = device_of(table, job.device, job.connect_to, self._say_waiting)

    def open(self) -> None:
        """Take up the folder's journal and log, or begin them."""
        self._journal.open(self._run.path)
        self._is_open = True
        if ranks.is_first():
            self._log = EventLog(self._run.path)
            note_environment(self._run.path)
            if self._job.tensorboard:
                self._tensorboard = TensorBoardLog(self._run.path)

    def finish(self) -> Pruned:
        try:
            with interruptible():
                self._go_on_as_begun()
                network, summary = self._prune()
            if ranks.is_first():
                self._run.save(network, summary)
            self._journal.remove_checkpoints()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self._how_to_go_on()) from None
        except CutMismatchError as problem:
            raise UserError(f"{problem}; {self._run.report_mismatch(problem.mismatch)} says more") from problem
        except (WriteError, BoardLost) as problem:
            raise type(problem)(f"{problem}; then {self._how_to_go_on()}") from problem
        finally:
            self._journal.close()
            if self._log is not None:
                self._log.close()
            if self._tensorboard is not None:
                self._tensorboard.close()
        device = self._job.device or self._table.device["name"]
        return Pruned(self._run.path, network, summary, device, self._job.connect_to)

    def _prune(self) -> tuple[PrunedNetwork, dict[str, Any]]:
        job = self._job
        retrain = job.data is not None and job.train
        samples = samples_for(job.origin, job.data, job.example)
        allowed = job.allow_emulated, job.allow_estimated
        task = Task(job.origin, self._table, samples, retrain, self._device, *allowed)
        drop = job.max_accuracy_drop
        if drop is not None and not job.budgets:
            return prune_within(task, drop, job.settings, self._tell, self._journal)
        budgets = [Budget(limit.amount, limit.relative, RESOURCES[name]) for name, limit in job.budgets.items()]
        return prune(task, budgets, job.settings, self._tell, self._journal, drop)

    def _go_on_as_begun(self) -> None:
        """Measure if the run did when it was begun, and only then: predictions and measurements are no one result.

        Raises
        ------
        UserError : it measured, and the device is not there.
        """
        measures = self._journal.recall(MEASURES, self._began_measuring)
        if not measures and self._device is not None:
            name = self._table.device["name"]
            self._device = None
            self._why_predicted = f"the run was begun without {name}, and goes on as it began"
        if measures and self._device is None:
            raise UserError(
                f"the run measures on {self._table.device['name']}, which is not to be had: {self._why_predicted}; "
                f"make it so, then {self._how_to_go_on()}"
            )

    def _began_measuring(self) -> bool:
        """What the journal of an earlier version tells, and of a run that begins now whether the device is there."""
        return DENSE_MS in self._journal or ("network" not in self._journal and self._device is not None)

    def _say_waiting(self, reason: str) -> None:
        """A board's thread says why there is nothing to measure on; the run's own thread waits meanwhile."""
        event = Event("waiting", {"reason": reason})
        if self._log is not None:
            self._log.add({"event": event.name, **event.figures})
        self._on_event(event)

    def _tell(self, event: Event) -> None:
        if event.name == "start":
            event = replace(event, figures={**event.figures, "why_predicted": self._why_predicted})
            if not self._is_open:
                ranks.found_by_first(self._begin)
                self.open()
        if self._log is not None:
            if event.name != "step":
                self._log.add({"event": event.name, **event.figures})
                if self._tensorboard is not None:
                    self._tensorboard.add(event)
            self._on_event(event)

    def _begin(self) -> None:
        self._run.create()
        save_table(self._table, self._run.path / TABLE)
        # Last: a folder that has it can be resumed.
        self.note_job()

    def note_job(self) -> None:
        """Write down what the run is asked for."""
        write_atomic(self._run.path / CONFIG, json.dumps(self._job.as_json(), indent=1, sort_keys=True) + "\n")

    def _how_to_go_on(self) -> str:
        path = self._run.path
        if self._run.is_finished:
            return f"the run is in {path}"
        if (path / CONFIG).exists():
            return f"'{resume_command(path)}' goes on with the run"
        return f"no run was begun in {path}; the same command begins it"
