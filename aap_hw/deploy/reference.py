"""What a deployed network must compute: PyTorch's outputs for real samples, within a tolerance.

Outputs of numbers are compared by how far they are apart, decisions (truth values and whole numbers, such as the class
of each pixel) by how many are other ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from aap_hw.activity import doing
from aap_hw.compile.keys.precision import FP32, HALF, OTHERS, NetworkPrecision
from aap_hw.deploy.form import Form
from aap_hw.errors import Fault, UserError
from aap_hw.graph.program.inputs import Tensors, in_batches
from aap_hw.graph.program.outputs import output_names, output_tensors
from aap_hw.inputs import Inputs
from aap_hw.train.samples import Samples

# Outputs may differ from PyTorch's by rounding only: this share of an output's largest value, or of 1 if that is more.
# So may this share of decisions.
TOLERANCE = 1e-4
# In int8 a value halfway between two steps may be rounded to either, and all that is computed from it differs. So an
# output may be off by one step of 8 bits, or, if that is more, by SWAYS times what many such roundings did to a few
# samples: the worst of 2,000 samples is worse than the worst of 8. In half precision it may be off by as many times
# what rounding did at all. The average over all samples is held to less.
STEPS, SWAYS, SWAYS_ON_AVERAGE = 255, 4, 2
# The share of decisions that roundings may tip in these precisions; more, if more were tipped in the few samples.
TIPPED = 0.01
# Samples that go into a bundle, and that are enough to see that a format was translated right.
FEW = 8


@dataclass(frozen=True)
class Sway:
    """How far an output moves if values that it is computed from are rounded otherwise."""

    largest: float
    mean: float

    @classmethod
    def of(cls, moved: np.ndarray, expected: np.ndarray) -> Sway:
        """By the outputs for some samples."""
        apart = _apart(moved, expected)
        return cls(float(apart.max()), float(apart.mean()))


@dataclass(frozen=True)
class Reference:
    """Samples, prepared as the network takes them, and PyTorch's outputs for them.

    Attributes
    ----------
    samples : a tensor for each input; one image alone is (n, C, H, W).
    outputs : an array for each output under its name: (n, ...), where ... is what the network returns for one image.
    swayed : in int8 and in half precision, how far each output moves by roundings.
    precision : what is compared with PyTorch computes in.
    """

    samples: Tensors
    outputs: dict[str, np.ndarray]
    swayed: Mapping[str, Sway] = field(default_factory=dict)
    precision: NetworkPrecision = FP32

    @classmethod
    @doing("computing PyTorch's outputs")
    def of(cls, form: Form, inputs: Inputs, data: Samples, count: int = FEW) -> Reference:
        """The network's outputs for ``count`` of the test samples, spread over the classes.

        Raises
        ------
        UserError : an output is not finite, or would not be in half precision, or is of a type that NumPy lacks.
        """
        samples = form.taken(data.inputs("test", inputs, data.spread("test", count)))
        with torch.no_grad():
            answers = [form.call(sample) for sample in in_batches(samples)]
        names = output_names(answers[0])
        arrays = by_output([list(map(_array, names, output_tensors(answer))) for answer in answers])
        outputs = dict(zip(names, arrays, strict=True))
        for name, output in outputs.items():
            if not np.isfinite(output).all():
                raise UserError(
                    f"PyTorch's {name} is infinite or NaN for some samples, so nothing can be compared with it; check "
                    "the weights, or return finite values"
                )
        swayed: dict[str, Sway] = {}
        if form.precision != FP32:
            # In int8 a few samples tell, and take long. Decisions are few, and few of them are tipped.
            tells = FEW if form.precision in OTHERS and not any(map(_is_decision, outputs.values())) else count
            batches = in_batches(tuple(each[:tells] for each in samples))
            other = by_output([[o.numpy() for o in form.swayed(sample, i)] for i, sample in enumerate(batches)])
            if not all(np.isfinite(each).all() for each in other):
                raise UserError(
                    "some values of the network are too large for half precision, so that its outputs would be "
                    "infinite or NaN; deploy it with --precision fp32"
                )
            pairs = zip(outputs.items(), other, strict=True)
            swayed = {name: Sway.of(moved, output[:tells]) for (name, output), moved in pairs}
        return cls(samples, outputs, swayed, form.precision)

    @property
    def count(self) -> int:
        """How many samples there are."""
        return len(self.samples[0])

    @property
    def scores(self) -> np.ndarray | None:
        """PyTorch's score of each class, (n, classes), if that is what the network returns."""
        first, *others = self.outputs.values()
        is_scores = first.ndim == 3 and first.shape[1] == 1 and not others and not _is_decision(first)
        return first[:, 0] if is_scores else None

    @property
    def decisions(self) -> frozenset[str]:
        """Names of the outputs that are decisions."""
        return frozenset(name for name, output in self.outputs.items() if _is_decision(output))

    def agreement(self, outputs: Sequence[np.ndarray]) -> float | None:
        """Share of the images that get PyTorch's class, in percent, or of its decisions, if it makes nothing else.

        None if the network does neither.
        """
        scores = self.scores
        if scores is not None:
            return 100.0 * float(np.mean(outputs[0][:, 0].argmax(1) == scores.argmax(1)))
        if self.decisions != self.outputs.keys():
            return None
        pairs = zip(outputs, self.outputs.values(), strict=True)
        return 100.0 * (1 - float(np.concatenate([_apart(*pair).ravel() for pair in pairs]).mean()))

    @property
    def tolerances(self) -> dict[str, float]:
        """How far each output may be from PyTorch's for the first samples; of decisions, the share that may differ."""
        return {name: self._allowed(name, self.outputs[name][:FEW].size) for name in self.outputs}

    def _allowed(self, name: str, values: int) -> float:
        """How far an output may be from PyTorch's; of so many decisions, the share that may differ."""
        sway = self.swayed.get(name)
        if name in self.decisions:
            return TOLERANCE if sway is None else max(TIPPED, 1 / values, SWAYS_ON_AVERAGE * sway.mean)
        largest = float(np.abs(self.outputs[name]).max())
        rounding = TOLERANCE * max(1.0, largest)
        if sway is None:
            return rounding
        return max(rounding, 0.0 if self.precision == HALF else largest / STEPS, SWAYS * sway.largest)

    def _is_near(self, name: str, output: np.ndarray) -> bool:
        """Whether an output is as near as rounding lets it be, and in int8 or half precision also on average."""
        expected, sway = self.outputs[name], self.swayed.get(name)
        apart, allowed = _apart(output, expected), self._allowed(name, expected.size)
        if name in self.decisions:
            return float(apart.mean()) <= allowed
        if not apart.max() <= allowed:  # not so for NaN
            return False
        rounding = TOLERANCE * max(1.0, float(np.abs(expected).max()))
        return sway is None or float(apart.mean()) <= max(rounding, SWAYS_ON_AVERAGE * sway.mean)

    def equal(self, outputs: Sequence[np.ndarray]) -> int:
        """For how many samples all outputs are PyTorch's, but for the rounding of float32."""
        near = []
        for (name, expected), output in zip(self.outputs.items(), outputs, strict=True):
            rounding = 0.0 if name in self.decisions else TOLERANCE * max(1.0, float(np.abs(expected).max()))
            near.append(_apart(output, expected).reshape(self.count, -1).max(axis=1) <= rounding)
        return int(np.logical_and.reduce(near).sum())

    def compare(self, outputs: Sequence[np.ndarray], what: str) -> float:
        """The largest difference of any output of numbers from PyTorch's.

        Raises
        ------
        Fault : it is more than rounding.
        UserError : the same, for an output of decisions, which rounding can tip.
        """
        differences = [0.0]
        for (name, expected), output in zip(self.outputs.items(), outputs, strict=True):
            apart, is_decision = _apart(output, expected), name in self.decisions
            if not is_decision:
                differences.append(float(apart.max()))
            if self._is_near(name, output):
                continue
            where = f" in {name}" if len(self.outputs) > 1 else ""
            if is_decision:
                raise UserError(
                    f"{what} decides differently from PyTorch{where} in {apart.mean():.2%} of what it decides on "
                    f"{self.count} samples, as rounding can tip a close decision; return scores, and decide afterwards"
                )
            raise Fault(
                f"{what} differs from PyTorch by {apart.max():.3g}{where} on {self.count} samples; "
                "nothing was written; this is a fault of aap-hw, please report it with the run folder"
            )
        return max(differences)


def _array(name: str, output: torch.Tensor) -> np.ndarray:
    try:
        array: np.ndarray = output.numpy()
    except TypeError as error:
        raise UserError(
            f"the network returns {name} in {str(output.dtype).removeprefix('torch.')}, which nothing can be compared "
            "with; return it in float32, with .float()"
        ) from error
    return array


def _is_decision(output: np.ndarray) -> bool:
    return not np.issubdtype(output.dtype, np.floating)


def _apart(output: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """How far each number is from PyTorch's, or whether a decision is another one: (n, ...) of float32."""
    found = output.astype(np.float32)
    apart: np.ndarray = found != expected.astype(np.float32) if _is_decision(expected) else np.abs(found - expected)
    return apart.astype(np.float32)


def by_output(answers: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """The outputs for several images in turn, each output as one array (n, ...)."""
    return [np.stack(parts) for parts in zip(*answers, strict=True)]
