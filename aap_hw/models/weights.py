"""Puts a user's checkpoint into a network, or refuses it in a sentence that says what differs.

How files are read without running anything in them is in `aap_hw.models.checkpoints`; what libraries publish is
found by `aap_hw.models.published`. Whether a checkpoint belongs to a network is known from its names and shapes alone.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aap_hw import ranks
from aap_hw.errors import UserError
from aap_hw.files import sha256_of
from aap_hw.models.checkpoints import remarks
from aap_hw.models.checkpoints.candidates import Candidate, Network, beside, candidates_of
from aap_hw.models.checkpoints.contents import Found, foreign_in, keys_of, tensors_in
from aap_hw.models.checkpoints.files import opened, parts, whole
from aap_hw.models.checkpoints.pickled import Made
from aap_hw.models.checkpoints.tensors import tensor_of

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class WeightsFile:
    """A checkpoint that a network was built with: its path, and the SHA-256 of its bytes.

    For an index, the digest covers all files that it names. ``name`` is what it is published as
    (`aap_hw.models.published`), and empty of a user's own.
    """

    path: str
    sha256: str
    name: str = ""

    @classmethod
    def at(cls, path: str | Path, name: str = "") -> WeightsFile:
        """The file as it is now. Raises UserError if it cannot be read."""
        return cls(str(path), _digest(path), name)


def load_weights(module: nn.Module, file: WeightsFile, what: str, renamed: Callable[[str], str] = str) -> None:
    """Put a checkpoint's tensors into a network, in place; every tensor of the network must be in it.

    Where a choice was made, or something was left out, it is logged as a warning.

    Parameters
    ----------
    what
        The network's name, for the sentence of an error.
    renamed
        The network's name of a tensor of the file, where they differ.

    Raises
    ------
    UserError : the file is not a checkpoint, is no longer the one of ``file.sha256``, or is of another network: the
        names that are missing, unknown or of another shape or type are given.
    """
    path = _unchanged(file)
    network = Network.of(module)
    with opened(path) as content:
        with whole(path):
            found = [
                replace(each, keys=(*each.keys[:-1], *map(renamed, each.keys[-1:]))) for each in tensors_in(content)
            ]
        if not any(each.keys for each in found):
            raise UserError(_no_weights(content, file.path))
        candidates = candidates_of(found, network)
        chosen = _fitting(candidates, found, network, file.path, what)
        with whole(path):
            state = _read(chosen)
    _check(state, network, file.path)
    whole_state = module.state_dict()
    whole_state.update(state)  # in place, as some modules ask for the version that it carries
    module.load_state_dict(whole_state)
    if ranks.is_first():
        _tell(chosen, candidates, found, file.path, what)


def state_of(file: WeightsFile) -> dict[str, torch.Tensor]:
    """All tensors of a published checkpoint, by their own names. Raises UserError as `load_weights` does."""
    path = _unchanged(file)
    with opened(path) as content, whole(path):
        found = {each.keys[-1]: each.tensor for each in tensors_in(content) if each.keys}
        if not found:
            raise UserError(_no_weights(content, file.path))
        return {name: each.read() for name, each in found.items()}


def _unchanged(file: WeightsFile) -> Path:
    """Where a file is. Raises UserError if it is not the one that it was."""
    if (now := _digest(file.path)) != file.sha256:
        raise UserError(
            f"{file.path} has changed (sha256 {now[:12]}... instead of {file.sha256[:12]}...); restore the file that "
            "the run began with"
        )
    return Path(file.path)


def _fitting(
    candidates: Sequence[Candidate], found: Sequence[Found], network: Network, path: str, what: str
) -> Candidate:
    best = candidates[0] if candidates else Candidate("", {}, "", network, False, 0)
    if best.fits:
        return best
    unknown = beside(best, candidates, found) if candidates else _most_together(found)
    place = f", under '{best.place}'," if best.place else ""
    raise UserError(
        f"the weights {path}{place} do not fit {what}: {remarks.differences(best, unknown, what)}; "
        "give the checkpoint of this network"
    )


def _most_together(found: Sequence[Found]) -> list[str]:
    """The names of the dictionary that holds the most tensors."""
    together: dict[str, list[str]] = {}
    for each in found:
        together.setdefault(each.place, []).append(each.keys[-1])
    return max(together.values(), key=len)


def _read(chosen: Candidate) -> dict[str, torch.Tensor]:
    """The network's new tensors, of the types that it has."""
    state: dict[str, torch.Tensor] = {}
    for name, ours in chosen.network.tensors.items():
        if (source := chosen.source_of(name)) is not None:
            state[name] = chosen.tensors[source].read().to(ours.dtype)
    return state


def _check(state: Mapping[str, torch.Tensor], network: Network, path: str) -> None:
    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise UserError(
            f"the weights {path} are not all finite numbers ({remarks.listed(broken)}); give another checkpoint"
        )
    for name, value in state.items():
        for other in network.same[name]:
            if other in state and not torch.equal(value, state[other]):
                raise UserError(
                    f"the weights {path} have different numbers for '{name}' and '{other}', which are one tensor in "
                    "the network; give the checkpoint of this network"
                )


def _tell(chosen: Candidate, candidates: Sequence[Candidate], found: Sequence[Found], path: str, what: str) -> None:
    if sentence := remarks.choice(chosen, candidates):
        LOG.warning("%s: %s", path, sentence)
    if extra := beside(chosen, candidates, found):
        LOG.warning("%s: %s left out, as %s has no such tensors", path, remarks.listed(extra), what)


def _no_weights(content: Any, path: str) -> str:
    is_tensor = tensor_of(content) is not None
    keys, foreign = ([], []) if is_tensor else (keys_of(content), foreign_in(content))
    if keys:
        what = f"a dict with the keys {', '.join(keys[:6])} and "
    elif is_tensor:
        what = "a tensor and "
    else:
        what = "" if isinstance(content, Made) else f"a {type(content).__name__} and "
    why = f"what {foreign[0]} would make is not looked at, as that could run code; " if foreign else ""
    return f"{path} holds {what}no weights; {why}save the network's state_dict(), by itself or under 'state_dict'"


def _digest(path: str | Path) -> str:
    whole_file, *of_index = parts(Path(path))
    digest = sha256_of(whole_file)
    if of_index:
        digest = hashlib.sha256("".join([digest, *map(sha256_of, of_index)]).encode()).hexdigest()
    return digest
