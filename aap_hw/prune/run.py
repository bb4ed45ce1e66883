"""The run folder: everything that a pruned network needs to be rebuilt, evaluated and deployed.

``model.safetensors`` holds the network, as ``aap_hw.models.saved`` writes it, ``run.json`` how it came about,
``summary.json`` the figures. Each is written whole or not at all; ``run.json`` last, so that a folder that has it is
complete. How a folder is filled is ``aap_hw.prune.job``, and its log is ``aap_hw.prune.events``.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import aap_hw
from aap_hw.compile.keys.precision import FP32, MIXTURES, NetworkPrecision, unpruned_in
from aap_hw.errors import UserError
from aap_hw.files import make_folder, read_text, require_writable_folder, sha256_of, write_atomic
from aap_hw.foreign import reason
from aap_hw.graph.check.self_check import Mismatch
from aap_hw.models import saved
from aap_hw.models.origin import Origin
from aap_hw.models.weights import WeightsFile, load_weights
from aap_hw.prune.events import EVENTS
from aap_hw.prune.journal import JOURNAL, remove_checkpoints

SCHEMA_VERSION = 3


def resume_command(folder: Path) -> str:
    """What goes on with the run in a folder, to be pasted into a shell."""
    return f"aap-hw prune --resume {shlex.quote(str(folder))}"


@dataclass(frozen=True)
class PrunedNetwork:
    """A pruned network as a run folder keeps it.

    Attributes
    ----------
    origin : where the unpruned network comes from.
    kept : for every cut group, the channels of the unpruned network that remain.
    device : name of the device whose table the widths were chosen by.
    module : the network, which is an ordinary ``torch.nn.Module``.
    record : how the run went, as JSON values.
    """

    origin: Origin
    kept: dict[str, list[int]]
    device: str
    module: nn.Module
    record: dict[str, Any]

    @property
    def precision(self) -> NetworkPrecision:
        """What it computes in. A plan of mixed precisions may have left nothing in int8."""
        planned: NetworkPrecision = self.record.get("precision", FP32)
        if planned not in MIXTURES:
            return planned
        return MIXTURES[planned] if "quantisation" in self.record else unpruned_in(planned)


class RunFolder:
    """One run's folder on disk.

    Attributes
    ----------
    trained : a checkpoint that its network is loaded with instead of the run's weights: what other code made of them.
    """

    def __init__(self, path: Path, trained: WeightsFile | None = None) -> None:
        self.path, self.trained = path, trained

    @classmethod
    def at(cls, path: str | os.PathLike[str], weights: str | os.PathLike[str] | None) -> RunFolder:
        """The folder at a path, with the weights of a checkpoint. Raises UserError if that cannot be read."""
        return cls(Path(path), None if weights is None else WeightsFile.at(os.fspath(weights)))

    @property
    def is_finished(self) -> bool:
        """Whether the folder holds a run that was saved."""
        return (self.path / "run.json").exists()

    @property
    def is_begun(self) -> bool:
        """Whether the folder holds a run, finished or one that can be resumed."""
        return self.is_finished or (self.path / "config.json").exists()

    def check_free(self) -> None:
        """Raise UserError if the folder could not be made or holds a run already; nothing is written."""
        require_writable_folder(self.path)
        if self.is_finished:
            raise UserError(f"{self.path} already holds a run; choose another folder with --out, or delete it")
        if self.is_begun:
            raise UserError(
                f"{self.path} holds an unfinished run; go on with it by '{resume_command(self.path)}', choose "
                "another folder with --out, or delete it"
            )

    def create(self) -> None:
        """Make the folder, free of what a run that never began left there. Raises UserError as ``check_free`` does."""
        self.check_free()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for left_behind in (EVENTS, JOURNAL):
                (self.path / left_behind).unlink(missing_ok=True)
            remove_checkpoints(self.path)
        except OSError as problem:
            raise UserError(f"cannot make the folder {self.path}: {problem.strerror}; choose another") from problem

    def save(self, network: PrunedNetwork, summary: Mapping[str, Any]) -> None:
        """Write the network and its summary."""
        weights = self.path / "model.safetensors"
        saved.write(saved.SavedNetwork(network.origin, network.kept, network.module), weights)
        # Not merged: figures that an unfinished run left here are not this one's.
        write_atomic(self.path / "summary.json", _text(summary))
        document = {
            "schema_version": SCHEMA_VERSION,
            "device": network.device,
            "sha256": {weights.name: sha256_of(weights)},
            "record": network.record,
        }
        write_atomic(self.path / "run.json", _text(document))

    def load(self) -> PrunedNetwork:
        """Rebuild the pruned network.

        Raises
        ------
        UserError : the folder holds no finished run, a file of it is damaged, or ``trained`` is of another network.
        """
        if not self.path.is_dir():
            raise UserError(f"there is no run folder {self.path}; 'aap-hw prune' makes one")
        if not self.is_finished:
            raise UserError(
                f"{self.path} holds no finished run; '{resume_command(self.path)}' goes on with it"
                if self.is_begun
                else f"{self.path} holds no finished run; 'aap-hw prune' writes run.json when it is done"
            )
        source = self.path / "run.json"
        try:
            document = json.loads(read_text(source, "run"))
            version = document["schema_version"]
            if version != SCHEMA_VERSION:
                raise UserError(
                    f"{source} has version {version!r} and this aap-hw reads version {SCHEMA_VERSION}; "
                    "use the aap-hw that wrote it, or run 'aap-hw prune' again"
                )
            expected = document["sha256"]["model.safetensors"]
            device, record = document["device"], dict(document["record"])
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise _damaged(source, problem) from problem
        weights = self.path / "model.safetensors"
        if sha256_of(weights) != expected:
            raise UserError(
                f"{weights} is not the file that the run wrote (its checksum differs); "
                "restore it, or run 'aap-hw prune' again"
            )
        # Of a run that was killed just when it was saved.
        remove_checkpoints(self.path)
        network = saved.read(weights, trust_source=True)
        if self.trained is not None:
            load_weights(network.module, self.trained, f"the cut network of {self.path}")
        return PrunedNetwork(network.origin, network.kept, device, network.module, record)

    def report_mismatch(self, mismatch: Mismatch) -> Path:
        """Write down, for who is to mend it, a cut that changed what the network computes; return the file."""
        make_folder(self.path)  # a cut is tried before there is a run
        path = self.path / "self_check.json"
        versions = {"aap_hw": aap_hw.__version__, "torch": torch.__version__}
        write_atomic(path, _text({"written_by": versions, **mismatch.as_json()}))
        return path

    def summary(self) -> dict[str, Any]:
        """The figures of ``summary.json``; none if there is no such file."""
        path = self.path / "summary.json"
        try:
            return dict(json.loads(read_text(path, "summary"))) if path.exists() else {}
        except (ValueError, TypeError) as problem:
            raise _damaged(path, problem) from problem

    def update_summary(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        """Merge figures into ``summary.json`` and return all of them."""
        merged = {**self.summary(), **figures}
        write_atomic(self.path / "summary.json", _text(merged))
        return merged


def compose(
    earlier: Mapping[str, list[int]], keep: Mapping[str, list[int]], dense: Mapping[str, int]
) -> dict[str, list[int]]:
    """Channels of the unpruned network that remain after another cut of an already cut one."""
    result = dict(earlier)
    for name, indices in keep.items():
        before = earlier.get(name, list(range(dense[name])))
        result[name] = [before[i] for i in indices]
    return result


def _text(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def _damaged(path: Path, problem: Exception) -> UserError:
    what = f"{problem} is missing" if isinstance(problem, KeyError) else reason(problem)
    return UserError(f"{path} is damaged ({what}); restore it, or run 'aap-hw prune' again")
