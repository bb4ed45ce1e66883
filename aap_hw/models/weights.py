"""A user's checkpoint, read from a file and put into a network, or refused in a sentence that says what differs.

Covers safetensors files and state dicts saved by torch (read without unpickling code), nested or with prefixed names as
training scripts leave them. It does not download anything and does not know which network a checkpoint is of.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from aap_hw.errors import UserError, closest, reason
from aap_hw.files import sha256_of

# Where training scripts put the weights among other things, the averaged ones first.
NESTED_UNDER = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict", "net", "weights")
# What DistributedDataParallel, torch.compile and Lightning put before every name.
PREFIXES = ("module.", "_orig_mod.", "model.")
# A zip archive, or the pickle that versions before 1.6 wrote.
TORCH_BEGINS = (b"PK", b"\x80")
SHOWN = 3

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class WeightsFile:
    """A checkpoint that a network was built with: where it was, and the digest of its bytes."""

    path: str
    sha256: str

    @classmethod
    def at(cls, path: str | Path) -> WeightsFile:
        """The file as it is now. Raises UserError if it cannot be read."""
        return cls(str(path), sha256_of(path))


def load_weights(module: nn.Module, file: WeightsFile, what: str) -> None:
    """Put a checkpoint's tensors into a network, in place; every tensor of the network must be in it.

    Parameters
    ----------
    what
        The network's name, for the sentence of an error.

    Raises
    ------
    UserError
        If the file is not a checkpoint, is no longer the one of ``file.sha256``, or is of another network: the names
        that are missing, unknown or of another shape or type are given.
    """
    if (now := sha256_of(file.path)) != file.sha256:
        raise UserError(
            f"{file.path} has changed (sha256 {now[:12]}... instead of {file.sha256[:12]}...); restore the file that "
            "the run began with"
        )
    wanted = module.state_dict()
    found = _without_prefix(_tensors(file.path), wanted)
    _check(found, wanted, file.path, what)
    # Counters of batches are the only integers, and what old checkpoints lack; nothing here depends on them.
    module.load_state_dict({name: found.get(name, tensor) for name, tensor in wanted.items()})


def _tensors(path: str) -> State:
    """All tensors of a checkpoint by name."""
    if Path(path).suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (OSError, SafetensorError) as problem:
            raise UserError(
                f"cannot read the weights {path}: {reason(problem)}; is it a whole safetensors file?"
            ) from problem
    try:
        with Path(path).open("rb") as file:
            begins = file.read(2)
        if begins and not begins.startswith(TORCH_BEGINS):
            raise UserError(
                f"the weights {path} are no file of torch.save; give one, or a safetensors file, whose name ends with "
                ".safetensors"
            )
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as problem:
        raise UserError(
            f"{path} holds more than tensors, which could run code when it is read; save the network's state_dict() "
            "alone, best as safetensors"
        ) from problem
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as problem:
        raise UserError(
            f"cannot read the weights {path}: {reason(problem)}; is it a whole checkpoint of torch?"
        ) from problem
    return _state_in(content, path)


def _state_in(content: Any, path: str) -> State:
    if isinstance(content, Mapping):
        if content and all(isinstance(value, torch.Tensor) for value in content.values()):
            return {str(name): tensor for name, tensor in content.items()}
        for name in NESTED_UNDER:
            if isinstance(content.get(name), Mapping):
                return _state_in(content[name], path)
    kind = type(content).__name__
    inside = f" with the keys {', '.join(map(str, list(content)[:6]))}" if isinstance(content, Mapping) else ""
    raise UserError(
        f"{path} holds a {kind}{inside} and no weights; save the network's state_dict(), by itself or under "
        "'state_dict'"
    )


def _without_prefix(found: State, wanted: Mapping[str, torch.Tensor]) -> State:
    """Take off prefixes that every name has, as long as that does not lose a name that is wanted."""
    while not wanted.keys() & found.keys():
        prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in found)), None)
        if prefix is None:
            break
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found


def _check(found: State, wanted: Mapping[str, torch.Tensor], path: str, what: str) -> None:
    missing = [name for name in wanted if name not in found and not name.endswith("num_batches_tracked")]
    unknown = [name for name in found if name not in wanted]
    remarks = []
    if missing:
        hint = closest(missing[0], unknown) if unknown else ""
        remarks.append(f"it lacks {_listed(missing)} of {len(wanted)} tensors{hint}")
    if unknown:
        remarks.append(f"{what} has no {_listed(unknown)}")
    differing = [name for name in wanted if name in found and found[name].shape != wanted[name].shape]
    if differing:
        first = differing[0]
        theirs, ours = tuple(found[first].shape), tuple(wanted[first].shape)
        remarks.append(f"{_listed(differing)} differ in shape: {first} is {theirs} there and {ours} in {what}")
    types = [
        name for name in wanted if name in found and found[name].is_floating_point() != wanted[name].is_floating_point()
    ]
    if types:
        remarks.append(
            f"{_listed(types)} are of another type: {types[0]} is {found[types[0]].dtype}".replace("torch.", "")
        )
    if remarks:
        raise UserError(
            f"the weights {path} are not of {what}: {'; '.join(remarks)}; give the checkpoint of this network"
        )
    broken = [name for name, tensor in found.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise UserError(f"the weights {path} are not all finite numbers ({_listed(broken)}); give another checkpoint")


def _listed(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"


def weights_of(text: str | None) -> str | WeightsFile | None:
    """What a person means by a text: a checkpoint's path, ``embedded``, or ``none``.

    Raises
    ------
    UserError : it is no file that is there.
    """
    if text is None or text == "none":
        return None
    if text == "embedded":
        return text
    if not Path(text).is_file():
        raise UserError(
            f"there are no weights '{text}': give the path of a checkpoint, 'embedded' or 'none'"
            f"{closest(text, ['embedded', 'none'])}"
        )
    return WeightsFile.at(text)
