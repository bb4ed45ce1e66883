"""Sentences about a checkpoint: which of its tensors were taken, what was left out, and why it does not fit."""

from __future__ import annotations

import re
from collections.abc import Sequence

from aap_hw.errors import closest
from aap_hw.models.checkpoints.candidates import Candidate

SHOWN = 3
# Names that show how a network was changed before it was saved, and how to change it back.
_CHANGED = {
    r"parametrizations\.": "parametrizations; take them off with torch.nn.utils.parametrize.remove_parametrizations "
    "and save it again",
    r"(weight|bias)_mask$": "pruning masks; make them permanent with torch.nn.utils.prune.remove and save it again",
    r"weight_orig$": "spectral norms; take them off with torch.nn.utils.remove_spectral_norm and save it again",
    r"weight_g$": "weight norms; take them off with torch.nn.utils.remove_weight_norm and save it again",
    r"_packed_params|(^|\.)(scale|zero_point)$": "quantized layers; give the weights that it was quantized from",
    r"lora_": "adapters (LoRA); merge them into its weights and save it again",
    r"_flat_param": "shards (FSDP); gather its full state dict and save that",
}


def choice(chosen: Candidate, candidates: Sequence[Candidate]) -> str:
    """Which of several candidates was taken and why; empty if there was no choice."""
    others = [each for each in candidates if each is not chosen]
    if not others:
        return ""
    fitting = [each for each in others if each.fits]
    if fitting:
        reason = "the average over training" if chosen.is_average else "the usual place"
        if chosen.rank[:2] == fitting[0].rank[:2]:
            reason = "the first"
        return (
            f"{_where(chosen, candidates)} are taken ({reason}) and not {_places(fitting, candidates)}, which fit too"
        )
    return f"{_where(chosen, candidates)} are taken, as {_places(others, candidates)} do not fit"


def differences(nearest: Candidate, unknown: Sequence[str], what: str) -> str:
    """Everything by which a candidate does not fit a network, which is called ``what``."""
    wanted, remarks = nearest.network.tensors, []
    if missing := nearest.missing:
        remarks.append(f"they lack {listed(missing)} of {len(wanted)} tensors{closest(missing[0], unknown)}")
        if unknown:
            remarks.append(f"{what} has no {listed(unknown)}")
        for trace, change in _CHANGED.items():
            if any(re.search(trace, name) for name in unknown):
                remarks.append(f"they were saved with {change}")
                break
    if unreadable := nearest.unreadable:
        remarks.append(f"{listed(unreadable)} cannot be used: {nearest.tensors[unreadable[0]].obstacle}")
    if misshapen := nearest.misshapen:
        first = misshapen[0]
        theirs, ours = nearest.tensors[first].shape, tuple(wanted[first].shape)
        remarks.append(f"{listed(misshapen)} differ in shape: {first} is {theirs} there and {ours} in {what}")
    if mistyped := nearest.mistyped:
        kind = str(nearest.tensors[mistyped[0]].dtype).removeprefix("torch.")
        remarks.append(f"{listed(mistyped)} are of another type: {mistyped[0]} is {kind}")
    return "; ".join(remarks)


def listed(names: Sequence[str]) -> str:
    """The first few of some names, and how many more there are."""
    shown = ", ".join(f"'{name}'" for name in names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"


def _where(candidate: Candidate, candidates: Sequence[Candidate]) -> str:
    return f"the weights {_label(candidate, candidates)}"


def _places(those: Sequence[Candidate], candidates: Sequence[Candidate]) -> str:
    return "those " + " and ".join(_label(each, candidates) for each in those[:SHOWN])


def _label(candidate: Candidate, candidates: Sequence[Candidate]) -> str:
    """How to find it in the file: by its key, or by its prefix if other candidates are under the same key."""
    if sum(each.place == candidate.place for each in candidates) > 1:
        begins = candidate.prefix.removeprefix(f"{candidate.place}." if candidate.place else "")
        return f"named '{begins}*'" if begins else "named as the network's"
    return f"under '{candidate.place}'" if candidate.place else "at its top"
