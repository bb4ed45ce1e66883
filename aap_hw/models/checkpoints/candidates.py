"""Which tensors of a checkpoint are a network's: those whose names begin alike and go on as the network's do.

A script keeps the weights under a key, a wrapper puts a word before each name, a training module has a loss beside the
network. All of that is one thing here: a text, ending in a point, after which the names of the network follow. So every
text that is followed by one of its names is a candidate, and those fit after which all of them do.
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
# A word of a key or a name that means that the weights below are an average over training, which is what is evaluated.
_AVERAGE = re.compile(r"(^|[^a-z])(ema|swa|avg|average|averaged|polyak|shadow)([^a-z]|$)", re.IGNORECASE)
# Counts batches: nothing here depends on it, and old checkpoints lack it.
COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Network:
    """What a network wants.

    Attributes
    ----------
    tensors : its tensors by name.
    same : for each name, the names of the same tensor, itself among them.
    """

    tensors: Mapping[str, torch.Tensor]
    same: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, module: torch.nn.Module) -> Network:
        """The network's tensors, with those that have several names."""
        held = module.state_dict(keep_vars=True)
        tensors = {name: value for name, value in held.items() if isinstance(value, torch.Tensor)}
        names: dict[int, list[str]] = {}
        for name, value in tensors.items():
            names.setdefault(id(value), []).append(name)
        return cls(tensors, {name: names[id(value)] for name, value in tensors.items()})


@dataclass(frozen=True)
class Candidate:
    """The tensors of a checkpoint whose names begin alike.

    Attributes
    ----------
    prefix : what they begin with, keys of the file included.
    tensors : by the network's names; those that the file lacks are missing.
    place : the keys to the dictionary that they are in.
    """

    prefix: str
    tensors: Mapping[str, Stored]
    place: str
    network: Network
    is_average: bool
    order: int

    @cached_property
    def missing(self) -> list[str]:
        """Names that the network has and these tensors have not, under no name of the same tensor."""
        return [name for name in self.network.tensors if not name.endswith(COUNTER) and self.source_of(name) is None]

    @cached_property
    def misshapen(self) -> list[str]:
        """Names of tensors that have another shape than the network's."""
        return [
            name
            for name, tensor in self.tensors.items()
            if not tensor.obstacle and tensor.shape != tuple(self.network.tensors[name].shape)
        ]

    @cached_property
    def mistyped(self) -> list[str]:
        """Names of tensors that are numbers of another kind than the network's."""
        return [
            name
            for name, tensor in self.tensors.items()
            if not tensor.obstacle
            and not name.endswith(COUNTER)  # scripts that average everything average it, too
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
        """Smaller means taken first: averages, then the usual keys, then the file's order."""
        usual = [USUAL.index(word) if word in USUAL else len(USUAL) for word in self.prefix.split(".")]
        return not self.is_average, usual, self.order

    def source_of(self, name: str) -> str | None:
        """The name under which a tensor of the network is there."""
        return next((same for same in (name, *self.network.same[name]) if same in self.tensors), None)


def candidates_of(found: Sequence[Found], network: Network) -> list[Candidate]:
    """Everything in a checkpoint that may be the network's weights, best first.

    At least half of the network's names are there, or as many as there are anywhere; empty if there are none.
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
    """What lies with the tensors of a candidate and is of no other one, by its name there; counters are left out."""
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
    # A teacher with a state dict of its own is the average of its student. One inside the student's is another network.
    return (
        _AVERAGE.search(prefix) is not None
        or (example.keys[0] == "teacher" and len(example.keys) > 1)
        or (prefix.endswith("module.") and f"{prefix.removesuffix('module.')}n_averaged" in by_name)
    )
