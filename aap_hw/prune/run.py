"""The run folder: everything that a pruned network needs to be rebuilt, evaluated and deployed.

``model.safetensors`` holds the weights, ``run.json`` how to rebuild the network around them and how it came about,
``summary.json`` the figures. Each is written whole or not at all; ``run.json`` last, so that a folder that has it is
complete.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from aap_hw.errors import UserError
from aap_hw.files import read_text, require_writable_folder, sha256_of, write_atomic
from aap_hw.graph import ChannelGraph
from aap_hw.prune.task import Origin

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class PrunedNetwork:
    """A pruned network as a run folder keeps it.

    Attributes
    ----------
    kept : for every cut group, the channels of the unpruned network that remain.
    device : name of the device whose table the widths were chosen by.
    record : how the run went, as JSON values.
    """

    origin: Origin
    kept: dict[str, list[int]]
    device: str
    module: nn.Module
    record: dict[str, Any]


class RunFolder:
    """One run's folder on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def check_free(self) -> None:
        """Raise UserError if the folder could not be made or holds a run already; nothing is written."""
        require_writable_folder(self.path)
        if (self.path / "run.json").exists():
            raise UserError(f"{self.path} already holds a run; choose another folder with --out, or delete it")

    def create(self) -> None:
        """Make the folder and begin its log anew. Raises UserError as ``check_free`` does."""
        self.check_free()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise UserError(f"cannot make the folder {self.path}: {problem.strerror}; choose another") from problem
        write_atomic(self.path / "events.jsonl", "")

    def save(self, network: PrunedNetwork, summary: Mapping[str, Any]) -> None:
        """Write the network and its summary."""
        state = {name: tensor.contiguous() for name, tensor in network.module.state_dict().items()}
        weights = self.path / "model.safetensors"
        write_atomic(weights, safetensors.torch.save(state))
        # Not merged: figures that an unfinished run left here are not this one's.
        write_atomic(self.path / "summary.json", _text(summary))
        document = {
            "schema_version": SCHEMA_VERSION,
            "model": network.origin.model,
            "weights": network.origin.weights,
            "input": list(network.origin.input_shape),
            "device": network.device,
            "kept_channels": network.kept,
            "sha256": {weights.name: sha256_of(weights)},
            "record": network.record,
        }
        write_atomic(self.path / "run.json", _text(document))

    def load(self) -> PrunedNetwork:
        """Rebuild the pruned network.

        Raises
        ------
        UserError : the folder holds no finished run, or a file of it is damaged.
        """
        if not self.path.is_dir():
            raise UserError(f"there is no run folder {self.path}; 'aap-hw prune' makes one")
        if not (self.path / "run.json").exists():
            raise UserError(f"{self.path} holds no finished run; 'aap-hw prune' writes run.json when it is done")
        source = self.path / "run.json"
        try:
            document = json.loads(read_text(source, "run"))
            version = document["schema_version"]
            if version != SCHEMA_VERSION:
                raise UserError(
                    f"{source} has version {version!r} and this aap-hw reads version {SCHEMA_VERSION}; "
                    "use the aap-hw that wrote it, or run 'aap-hw prune' again"
                )
            origin = Origin(document["model"], document["weights"], tuple(document["input"]))
            kept = {name: [int(i) for i in channels] for name, channels in document["kept_channels"].items()}
            expected = document["sha256"]["model.safetensors"]
            device, record = document["device"], document["record"]
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise _damaged(source, problem) from problem
        weights = self.path / "model.safetensors"
        if sha256_of(weights) != expected:
            raise UserError(
                f"{weights} is not the file that the run wrote (its checksum differs); "
                "restore it, or run 'aap-hw prune' again"
            )
        dense = origin.build()
        graph = ChannelGraph.trace(dense, (torch.zeros(1, *origin.input_shape),))
        try:
            module = graph.cut(dense, kept).eval()
            module.load_state_dict(safetensors.torch.load_file(weights))
        except (UserError, RuntimeError) as problem:
            raise _damaged(source, problem) from problem
        return PrunedNetwork(origin, kept, device, module, record)

    def update_summary(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        """Merge figures into ``summary.json`` and return all of them."""
        path = self.path / "summary.json"
        try:
            merged = {**(json.loads(read_text(path, "summary")) if path.exists() else {}), **figures}
        except (ValueError, TypeError) as problem:
            raise _damaged(path, problem) from problem
        write_atomic(path, _text(merged))
        return merged

    def append_event(self, event: Mapping[str, Any]) -> None:
        """Add one line to the run's log, ``events.jsonl``."""
        try:
            with (self.path / "events.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(event) + "\n")
        except OSError as problem:
            raise UserError(f"cannot write {self.path}/events.jsonl: {problem.strerror}") from problem


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
    reason = next(iter(str(problem).splitlines()), "") or type(problem).__name__
    what = f"{reason} is missing" if isinstance(problem, KeyError) else reason
    return UserError(f"{path} is damaged ({what}); restore it, or run 'aap-hw prune' again")
