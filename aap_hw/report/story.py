"""A finished run as a report sees it: read from its folder, checked, and nothing computed that it does not say.

What the run noted is taken as it is: latencies are measured, predicted, or of a table that nobody measured, and stay
labelled as that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jsonschema

from aap_hw.compile.keys.precision import FP32
from aap_hw.device.description import MEASURED
from aap_hw.errors import UserError
from aap_hw.files import read_text
from aap_hw.foreign import reason
from aap_hw.inputs import Inputs
from aap_hw.lut.file import load_table
from aap_hw.lut.predicting import KernelLatency
from aap_hw.lut.table import LatencyTable, NetworkName
from aap_hw.policy import RESOURCES
from aap_hw.prune.events import read_events
from aap_hw.prune.job import TABLE
from aap_hw.prune.journal import read_journal
from aap_hw.prune.planning import Plan
from aap_hw.prune.run import resume_command
from aap_hw.prune.sentences import quantity

_KNOWN, _MAY_BE_UNKNOWN = {"type": "number", "minimum": 0}, {"type": ["number", "null"]}
_TEXT, _FLAG = {"type": "string"}, {"type": "boolean"}
_IN_EVERY_SUMMARY = {
    **dict.fromkeys(("model", "device", "provenance"), _TEXT),
    **dict.fromkeys(("dense_is_measured", "retrained"), _FLAG),
    **dict.fromkeys(("dense_ms", "params_dense", "params_pruned", "macs_dense", "macs_pruned", "round"), _KNOWN),
    **dict.fromkeys(("predicted_ms", "accuracy_dense", "accuracy_pruned"), _MAY_BE_UNKNOWN),
}
# What a report takes from a run's summary.
_SUMMARY = {
    "type": "object",
    "required": ["input", *_IN_EVERY_SUMMARY],
    "properties": {
        **_IN_EVERY_SUMMARY,
        **dict.fromkeys(("pruned_ms", "budget_ms", "accuracy_wanted", "bytes_dense", "bytes_pruned"), _MAY_BE_UNKNOWN),
        **dict.fromkeys(("memory_dense", "memory_pruned", "dense_float_ms"), _MAY_BE_UNKNOWN),
        "input": {"type": ["array", "string"]},
        "budgets": {"type": "object", "additionalProperties": _KNOWN, "propertyNames": {"enum": [*RESOURCES]}},
    },
}

_VALIDATOR = jsonschema.Draft202012Validator(_SUMMARY)


@dataclass(frozen=True)
class Group:
    """A channel group before and after.

    Attributes
    ----------
    kind : what its channels are, as `plan` says; empty if the run was made by an aap-hw that did not note it.
    frozen : why it could not be cut, if so.
    renormalised : how a norm mixes its channels, if one does.
    precision : what it is read in, of a network of mixed precisions; empty of any other.
    """

    name: str
    kind: str
    width: int
    kept: int
    frozen: str | None
    renormalised: str | None
    precision: str = ""


@dataclass(frozen=True)
class Attention:
    """Scores of a group's channels when a round began, and which of them the round kept."""

    round: int
    group: str
    scores: tuple[float, ...]
    kept: frozenset[int]


