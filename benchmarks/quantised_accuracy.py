"""What int8 and half precision cost in accuracy: networks rounded after training, compiled, and run on all test images.

The embedded ResNet-20 on Fashion-MNIST, and ResNet-20 and ResNet-56 on CIFAR-10 from the commonly shared checkpoints
(`resnet20-*.th`, `resnet56-*.th`) in a folder of yours. Nothing is trained. Ranges are measured on training images. In
half precision, where the CPU has it, PyTorch rounds what the library rounds, and `prune` reports what comes of that:
`half_by_pytorch`.

    python benchmarks/quantised_accuracy.py --checkpoints FOLDER --cifar10 FOLDER --json -
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from aap_hw.compile.front.network import Network
    from aap_hw.device.connection import LocalDevice
    from aap_hw.inputs import Inputs
    from aap_hw.train.samples import Samples

ALLOWED = 0.3
QUICK_IMAGES = 40


@dataclass(frozen=True)
class Case:
    """A trained network and its images."""

    name: str
    network: nn.Module
    inputs: Inputs
    data: Samples


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from _report import benchmark_device, print_report, say

    options = _options()
    device = benchmark_device(options.device, options.quick)
    rows = []
    for case in _cases(options, say):
        say(f"{case.name}: {case.data.count('test')} test images")
        rows.append(_row(case, device, options))
    losses = [row["float32"] - row["int8"] for row in rows]
    print_report(rows, {"worst_loss": max(losses), "within": all(loss <= ALLOWED for loss in losses)}, options.json)


def _row(case: Case, device: LocalDevice, options: argparse.Namespace) -> dict[str, Any]:
    """Top-1 accuracy in percent of one network by its libraries, and of what it was compiled from by PyTorch."""
    from aap_hw.compile.keys.precision import FP32, HALF, INT8
    from aap_hw.compile.library.lowering import compile_network
    from aap_hw.files import scratch_folder
    from aap_hw.prune.samples import calibration_batches
    from aap_hw.quantize import calibrated, rounded

    count = QUICK_IMAGES if options.quick else options.calibration_images
    batches = [batch for batch, _ in calibration_batches(case.data, case.inputs, count)]
    shown = [batch for batch in batches if len(batch[0]) == len(batches[0][0])]
    began = time.monotonic()
    form = calibrated(case.network, case.inputs, shown)
    floating, quantisation = form.of(case.network, case.inputs)
    seconds = time.monotonic() - began
    found: dict[str, list[int]] = {}
    networks: dict[str, Network] = {}
    tried = [("float32", case.network, None, FP32), ("int8", floating, quantisation, INT8)]
    if _has_half(device):
        tried.append(("half", case.network, None, HALF))
    with scratch_folder("accuracy") as folder:
        for name, module, scales, precision in tried:
            library = folder / f"{name}.so"
            networks[name] = compile_network(
                module, case.inputs.zeros(), device.target, library, quantisation=scales, precision=precision
            )
            found[name] = _answers(device, library, case, options.quick)
    half = dict[str, float]()
    if "half" in found:
        found["half_by_pytorch"] = _answers_rounded(case, device, len(found["half"]))
        for name, other in (("half_same_class", "float32"), ("half_same_class_as_pytorch", "half_by_pytorch")):
            half[name] = 100 * sum(map(int.__eq__, found[other], found["half"])) / len(found["half"])
    in_int8 = sum(kernel.key.types.read == "uint8" for kernel in networks["int8"].kernels)
    labels = case.data.stored("test", range(len(found["int8"])))[1].tolist()
    right = {name: [one == label for one, label in zip(each, labels, strict=True)] for name, each in found.items()}
    reference = _reference_answers(rounded(floating, quantisation), case, min(len(labels), options.compared))
    return {
        "network": case.name,
        "images": len(labels),
        **{name: 100 * sum(each) / len(each) for name, each in right.items()},
        "same_class": 100 * sum(map(int.__eq__, found["float32"], found["int8"])) / len(labels),
        "same_class_as_reference": 100 * sum(map(int.__eq__, reference, found["int8"])) / len(reference),
        "kernels_in_int8": in_int8,
        "kernels": len(networks["int8"].kernels),
        **half,
        "calibration_images": len(shown) * len(shown[0][0]),
        "quantised_in_s": seconds,
    }


def _answers(device: LocalDevice, library: Path, case: Case, quick: bool) -> list[int]:
    """The class that a compiled library gives each test image."""
    loaded, answers = device.load(library), []
    count = QUICK_IMAGES if quick else case.data.count("test")
    for start in range(0, count, 500):
        for image in case.data.inputs("test", case.inputs, range(start, min(start + 500, count)))[0]:
            loaded.set_inputs("main", [image[None].numpy()])
            answers.append(int(loaded.run("main")[0].argmax()))
    return answers


def _has_half(device: LocalDevice) -> bool:
    from aap_hw.compile.keys.target import half_precision_of
    from aap_hw.errors import UserError

    try:
        return bool(half_precision_of(device.target))
    except UserError:
        return False


def _answers_rounded(case: Case, device: LocalDevice, count: int) -> list[int]:
    """The class that PyTorch gives each test image if it rounds what the library in half precision does."""
    import torch

    from aap_hw.quantize.halved import halved
    from aap_hw.quantize.reference import Program

    at_once, answers = min(50, count), []
    program = Program(halved(case.network, case.inputs, device.target, at_once), case.inputs.names, at_once)
    with torch.no_grad():
        for start in range(0, count, 500):
            images = case.data.inputs("test", case.inputs, range(start, min(start + 500, count)))[0]
            answers += program(images).argmax(1).tolist()
    return answers


def _reference_answers(reference: nn.Module, case: Case, count: int) -> list[int]:
    import torch

    with torch.no_grad():
        images = case.data.inputs("test", case.inputs, range(count))[0]
        return [int(reference(image[None]).argmax()) for image in images]


def _cases(options: argparse.Namespace, say: Any) -> list[Case]:
    from aap_hw.inputs import Inputs
    from aap_hw.models import zoo
    from aap_hw.models.weights import WeightsFile, load_weights
    from aap_hw.train.data import load_embedded
    from aap_hw.train.sources.cifar10 import load_cifar10
    from aap_hw.train.sources.fashion_mnist import load_fashion_mnist

    inputs = Inputs.of((3, 32, 32))
    cases = [Case("resnet20, Fashion-MNIST", zoo.build("resnet20", "embedded").module, inputs, load_embedded())]
    if options.quick:
        return cases
    if options.fashion_mnist is not None:
        cases[0] = replace(cases[0], data=load_fashion_mnist(Path(options.fashion_mnist)))
    if options.checkpoints is None or options.cifar10 is None:
        say("CIFAR-10 is left out: it takes --checkpoints and --cifar10")
        return cases
    data = load_cifar10(Path(options.cifar10))
    for name in ("resnet20", "resnet56"):
        paths = sorted(Path(options.checkpoints).glob(f"{name}-*.th"))
        if not paths:
            say(f"{name} on CIFAR-10 is left out: {options.checkpoints} holds no {name}-*.th")
        for path in paths:
            network = zoo.build(name).module
            load_weights(network, WeightsFile.at(str(path)), name)
            cases.append(Case(f"{name}, CIFAR-10", network, inputs, data))
    return cases


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="x86", help="device profile of this machine")
    parser.add_argument("--checkpoints", metavar="FOLDER", help="holds resnet20-*.th and resnet56-*.th")
    parser.add_argument("--fashion-mnist", metavar="FOLDER", help="all 10,000 test images, not the 2,000 embedded ones")
    parser.add_argument(
        "--cifar10", metavar="FOLDER", help="holds CIFAR-10 in any form that --data cifar10:FOLDER takes"
    )
    parser.add_argument("--calibration-images", type=int, default=512)
    parser.add_argument("--compared", type=int, default=40, help="images that PyTorch's reference answers as well")
    parser.add_argument("--quick", action="store_true", help="a few images of the embedded network: shows that it runs")
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON; - for standard output")
    return parser.parse_args()


if __name__ == "__main__":
    main()
