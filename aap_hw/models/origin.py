"""The unpruned network that a table or a run is about: its source, its weights and its inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import pydantic
import torch
from torch import nn

from aap_hw import ranks
from aap_hw.activity import doing
from aap_hw.errors import UserError
from aap_hw.foreign import own_line, reason
from aap_hw.graph.program.calling import called, check_call
from aap_hw.graph.program.inputs import Tensors
from aap_hw.graph.program.outputs import class_scores
from aap_hw.graph.program.readiness import require_traceable, unwrapped
from aap_hw.inputs import Given, Inputs
from aap_hw.models import published as by_name
from aap_hw.models import zoo
from aap_hw.models.initialise import calibrate_batch_norm, is_untrained
from aap_hw.models.published import Published
from aap_hw.models.source import Source, find, is_own, runs_code
from aap_hw.models.weights import WeightsFile, load_weights, state_of
from aap_hw.starting_folder import working_in

SEED = 0

StoredInputs = Annotated[Inputs, pydantic.BeforeValidator(Inputs.from_json)]
"""Inputs as a file holds them."""


@dataclass(frozen=True)
class Origin:
    """Where an unpruned network came from: enough to make it again.

    Parameters
    ----------
    model
        Canonical text of its source (`aap_hw.models.source`).
    weights
        ``"embedded"``, a checkpoint, of the user's or published by name, or None: those that the source makes.
    inputs
        What it takes.
    outputs
        How many classes it is made for; None: as many as is usual for it.
    folder
        What a file or a module that is named in ``model`` is looked for in first; by default the working folder.
    """

    model: str
    weights: str | WeightsFile | None
    inputs: StoredInputs
    outputs: int | None = None
    folder: str = ""

    @staticmethod
    def of(
        text: str,
        inputs: Given | None = None,
        weights: str | WeightsFile | None = None,
        outputs: int | None = None,
        *,
        may_be_quantised: bool = False,
    ) -> Origin:
        """Look up a source, with other inputs than its usual ones if they are given; nothing is made yet.

        Raises
        ------
        UserError : there is no such source, it has no such weights, it has no usual inputs and none are given, or it is
            quantised and may not be.
        """
        source = find(text, outputs)
        if source.is_quantised and not may_be_quantised:
            raise UserError(
                f"{source.text} is quantised already, and can only be compiled and deployed as it is; to prune it, "
                "give the network that was quantised"
            )
        if isinstance(weights, str) and source.text in zoo.names():
            zoo.entry(source.text, weights, outputs)
        elif isinstance(weights, str):
            raise UserError(
                f"{source.text} has no weights named '{weights}'; give a checkpoint's path, or leave --weights out"
            )
        found = _published(source.text, weights)
        usual = source.inputs if found is None or found.size is None else Inputs.of(found.size)
        given = usual if inputs is None else Inputs.of(inputs)
        if given is None:
            raise UserError(
                f"{source.text} has no usual image size; give the shape of one input, without the batch: --input "
                "3x96x96 for images, 1x16000 for recordings"
            )
        if usual is not None and (image := usual.image) is not None:
            _check_image(source.text, image, given)
        return Origin(source.text, weights, given, outputs)

    @property
    def short(self) -> str:
        """What a folder that is about this network may be called."""
        with self._found() as source:
            return source.short

    @property
    def is_quantised(self) -> bool:
        """Whether it computes with rounded values already."""
        with self._found() as source:
            return source.is_quantised

    @property
    def published(self) -> Published | None:
        """What is known of its weights if they are published by a name."""
        return _published(self.model, self.weights)

    @property
    def is_untrained(self) -> bool:
        """Whether the weights are random for certain; what code of the user's makes is not known."""
        return self.weights is None and not is_own(self.model)

    @functools.cached_property
    def classes(self) -> int | None:
        """How many classes the network tells apart; None if it does not return one score for each.

        A network of the user's is made for this when it is first asked.
        """
        if self.outputs is not None:
            return self.outputs
        if (found := self.published) is not None and found.preparation is not None and found.count is not None:
            return found.count  # of a classifier: detectors have classes, too, and return something else
        if self.model in zoo.names():
            return zoo.entry(self.model).classes
        with torch.no_grad():
            returned = self.call(self.build())
        try:
            return class_scores(returned).shape[1]
        except UserError:
            return None

    def build(self) -> nn.Module:
        """Make the unpruned network, in evaluation mode; the same call gives the same weights each time.

        Batch norms that have never seen a batch, as those of an untrained network, get the statistics of one
        seeded batch, which is of a single sample if the network takes no more.

        Raises
        ------
        UserError : its source does not make a network, it does not take these inputs, it takes no batch that gives its
            batch norms statistics, or the checkpoint is of another network.
        """
        if isinstance(self.weights, WeightsFile):
            file, found = self.weights, self.published
            if found is not None and not Path(file.path).exists():  # its cache was emptied, or is elsewhere here
                file = replace(file, path=str(ranks.found_by_first(found.fetch)))
            if found is not None and found.filled is not None:
                return self._checked(functools.partial(found.filled, state_of(file)))
            module = self.skeleton()
            load_weights(module, file, self.model, str if found is None else found.renamed)
            return module
        if self.model in zoo.names():
            return zoo.build(self.model, self.weights, self.outputs).module
        module = self.skeleton()
        if is_untrained(module):
            self._calibrate(module)
        return module

    def _calibrate(self, module: nn.Module) -> None:
        """Give its batch norms the statistics of several samples, or of one if its code is for one."""
        try:
            calibrate_batch_norm(module, self.inputs, seed=SEED)
        except (Exception, SystemExit) as error:
            try:
                calibrate_batch_norm(module, self.inputs, seed=SEED, batch=1)
            except (Exception, SystemExit):
                raise UserError(
                    f"{self.model} has batch norms without statistics, for which it would have to take several samples "
                    f"at once: {reason(error)}{own_line(error)}; let it take them, or give it trained weights"
                ) from error

    def skeleton(self) -> nn.Module:
        """Make the unpruned network for weights that are still to be loaded; else as `build`."""
        found = self.published
        return self._checked(None if found is None else found.make)

    def _checked(self, make: Callable[[], nn.Module] | None) -> nn.Module:
        """What `make`, or else the source, makes, in evaluation mode, if it takes the inputs."""
        with torch.random.fork_rng(devices=[]), torch.no_grad(), self._found() as source:
            torch.manual_seed(SEED)
            module = unwrapped((make or source.make)()).eval()
            check_call(module, self.inputs, self.model)
            require_traceable(module, self.inputs.zeros(), has_run=False)
            try:
                with doing(f"running {self.model} for the first time"):
                    self.call(module)
            except (Exception, SystemExit) as error:
                raise UserError(
                    f"{self.model} does not take {self.inputs.described}: {reason(error)}{own_line(error)}; "
                    "give --input what it takes"
                ) from error
        return module

    def call(self, module: nn.Module, tensors: Tensors | None = None) -> Any:
        """What the network, as it was made or cut, returns for a batch of its inputs; by default for one of zeros."""
        return called(module, self.inputs.zeros() if tensors is None else tensors, self.inputs.names)

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
        return {"model": self.model, "weights": weights, "input": self.inputs.as_json(), "classes": self.outputs}


def _published(model: str, weights: str | WeightsFile | None) -> Published | None:
    return by_name.find(model, weights.name) if isinstance(weights, WeightsFile) and weights.name else None


def _check_image(model: str, usual: tuple[int, int, int], given: Inputs) -> None:
    """Refuse inputs of a network for images that are none, or have other channels."""
    channels, image = usual[0], given.image
    if image is None:
        size = "x".join(map(str, usual))
        raise UserError(f"{model} takes one image, not {given.text}; write channels, height and width like {size}")
    if image[0] != channels:
        raise UserError(
            f"{model} takes images of {channels} channels, not {image[0]}; "
            f"write --input {channels}x{image[1]}x{image[2]}"
        )
