"""Which tensors of a checkpoint belong to a network: those with the network's own names behind one prefix.

A script keeps the weights under a key, a wrapper puts a word before each name, a training module has a loss beside the
network. All of these are prefixes that end in a point. Every prefix that is followed by a name of the network is a
candidate. It fits if all names of the network follow it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from aap_hw.models.checkpoints.contents import Found
from aap_hw.models.checkpoints.tensors import Stored

# Where training scripts keep the weights that they go on with, the usual ones first.
USUAL = ("state_dict", "model", "model_state_dict", "net", "network", "weights", "params", "student")
# A word in a key or name which says that the weights are an average over training, which scripts evaluate.
_AVERAGE = re.compile(r"(^|[^a-z])(ema|swa|avg|average|averaged|polyak|shadow)([^a-z]|$)", re.IGNORECASE)
# The counter of batch norms: no output depends on it, and old checkpoints lack it.
COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Network:
    """What a network needs.

    Attributes
    ----------
    tensors : its tensors by name.
    same : for each name, all names of its tensor.
    """

    tensors: Mapping[str, torch.Tensor]
    same: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, module: torch.nn.Module) -> Network:
        """The parameters and persistent buffers of a network."""
        held = module.state_dict(keep_vars=True)
        tensors = {name: value for name, value in held.items() if isinstance(value, torch.Tensor)}
        names: dict[int, list[str]] = {}
        for name, value in tensors.items():
            names.setdefault(id(value), []).append(name)
        return cls(tensors, {name: names[id(value)] for name, value in tensors.items()})


@dataclass(frozen=True)
class Candidate:
    """Tensors of a checkpoint that share a prefix.

    Attributes
    ----------
    prefix : the prefix, keys of the file included.
    tensors : those found, by the network's names.
    place : the keys to the dictionary that they are in.
    order : the place of the prefix in the file.
    """

    prefix: str
    tensors: Mapping[str, Stored]
    place: str
    network: Network
    is_average: bool
    order: int

    @cached_property
    def missing(self) -> list[str]:
        """Names of the network's tensors that are not here under any of their names."""
        return [name for name in self.network.tensors if not name.endswith(COUNTER) and self.source_of(name) is None]

    @cached_property
    def misshapen(self) -> list[str]:
        """Names of tensors whose shape differs from the network's."""
        return [
            name
            for name, tensor in self.tensors.items()
            if not tensor.obstacle and tensor.shape != tuple(self.network.tensors[name].shape)
        ]

    @cached_property
    def mistyped(self) -> list[str]:
        """Names of tensors that are floating point where the network's is not, or the other way round."""
        return [
            name
            for name, tensor in self.tensors.items()
            if not tensor.obstacle
            and not name.endswith(COUNTER)  # averaging makes it a float, too
            and tensor.dtype.is_floating_point != self.network.tensors[name].is_floating_point()
        ]

    @cached_property
    def unreadable(self) -> list[str]:
        """Names of tensors without plain numbers."""
        return [name for name, tensor in self.tensors.items() if tensor.obstacle]

    @property
    def fits(self) -> bool:
        """Whether the network can take them."""
        return not (self.missing or self.misshapen or self.mistyped or self.unreadable)

    @property
    def rank(self) -> tuple[bool, list[int], int]:
        """The smallest is taken first: averages, then the usual keys, then the file's order."""
        usual = [USUAL.index(word) if word in USUAL else len(USUAL) for word in self.prefix.split(".")]
        return not self.is_average, usual, self.order

    def source_of(self, name: str) -> str | None:
        """The name under which a tensor of the network is there."""
        return next((same for same in (name, *self.network.same[name]) if same in self.tensors), None)


def candidates_of(found: Sequence[Found], network: Network) -> list[Candidate]:
    """Everything in a checkpoint that may be the network's weights, best first; empty if no name is found.

    A candidate has at least half of the network's names, or the most names of any if none has so many.
    """
    by_name = {each.name: each for each in reversed(found)}
    counts: Counter[str] = Counter()
    for each in found:
        words = each.name.split(".")
        for start in range(len(words)):
            if ".".join(words[start:]) in network.tensors:
                counts[".".join(words[:start]) + "." * (start > 0)] += 1
    if not counts:
        return []
    enough = min(max(counts.values()), (len(network.tensors) + 1) // 2)
    first_keys = {each.keys[0] for each in found}
    # MMEngine keeps what it trains on under this key, and the average as 'state_dict'.
    is_swapped = {"message_hub", "ema_state_dict"} <= first_keys
    candidates = []
    for order, prefix in enumerate(prefix for prefix, count in counts.items() if count >= enough):
        ours = {name: by_name[prefix + name] for name in network.tensors if prefix + name in by_name}
        example = next(iter(ours.values()))
        is_average = _is_average(prefix, example, by_name) != (
            is_swapped and example.keys[0] in ("state_dict", "ema_state_dict")
        )
        tensors = {name: each.tensor for name, each in ours.items()}
        candidates.append(Candidate(prefix, tensors, example.place, network, is_average, order))
    return sorted(candidates, key=lambda each: (not each.fits, 0 if each.fits else -len(each.tensors), each.rank))


def beside(chosen: Candidate, candidates: Sequence[Candidate], found: Sequence[Found]) -> list[str]:
    """Names of the tensors beside those of a candidate that belong to no other candidate; without counters."""
    taken = {chosen.prefix + name for name in chosen.tensors}
    others = tuple(each.prefix for each in candidates if not chosen.prefix.startswith(each.prefix))
    places = {each.place for each in found if each.name in taken}
    near = [
        each
        for each in found
        if (each.place in places or (chosen.prefix and each.name.startswith(chosen.prefix)))
        and each.name not in taken
        and not (others and each.name.startswith(others))
        and (each.tensor.shape or each.tensor.dtype.is_floating_point)
    ]
    # As the network would call it, or else the file.
    return [
        each.name.removeprefix(chosen.prefix if each.name.startswith(chosen.prefix) else f"{each.place}.")
        for each in near
    ]


def _is_average(prefix: str, example: Found, by_name: Mapping[str, Found]) -> bool:
    # A teacher with its own state dict is the average of its student. One among the student's names is another network.
    return (
        _AVERAGE.search(prefix) is not None
        or (example.keys[0] == "teacher" and len(example.keys) > 1)
        or (prefix.endswith("module.") and f"{prefix.removesuffix('module.')}n_averaged" in by_name)
    )
