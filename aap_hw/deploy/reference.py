"""What a deployed network must compute: PyTorch's outputs for real samples, within a tolerance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from aap_hw.activity import doing
from aap_hw.deploy.form import Form
from aap_hw.errors import Fault, UserError
from aap_hw.graph.program.inputs import Inputs, Tensors, in_batches
from aap_hw.graph.program.outputs import output_names, output_tensors
from aap_hw.train.samples import Samples

# Outputs may differ from PyTorch's by rounding only: this share of an output's largest value, or of 1 if that is more.
TOLERANCE = 1e-4
# In int8 a value that lies halfway between two steps may be rounded to either, and all that is computed of it differs.
# So outputs may be apart by a step of them, if they were stored in 8 bits, or by this many times what comes of many
# such roundings, if that is more.
STEPS, SWAYS = 255, 2
# How many go into a bundle, or are enough to see that a format was translated right.
FEW = 8


@dataclass(frozen=True)
class Sway:
    """How far an output moves if many of the values that it is computed from are rounded to the other side."""

    largest: float
    mean: float

    @classmethod
    def of(cls, moved: np.ndarray, expected: np.ndarray) -> Sway:
        """By the outputs for some samples."""
        apart = np.abs(moved.astype(np.float32) - expected)
        return cls(float(apart.max()), float(apart.mean()))


@dataclass(frozen=True)
class Reference:
    """Samples, prepared as the network takes them, and PyTorch's outputs for them.

    Attributes
    ----------
    samples : a tensor for each input; one image alone is (n, C, H, W).
    outputs : an array for each output under its name: (n, ...), where ... is what the network returns for one image.
    swayed : in int8, how far each output moves by roundings.
    """

    samples: Tensors
    outputs: dict[str, np.ndarray]
    swayed: Mapping[str, Sway] = field(default_factory=dict)

    @classmethod
    @doing("computing PyTorch's outputs")
    def of(cls, form: Form, inputs: Inputs, data: Samples, count: int = FEW) -> Reference:
        """The network's outputs for ``count`` of the test samples, spread over the classes.

        Raises
        ------
        UserError : an output is not finite.
        """
        samples = form.taken(data.inputs("test", inputs, data.spread("test", count)))
        with torch.no_grad():
            answers = [form.call(sample) for sample in in_batches(samples)]
        arrays = by_output([[output.numpy() for output in output_tensors(answer)] for answer in answers])
        outputs = dict(zip(output_names(answers[0]), arrays, strict=True))
        for name, output in outputs.items():
            if not np.isfinite(output).all():
                raise UserError(
                    f"PyTorch's {name} is infinite or NaN for some samples, so nothing can be compared with it; check "
                    "the weights, or return finite values"
                )
        swayed: dict[str, Sway] = {}
        if form.quantisation is not None:
            few = tuple(each[:FEW] for each in samples)
            other = by_output(
                [[o.numpy() for o in form.swayed(sample, seed)] for seed, sample in enumerate(in_batches(few))]
            )
            pairs = zip(outputs.items(), other, strict=True)
            swayed = {name: Sway.of(moved, output[:FEW]) for (name, output), moved in pairs}
        return cls(samples, outputs, swayed)

    @property
    def count(self) -> int:
        """How many samples there are."""
        return len(self.samples[0])

    @property
    def scores(self) -> np.ndarray | None:
        """PyTorch's score of each class, (n, classes), if that is what the network returns."""
        first, *others = self.outputs.values()
        return first[:, 0] if first.ndim == 3 and first.shape[1] == 1 and not others else None

    def agreement(self, outputs: Sequence[np.ndarray]) -> float | None:
        """Share of the images that get PyTorch's class, in percent; None if the network scores no classes."""
        scores = self.scores
        return None if scores is None else 100.0 * float(np.mean(outputs[0][:, 0].argmax(1) == scores.argmax(1)))

    @property
    def tolerances(self) -> dict[str, float]:
        """How far each output may be from PyTorch's."""
        return {name: self._allowed(name) for name in self.outputs}

    def _allowed(self, name: str) -> float:
        largest = float(np.abs(self.outputs[name]).max())
        rounding = TOLERANCE * max(1.0, largest)
        sway = self.swayed.get(name)
        return rounding if sway is None else max(rounding, largest / STEPS, SWAYS * sway.largest)

    def _is_near(self, name: str, output: np.ndarray) -> bool:
        """Whether an output is as near as rounding lets it be, and in int8 also on average."""
        expected, sway = self.outputs[name], self.swayed.get(name)
        if not _apart(output, expected) <= self._allowed(name):  # not so for NaN
            return False
        rounding = TOLERANCE * max(1.0, float(np.abs(expected).max()))
        mean = float(np.abs(output.astype(np.float32) - expected).mean())
        return sway is None or mean <= max(rounding, SWAYS * sway.mean)

    def equal(self, outputs: Sequence[np.ndarray]) -> int:
        """For how many samples all outputs are PyTorch's, but for the rounding of float32."""
        pairs = zip(self.outputs.values(), outputs, strict=True)
        near = [
            np.abs(output.astype(np.float32) - expected).reshape(self.count, -1).max(axis=1)
            <= TOLERANCE * max(1.0, float(np.abs(expected).max()))
            for expected, output in pairs
        ]
        return int(np.logical_and.reduce(near).sum())

    def compare(self, outputs: Sequence[np.ndarray], what: str) -> float:
        """The largest difference of any output from PyTorch's.

        Raises
        ------
        Fault : it is more than rounding.
        UserError : the same, for an output of decisions (truth values, whole numbers), which rounding can tip.
        """
        differences = []
        for (name, expected), output in zip(self.outputs.items(), outputs, strict=True):
            difference = _apart(output, expected)
            differences.append(difference)
            if self._is_near(name, output):
                continue
            where = f" in {name}" if len(self.outputs) > 1 else ""
            if not np.issubdtype(expected.dtype, np.floating):
                raise UserError(
                    f"{what} decides differently from PyTorch{where} on {self.count} samples, as rounding can tip a "
                    "close decision; return scores, and decide afterwards"
                )
            raise Fault(
                f"{what} differs from PyTorch by {difference:.3g}{where} on {self.count} samples; "
                "nothing was written; this is a fault of aap-hw, please report it with the run folder"
            )
        return max(differences)


def _apart(output: np.ndarray, expected: np.ndarray) -> float:
    # ONNX Runtime gives truth values as such, and these cannot be subtracted.
    return float(np.abs(output.astype(np.float32) - expected).max())


def by_output(answers: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """The outputs for several images in turn, each output as one array (n, ...)."""
    return [np.stack(parts) for parts in zip(*answers, strict=True)]
