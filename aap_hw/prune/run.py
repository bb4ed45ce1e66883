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
from aap_hw.files import read_text, sha256_of, write_atomic
from aap_hw.graph import ChannelGraph
from aap_hw.models import zoo

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Origin:
    """Where the unpruned network came from: enough to make it again."""

    model: str
    weights: str | None
    input_shape: tuple[int, int, int]

    def build(self) -> nn.Module:
        """The unpruned network, in evaluation mode."""
        return zoo.build(self.model, self.weights).module


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

    def create(self) -> None:
        """Make the folder. Raises UserError if it cannot be written or holds another run."""
        if (self.path / "run.json").exists():
            raise UserError(f"{self.path} already holds a run; choose another folder with --out or delete it")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise UserError(
                f"cannot create the folder {self.path}: {problem.strerror}; choose another with --out"
            ) from problem
        write_atomic(self.path / "events.jsonl", "")

    def save(self, network: PrunedNetwork, summary: Mapping[str, Any]) -> None:
        """Write the network and its summary."""
        state = {name: tensor.contiguous() for name, tensor in network.module.state_dict().items()}
        weights = self.path / "model.safetensors"
        write_atomic(weights, safetensors.torch.save(state))
        self.update_summary(summary)
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
        write_atomic(self.path / "run.json", json.dumps(document, indent=1, sort_keys=True) + "\n")

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
        try:
            document = json.loads(read_text(self.path / "run.json", "run"))
            version = document["schema_version"]
            if version != SCHEMA_VERSION:
                raise UserError(f"{self.path}/run.json has version {version}; this aap-hw reads {SCHEMA_VERSION}")
            origin = Origin(document["model"], document["weights"], tuple(document["input"]))
            kept = {name: [int(i) for i in channels] for name, channels in document["kept_channels"].items()}
            expected = document["sha256"]["model.safetensors"]
            device, record = document["device"], document["record"]
        except (ValueError, KeyError, TypeError) as problem:
            raise UserError(f"{self.path}/run.json is damaged ({problem!r}); run 'aap-hw prune' again") from problem
        weights = self.path / "model.safetensors"
        if sha256_of(weights) != expected:
            raise UserError(f"{weights} is not the file that the run wrote (its checksum differs); prune again")
        dense = origin.build()
        graph = ChannelGraph.trace(dense, (torch.zeros(1, *origin.input_shape),))
        module = graph.cut(dense, kept).eval()
        module.load_state_dict(safetensors.torch.load_file(weights))
        return PrunedNetwork(origin, kept, device, module, record)

    def update_summary(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        """Merge figures into ``summary.json`` and return all of them."""
        path = self.path / "summary.json"
        merged = {**(json.loads(read_text(path, "summary")) if path.exists() else {}), **figures}
        write_atomic(path, json.dumps(merged, indent=1, sort_keys=True) + "\n")
        return merged

    def append_event(self, event: Mapping[str, Any]) -> None:
        """Add one line to the run's log, ``events.jsonl``."""
        with (self.path / "events.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(event) + "\n")


def compose(
    earlier: Mapping[str, list[int]], keep: Mapping[str, list[int]], dense: Mapping[str, int]
) -> dict[str, list[int]]:
    """Channels of the unpruned network that remain after another cut of an already cut one."""
    result = dict(earlier)
    for name, indices in keep.items():
        before = earlier.get(name, list(range(dense[name])))
        result[name] = [before[i] for i in indices]
    return result
