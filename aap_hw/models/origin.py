"""The unpruned network that a table or a run is about: its source, its weights and the size of its images."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aap_hw.errors import UserError, reason
from aap_hw.models import zoo
from aap_hw.models.initialise import calibrate_batch_norm, is_untrained
from aap_hw.models.source import InputShape, Source, find, is_own, runs_code
from aap_hw.models.weights import WeightsFile, load_weights
from aap_hw.starting_folder import working_in

SEED = 0


@dataclass(frozen=True)
class Origin:
    """Where an unpruned network came from: enough to make it again.

    Parameters
    ----------
    model
        Canonical text of its source (`aap_hw.models.source`).
    weights
        ``"embedded"``, a checkpoint of the user's, or None: those that the source makes.
    input_shape
        (C, H, W) of its images.
    outputs
        How many classes it is made for; None: as many as is usual for it.
    folder
        What a file or a module that is named in ``model`` is looked for in first; by default the working folder.
    """

    model: str
    weights: str | WeightsFile | None
    input_shape: InputShape
    outputs: int | None = None
    folder: str = ""

    @staticmethod
    def of(
        text: str,
        input_shape: tuple[int, ...] | None = None,
        weights: str | WeightsFile | None = None,
        outputs: int | None = None,
    ) -> Origin:
        """Look up a source, at another input size than its usual one if one is given; nothing is made yet.

        Raises
        ------
        UserError
            If there is no such source, it has no such weights, or it has no usual size and none is given.
        """
        source = find(text, outputs)
        if isinstance(weights, str) and source.text in zoo.names():
            zoo.entry(source.text, weights, outputs)
        elif isinstance(weights, str):
            raise UserError(
                f"{source.text} has no weights named '{weights}'; give a checkpoint's path, or leave --weights out"
            )
        usual = source.input_shape
        if input_shape is None:
            if usual is None:
                raise UserError(
                    f"{source.text} has no usual image size; say channels, height and width: --input 3x96x96"
                )
            return Origin(source.text, weights, usual, outputs)
        channels, height, width = input_shape
        if usual is not None and channels != usual[0]:
            raise UserError(
                f"{source.text} takes images of {usual[0]} channels, not {channels}; "
                f"write --input {usual[0]}x{height}x{width}"
            )
        return Origin(source.text, weights, (channels, height, width), outputs)

    @property
    def short(self) -> str:
        """What a folder that is about this network may be called."""
        with self._found() as source:
            return source.short

    @property
    def is_untrained(self) -> bool:
        """Whether the weights are random for certain; what code of the user's makes is not known."""
        return self.weights is None and not is_own(self.model)

    @property
    def classes(self) -> int | None:
        """How many classes the network tells apart; None if it does not return one score for each."""
        if self.outputs is not None:
            return self.outputs
        if self.model in zoo.names():
            return zoo.entry(self.model).classes
        return _classes(self)

    def build(self) -> nn.Module:
        """Make the unpruned network, in evaluation mode; the same call gives the same weights each time.

        Batch norms that have never seen a batch, as those of an untrained network, get the statistics of one
        seeded batch.

        Raises
        ------
        UserError
            If its source does not make a network, it does not take images of this size, or the checkpoint is of
            another network.
        """
        if isinstance(self.weights, WeightsFile):
            module = self.skeleton()
            load_weights(module, self.weights, self.model)
            return module
        if self.model in zoo.names():
            return zoo.build(self.model, self.weights, self.outputs).module
        module = self.skeleton()
        if is_untrained(module):
            calibrate_batch_norm(module, self.input_shape, seed=SEED)
        return module

    def skeleton(self) -> nn.Module:
        """Make the unpruned network for weights that are still to be loaded; else as `build`."""
        with torch.random.fork_rng(devices=[]), torch.no_grad(), self._found() as source:
            torch.manual_seed(SEED)
            module = source.make().eval()
            try:
                module(torch.zeros(1, *self.input_shape))
            except (Exception, SystemExit) as error:
                size = "x".join(map(str, self.input_shape))
                raise UserError(
                    f"{self.model} does not take images of {size}: {reason(error)}; give their size with --input CxHxW"
                ) from error
        return module

    @contextmanager
    def _found(self) -> Iterator[Source]:
        """The source, to be made before this ends."""
        folder, place = Path(self.folder), self.model.rpartition(":")[0]
        if runs_code(self.model) and (not place.endswith(".py") or (folder / place).is_file()):
            # Only here is whoever named the folder trusted: from the working one, Python may import anything.
            with working_in(folder):
                yield find(self.model, self.outputs)
        elif self.model.endswith(".pt2") and (folder / self.model).is_file():
            yield find(str(folder / self.model), self.outputs)
        else:
            yield find(self.model, self.outputs)

    def as_json(self) -> dict[str, Any]:
        """For a file; of a checkpoint its path and digest."""
        weights = asdict(self.weights) if isinstance(self.weights, WeightsFile) else self.weights
        return {"model": self.model, "weights": weights, "input": list(self.input_shape), "classes": self.outputs}


@functools.cache
def _classes(origin: Origin) -> int | None:
    with torch.no_grad():
        output = origin.build()(torch.zeros(1, *origin.input_shape))
    return output.shape[1] if isinstance(output, torch.Tensor) and output.dim() == 2 else None
