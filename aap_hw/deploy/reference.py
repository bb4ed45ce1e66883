"""What a deployed network must compute: PyTorch's outputs for real samples, within a tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from aap_hw.activity import doing
from aap_hw.errors import Fault, UserError
from aap_hw.graph.program.inputs import Tensors, in_batches
from aap_hw.graph.program.outputs import output_names, output_tensors
from aap_hw.prune.run import PrunedNetwork
from aap_hw.train.samples import Samples

# Outputs may differ from PyTorch's by rounding only: this share of an output's largest value, or of 1 if that is more.
TOLERANCE = 1e-4
# How many go into a bundle, or are enough to see that a format was translated right.
FEW = 8


@dataclass(frozen=True)
class Reference:
    """Samples, prepared as the network takes them, and PyTorch's outputs for them.

    Attributes
    ----------
    samples : a tensor for each input; one image alone is (n, C, H, W).
    outputs : an array for each output under its name: (n, ...), where ... is what the network returns for one image.
    """

    samples: Tensors
    outputs: dict[str, np.ndarray]

    @classmethod
    @doing("computing PyTorch's outputs")
    def of(cls, network: PrunedNetwork, data: Samples, count: int = FEW) -> Reference:
        """The network's outputs for ``count`` of the test samples, spread over the classes.

        Raises
        ------
        UserError : an output is not finite.
        """
        origin = network.origin
        samples = data.inputs("test", origin.inputs, data.spread("test", count))
        with torch.no_grad():
            answers = [origin.call(network.module, sample) for sample in in_batches(samples)]
        arrays = by_output([[output.numpy() for output in output_tensors(answer)] for answer in answers])
        outputs = dict(zip(output_names(answers[0]), arrays, strict=True))
        for name, output in outputs.items():
            if not np.isfinite(output).all():
                raise UserError(
                    f"PyTorch's {name} is infinite or NaN for some samples, so nothing can be compared with it; check "
                    "the weights, or return finite values"
                )
        return cls(samples, outputs)

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
        return {name: TOLERANCE * max(1.0, float(np.abs(output).max())) for name, output in self.outputs.items()}

    def compare(self, outputs: Sequence[np.ndarray], what: str) -> float:
        """The largest difference of any output from PyTorch's.

        Raises
        ------
        Fault : it is more than rounding.
        UserError : the same, for an output of decisions (truth values, whole numbers), which rounding can tip.
        """
        differences, tolerances = [], self.tolerances
        for (name, expected), output in zip(self.outputs.items(), outputs, strict=True):
            # ONNX Runtime gives truth values as such, and these cannot be subtracted.
            difference = float(np.abs(output.astype(np.float32) - expected).max())
            differences.append(difference)
            if difference <= tolerances[name]:  # not so for NaN
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


def by_output(answers: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """The outputs for several images in turn, each output as one array (n, ...)."""
    return [np.stack(parts) for parts in zip(*answers, strict=True)]
