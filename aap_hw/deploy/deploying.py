"""Deploying a run: compile it for a device, check it there against PyTorch on real images, time it, bundle it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from aap_hw.activity import doing
from aap_hw.compile.keys.key import SCHEDULES
from aap_hw.compile.keys.target import DeviceTarget
from aap_hw.compile.library.linking import command_of
from aap_hw.compile.library.lowering import compile_network
from aap_hw.deploy.bundle import Bundle, write_bundle
from aap_hw.deploy.reference import FEW, Reference, by_output
from aap_hw.deploy.requirements import Requirements
from aap_hw.device.boards import Boards
from aap_hw.device.connection import Device, target_of
from aap_hw.device.description import MEASURED, DeviceDescription
from aap_hw.device.machine import LoadedLibrary
from aap_hw.device.profile import DeviceProfile
from aap_hw.device.timing import STATISTIC, Timing, time_in_turn
from aap_hw.errors import UserError
from aap_hw.files import require_writable_file, require_writable_folder, scratch_folder
from aap_hw.graph.program.calling import Names, input_names
from aap_hw.graph.program.inputs import Tensors, in_batches
from aap_hw.models.weights import WeightsFile
from aap_hw.policy import LATENCY, Budget
from aap_hw.prune.run import PrunedNetwork, RunFolder
from aap_hw.train.data import LabelledImages
from aap_hw.train.samples import Samples

# Checking stops at about this many pixels, or other positions: all embedded test images at 32 x 32, a few dozen at
# 224 x 224.
CHECKED_PIXELS = 2_200_000


@dataclass(frozen=True)
class Deployment:
    """What deploying showed.

    Attributes
    ----------
    max_abs_diff : largest difference of any output from PyTorch's, over ``images`` images.
    agreement : share of the images that get PyTorch's class, in percent; None if the network scores no classes.
    latencies : of ``dense`` and ``pruned``, timed in turn on the device; none where an emulator stands in for it.
    summary : the run's figures, with those of this deployment.
    """

    bundle: Path
    max_abs_diff: float
    agreement: float | None
    images: int
    latencies: Mapping[str, Timing]
    summary: dict[str, Any]


def deploy(run: RunFolder, device: Device | Boards, data: Samples, folder: Path | None = None) -> Deployment:
    """Deploy a finished run to a device and write its bundle, by default inside the run folder.

    Of several boards, any one is used, and no longer than the network is checked and timed there.

    Raises
    ------
    UserError : the run was pruned for another device, or cannot be written to.
    Fault : the compiled network does not compute what PyTorch does.
    """
    boards = Boards.of(device)
    boards.require_tools()
    require_writable_file(run.path / "summary.json")  # which the figures are added to
    description = boards.describe()
    boards.close()  # free for others while networks are compiled here
    is_real = description.provenance == MEASURED
    # An emulator computes what the device would, slowly, and how long it takes tells nothing.
    job = _Job.of(run, boards.profile, data, folder, None if is_real else FEW)
    networks = {"pruned": job.network.module, **({"dense": job.network.origin.skeleton()} if is_real else {})}
    with scratch_folder("deploy") as scratch:
        files = {name: scratch / f"{name}.so" for name in networks}
        compiled = {
            name: compile_network(module, job.sample, boards.target, files[name], job.names)
            for name, module in networks.items()
        }
        outputs, timings = _run_and_time(files, job, boards, is_real)
        difference = job.reference.compare(outputs, "the compiled network")
        checked = job.reference.count
        figures: dict[str, Any] = {"max_abs_diff": difference, "images_checked": checked}
        figures["slow_path"] = compiled["pruned"].slow_path
        measured = None
        if is_real:
            dense_ms, pruned_ms = (timings[name].latency_us / 1e3 for name in ("dense", "pruned"))
            measured = {"ms": pruned_ms, "unpruned_ms": dense_ms, "statistic": STATISTIC, "provenance": MEASURED}
            budget = job.network.record["budgets"].get(LATENCY.name)
            figures |= {
                "dense_ms": dense_ms,
                "budget_ms": None if budget is None else Budget.parse(budget).of(dense_ms),
                "pruned_ms": pruned_ms,
                "dense_is_measured": True,
            }
        job.write(files["pruned"], boards.target, description.as_json(), measured)
    agreement = job.reference.agreement(outputs)
    return Deployment(job.folder, difference, agreement, checked, timings, run.update_summary(figures))


def bundle_unseen(run: RunFolder, profile: DeviceProfile, data: Samples, folder: Path | None = None) -> Path:
    """Compile a finished run for a device that is not at hand and write its bundle; returns the bundle's folder.

    Nothing is checked or measured: the bundle's own programs do that where it goes.

    Raises
    ------
    UserError : the run was pruned for another device.
    """
    target = target_of(profile)
    command_of(target.host)  # told before the work
    job = _Job.of(run, profile, data, folder, FEW)
    device = DeviceDescription(
        profile.name, profile.profile_hash, "", profile.threads, dict(target.options), tvm.__version__, SCHEDULES
    ).as_json()
    del device["provenance"]  # only a device that was there is known to be real
    with scratch_folder("deploy") as scratch:
        library = scratch / "pruned.so"
        compile_network(job.network.module, job.sample, target, library, job.names)
        job.write(library, target, device, None)
    return job.folder


@dataclass(frozen=True)
class _Job:
    """A run on its way into a bundle.

    Attributes
    ----------
    trained : the checkpoint that its weights are of, if they are not the run's own.
    reference : what is computed there to be compared; the first of them go into the bundle.
    """

    network: PrunedNetwork
    trained: WeightsFile | None
    summary: Mapping[str, Any]
    folder: Path
    data: Samples
    reference: Reference

    @classmethod
    def of(
        cls, run: RunFolder, profile: DeviceProfile, data: Samples, folder: Path | None, count: int | None = None
    ) -> _Job:
        """Load the run and compute what PyTorch makes of ``count`` images, by default of many."""
        network = run.load()
        if network.device != profile.name:
            raise UserError(
                f"{run.path} was pruned with the latency table of {network.device}, and its widths mean nothing on "
                f"{profile.name}; deploy it with --device {network.device}, or prune with a table of {profile.name}"
            )
        folder = folder or run.path / f"bundle-{profile.name}"
        require_writable_folder(folder)
        count = count or max(FEW, CHECKED_PIXELS // network.origin.inputs.positions)
        return cls(network, run.trained, run.summary(), folder, data, Reference.of(network, data, count))

    @property
    def sample(self) -> Tensors:
        """One sample, as a batch of its own."""
        return next(in_batches(self.reference.samples))

    @property
    def names(self) -> Names:
        """How the network is called with it."""
        return self.network.origin.inputs.names

    def write(
        self, library: Path, target: DeviceTarget, device: dict[str, Any], measured: Mapping[str, Any] | None
    ) -> None:
        """Write the bundle."""
        scores = self.reference.scores
        has_labels = scores is not None and scores.shape[1] == self.data.classes
        bundle = Bundle(
            self.network.origin.model,
            device,
            Requirements.of(library, target),
            {
                name: each[:FEW].numpy()
                for name, each in zip(
                    input_names(self.network.module, self.network.origin.inputs), self.reference.samples, strict=True
                )
            },
            {name: output[:FEW] for name, output in self.reference.outputs.items()},
            self.reference.tolerances,
            self.data.class_names if has_labels else (),
            _preprocessing(self.data),
            {"predicted": self._predicted(), "measured": measured},
            self.trained,
        )
        write_bundle(self.folder, library, bundle)

    def _predicted(self) -> dict[str, Any] | None:
        predicted_ms = self.summary.get("predicted_ms")
        return predicted_ms and {"ms": predicted_ms, "provenance": self.summary["provenance"]}


def _preprocessing(data: Samples) -> dict[str, Any] | None:
    """How pixels become an input; None where samples are inputs already."""
    if not isinstance(data, LabelledImages):
        return None
    mean, std = data.mean_and_std
    return {"scale": 1 / 255, "mean": mean.flatten().tolist(), "std": std.flatten().tolist()}


def _run_and_time(
    files: Mapping[str, Path], job: _Job, boards: Boards, is_real: bool
) -> tuple[list[np.ndarray], dict[str, Timing]]:
    """What the pruned network computes on one of the boards, and latencies of all, if it is a real one."""
    results: list[tuple[list[np.ndarray], dict[str, Timing]]] = []

    def work(device: Device, files: Mapping[str, Path]) -> None:
        libraries = {name: device.load(file) for name, file in files.items()}
        with doing("running the network on the device"):
            outputs, sample = _outputs(libraries["pruned"], job.reference.samples), _arrays(job.sample)
        results.append((outputs, time_in_turn(libraries, "main", sample, device.profile.measure) if is_real else {}))

    boards.share([files], work)
    boards.close()
    return results[-1]


def _outputs(library: LoadedLibrary, samples: Tensors) -> list[np.ndarray]:
    answers = []
    for sample in in_batches(samples):
        library.set_inputs("main", _arrays(sample))
        answers.append(library.run("main"))
    return by_output(answers)


def _arrays(sample: Tensors) -> list[np.ndarray]:
    return [each.numpy() for each in sample]