@dataclass(frozen=True)
class Story:
    """A finished run.

    Attributes
    ----------
    rounds : figures of each round, as the run recorded them.
    events : the log, in order, each with its ``time`` in seconds.
    """

    folder: Path
    summary: Mapping[str, Any]
    rounds: tuple[Mapping[str, Any], ...]
    events: tuple[Mapping[str, Any], ...]
    journal: Mapping[str, Any]
    table: LatencyTable

    @property
    def name(self) -> str:
        """What the run is called: its folder's name."""
        return self.folder.resolve().name

    @property
    def inputs(self) -> Inputs:
        """What the network takes."""
        return Inputs.from_json(self.summary["input"])

    @property
    def network_name(self) -> NetworkName:
        """What its table calls the network."""
        return NetworkName(self.summary["model"], self.inputs, self.summary.get("precision", FP32))

    @property
    def chosen(self) -> int:
        """Number of the round that was kept."""
        return int(self.summary["round"])

    @property
    def provenance(self) -> str:
        """How the table came about: measured, emulated or estimated."""
        return str(self.table.device["provenance"])

    @property
    def is_timed(self) -> bool:
        """Whether the pruned network was timed on the device itself, and the unpruned one beside it."""
        return self.summary.get("pruned_ms") is not None

    def how(self, measured: bool) -> str:
        """What to call a latency of the table or the rounds: measured, predicted, or what else the table was."""
        if measured:
            return str(self.summary["provenance"])
        return "predicted" if self.provenance == MEASURED else f"predicted from {self.provenance} latencies"

    @property
    def quantity(self) -> str:
        """What the run's milliseconds are: latencies, unless neither table nor network was measured."""
        return "latency" if self.is_timed else quantity(self.provenance)

    @property
    def unpruned(self) -> tuple[float, str]:
        """Latency of the unpruned network in ms, and how it is known."""
        how = MEASURED if self.is_timed else self.how(self.summary["dense_is_measured"])
        return self.summary["dense_ms"], how

    @property
    def latency(self) -> tuple[float, str]:
        """Latency of the pruned network in ms, and how it is known."""
        if self.is_timed:
            return self.summary["pruned_ms"], MEASURED
        return self.summary["predicted_ms"], self.how(False)

    def plan(self, number: int) -> Plan | None:
        """The plan that a round cut to; None if it found nothing to cut."""
        if (attempts := self.journal.get(f"round/{number}/attempts")) is not None:
            found = self.journal[f"round/{number}/attempt/{attempts['chosen']}"]["plan"]
        else:
            found = self.journal[f"round/{number}/plan"]["plan"]
        return None if found is None else Plan.from_json(found)

    @cached_property
    def groups(self) -> list[Group]:
        """Every channel group of the network."""
        plan = self.plan(self.chosen)
        assert plan is not None
        return [
            Group(
                each["name"],
                each.get("kind", ""),
                each["width"],
                plan.widths[each["name"]],
                each["frozen"],
                each.get("renormalised"),
                (plan.precisions or {}).get(each["name"], ""),
            )
            for each in self.journal["network"]["groups"]
        ]

    @cached_property
    def kernels(self) -> list[tuple[str, KernelLatency, KernelLatency | None]]:
        """Every kernel of the network by its layer's name, unpruned and pruned, as the table knows it on its own.

        None in place of the pruned one if it was removed with its branch.
        """
        plan = self.plan(self.chosen)
        assert plan is not None
        network = self.journal["network"]
        dense = [KernelLatency(**row) for row in network["kernels"]]
        left = {row.kernel: row for row in plan.kernels}
        return [(layer, row, left.get(row.kernel)) for layer, row in zip(network["layers"], dense, strict=True)]

    @cached_property
    def attention(self) -> list[Attention]:
        """Scores of the groups that a round could cut, of every round."""
        found = []
        for figures in self.rounds:
            number = figures["round"]
            plan, scores = self.plan(number), self.journal.get(f"round/{number}/scores")
            if plan is None or scores is None:
                continue
            for group in self.groups:
                if not group.frozen and group.name in scores:
                    values = tuple(scores[group.name])
                    kept = plan.keep.get(group.name, range(len(values)))
                    found.append(Attention(number, group.name, values, frozenset(kept)))
        return found


def read_story(folder: Path) -> Story:
    """Read a finished run.

    Raises
    ------
    UserError : there is no finished run, it was made by a version that noted less, or a file of it is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"there is no run folder {folder}; 'aap-hw prune' makes one")
    if not (folder / "run.json").exists():
        raise UserError(f"{folder} holds no finished run; '{resume_command(folder)}' goes on with one that began")
    if not (folder / TABLE).exists():
        raise UserError(f"{folder} was made by an aap-hw that noted too little for a report; prune again")
    try:
        record = json.loads(read_text(folder / "run.json", "run"))["record"]
        summary = json.loads(read_text(folder / "summary.json", "summary"))
        if (fault := jsonschema.exceptions.best_match(_VALIDATOR.iter_errors(summary))) is not None:
            raise UserError(
                f"{folder}/summary.json is not valid at {fault.json_path} ({fault.message[:200]}); restore it, or run "
                "'aap-hw prune' again"
            )
        story = Story(
            folder,
            summary,
            tuple(record["rounds"]),
            tuple(read_events(folder)),
            read_journal(folder),
            load_table(folder / TABLE),
        )
        # All that is lazily read is there.
        assert story.groups, story.kernels
        assert all(each["event"] and each["time"] for each in story.events)
        len(story.attention)
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, OSError) as problem:
        raise UserError(
            f"{folder} is damaged ({reason(problem)}); restore it, or run 'aap-hw prune' again"
        ) from problem
    return story
