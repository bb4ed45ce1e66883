"""What is deployed: a run's network or any other, what PyTorch computes with it, and all that its bundle says of it.

Nothing is compiled here. Which precision a run is deployed in is decided in `aap_hw.deploy.run_form`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from aap_hw.compile.keys.precision import INT8_HALF, NetworkPrecision
from aap_hw.compile.keys.target import DeviceTarget
from aap_hw.deploy.bundle import Bundle, require_bundle_folder, write_bundle
from aap_hw.deploy.form import Form, beside_half, form_of, taking_pixels
from aap_hw.deploy.pixels import Preprocessing, is_unknown, preprocessing_of
from aap_hw.deploy.reference import FEW, Reference
from aap_hw.deploy.requirements import Requirements
from aap_hw.deploy.run_form import form_in, form_of_run, supported, unpruned_form
from aap_hw.device.connection import target_of
from aap_hw.device.description import MEASURED
from aap_hw.device.profile import DeviceProfile
from aap_hw.errors import UserError
from aap_hw.graph.program.calling import input_names
from aap_hw.graph.program.inputs import Tensors, in_batches
from aap_hw.inputs import Inputs
from aap_hw.models.origin import Origin
from aap_hw.models.weights import WeightsFile
from aap_hw.policy import LATENCY
from aap_hw.prune.run import RunFolder
from aap_hw.prune.samples import are_made_up
from aap_hw.train.data import LabelledImages
from aap_hw.train.samples import Samples

# Checking stops at about this many pixels, or other positions: all embedded test images at 32 x 32, a few dozen at
# 224 x 224.
CHECKED_PIXELS = 2_200_000


@dataclass(frozen=True)
class Deployable:
    """A network on its way into a bundle.

    Attributes
    ----------
    model : the text of its source.
    form : the network.
    inputs : what it takes.
    names : what its inputs are called.
    dense : the unpruned network in the same precision, with any weights; None if it was not cut.
    folder : of the bundle.
    data : the samples that it is checked with.
    reference : what is computed there to be compared; the first of the samples go into the bundle.
    predicted : latency in milliseconds by a table, and how that came about; None of an estimated one.
    planned_beside_ms : latency of the unpruned network when ``predicted`` was, if both are the device's.
    estimate : milliseconds by an estimated table, and what they are worth.
    budget : of latency, as text, if it was cut to one.
    trained : the checkpoint that its weights are of, if they are not its own.
    classes : what its own weights call its classes, where that is known.
    pruned_in : the precision of the network of its run; None if it is of no run.
    """

    model: str
    form: Form
    inputs: Inputs
    names: list[str]
    dense: Form | None
    folder: Path
    data: Samples
    reference: Reference
    predicted: Mapping[str, Any] | None = None
    planned_beside_ms: float | None = None
    budget: str | None = None
    trained: WeightsFile | None = None
    classes: tuple[str, ...] = ()
    pruned_in: NetworkPrecision | None = None
    estimate: Mapping[str, Any] | None = None

    @classmethod
    def of_run(
        cls,
        run: RunFolder,
        profile: DeviceProfile,
        data: Samples,
        folder: Path | None,
        precision: str | None = None,
        *,
        is_timed: bool = False,
        pixels: bool = False,
    ) -> Deployable:
        """Load a run, and compute what PyTorch makes of many images, or of few if it is not to be timed.

        By default the precision is the one that it was pruned for. In int8 it may take ``pixels`` instead of images.

        Raises
        ------
        UserError : the run was pruned for another device, the device has no kernels of the precision, or no bundle can
            be written to the folder.
        """
        network = run.load()
        if network.device != profile.name:
            raise UserError(
                f"{run.path} was pruned with the latency table of {network.device}, and its widths mean nothing on "
                f"{profile.name}; deploy it with --device {network.device}, or prune with a table of {profile.name}"
            )
        folder = folder or run.path / f"bundle-{profile.name}"
        require_bundle_folder(folder)
        origin, inputs = network.origin, network.origin.inputs
        form, dense = form_of_run(network, data, precision, profile, is_retrained=run.trained is not None), None
        if pixels:
            is_beside_half = form.precision == INT8_HALF
            form = taking_pixels(form, inputs, preprocessing_of(data))
            form = beside_half(form, inputs.zeros(), target_of(profile)) if is_beside_half else form
        if is_timed:
            dense = unpruned_form(network, data, form)
        reference = Reference.of(form, inputs, data, _count(inputs, is_timed))
        summary = run.summary()
        predicted_ms = summary.get("predicted_ms") if form.precision == network.precision else None
        estimate = summary.get("estimate")
        predicted = None
        if predicted_ms is not None and not estimate:
            predicted = {"ms": predicted_ms, "provenance": summary["provenance"]}
        of_device = predicted is not None and summary.get("dense_is_measured") and summary["provenance"] == MEASURED
        return cls(
            origin.model,
            form,
            inputs,
            input_names(network.module, inputs),
            dense,
            folder,
            data,
            reference,
            predicted=predicted,
            planned_beside_ms=summary["dense_ms"] if of_device else None,
            budget=network.record.get("budgets", {}).get(LATENCY.name),
            trained=run.trained,
            classes=_classes(origin),
            pruned_in=network.precision,
            estimate=predicted_ms and estimate and {"ms": predicted_ms, **estimate},
        )

    @classmethod
    def of_model(
        cls,
        origin: Origin,
        profile: DeviceProfile,
        data: Samples,
        folder: Path,
        precision: str | None = None,
        *,
        is_timed: bool = False,
        pixels: bool = False,
    ) -> Deployable:
        """Any network, with its weights; by default in the precision that it has.

        Raises
        ------
        UserError : it is quantised already and asked for in another precision, the device has no kernels of the
            precision, or no bundle can be written to the folder.
        """
        require_bundle_folder(folder)
        module, inputs = origin.build(), origin.inputs
        form = form_of(module, inputs.names)
        wanted = supported(precision, form.precision, profile)
        if form.quantisation is not None and wanted != form.precision:
            raise UserError(f"{origin.model} is quantised in {form.precision} already; leave --precision out")
        form = form_in(wanted, form, inputs, data, profile)
        form = taking_pixels(form, inputs, preprocessing_of(data)) if pixels else form
        reference = Reference.of(form, inputs, data, _count(inputs, is_timed))
        trained = origin.weights if isinstance(origin.weights, WeightsFile) else None
        names = input_names(module, inputs)
        known = _classes(origin)
        return cls(origin.model, form, inputs, names, None, folder, data, reference, trained=trained, classes=known)

    def predicted_beside(self, dense_ms: float) -> Deployable:
        """The same, with the latency that is predicted while the unpruned network takes so long.

        A machine's speed changes from day to day, and what was predicted on another day is off by as much.
        """
        if self.predicted is None or self.planned_beside_ms is None:
            return self
        predicted = {**self.predicted, "ms": self.predicted["ms"] * dense_ms / self.planned_beside_ms}
        return replace(self, predicted=predicted, planned_beside_ms=dense_ms)

    @property
    def sample(self) -> Tensors:
        """One sample, as a batch of its own."""
        return next(in_batches(self.reference.samples))

    def _first_samples(self) -> list[np.ndarray]:
        """Some of the samples, as they are stored in a bundle."""
        few = tuple(each[:FEW] for each in self.reference.samples)
        return [each.numpy() for each in few] if self.form.pixels is None else self.form.passed(few)

    def _labels(self) -> tuple[str, ...]:
        """What the outputs are called: as the samples call them, or else as the weights do; empty if neither can be."""
        scores = self.reference.scores
        both = (() if are_made_up(self.data) else self.data.class_names, self.classes)
        return next((each for each in both if scores is not None and scores.shape[1] == len(each)), ())

    def write(
        self, library: Path, target: DeviceTarget, device: dict[str, Any], measured: Mapping[str, Any] | None
    ) -> None:
        """Write the bundle."""
        bundle = Bundle(
            model=self.model,
            device=device,
            requires=Requirements.of(library, target),
            inputs=dict(zip(self.names, self._first_samples(), strict=True)),
            outputs={name: output[:FEW] for name, output in self.reference.outputs.items()},
            tolerances=self.reference.tolerances,
            labels=self._labels(),
            preprocessing=_preprocessing(self.data, self.form.pixels),
            latency={"predicted": self.predicted, "measured": measured},
            trained=self.trained,
            precision=self.form.precision,
            scales=dict(zip(self.names, self.form.input_scales(), strict=True)),
            decisions=self.reference.decisions,
            estimate=self.estimate,
        )
        write_bundle(self.folder, library, bundle)


def _classes(origin: Origin) -> tuple[str, ...]:
    return () if (known := origin.published) is None else known.classes


def _count(inputs: Inputs, is_timed: bool) -> int:
    """How many samples are checked: few where an emulator computes them, slowly, or nothing does."""
    return max(FEW, CHECKED_PIXELS // inputs.positions) if is_timed else FEW


def _preprocessing(data: Samples, in_network: Preprocessing | None) -> dict[str, Any] | None:
    """How pixels become an input; None where samples are inputs already, or nobody said what they are."""
    if not isinstance(data, LabelledImages) or is_unknown(data):
        return None
    how = preprocessing_of(data)
    return {"scale": how.scale, "mean": [*how.mean], "std": [*how.std], "in_network": in_network is not None}
