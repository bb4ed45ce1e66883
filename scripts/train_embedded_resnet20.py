"""Trains the embedded ResNet-20 on the embedded images, and writes its weights and a log of the training.

One thread, about half an hour; the same versions of PyTorch on the same kind of CPU give the same weights.
Writes resnet20_fashion_mnist.safetensors (float32) and resnet20_fashion_mnist.json to aap_hw/data/.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import platform
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch starts its pool

import torch
from safetensors.torch import save

from aap_hw.errors import UserError
from aap_hw.files import make_folder, require_writable_folder, write_atomic
from aap_hw.inputs import Inputs
from aap_hw.models.cifar_resnet import CifarResNet
from aap_hw.models.initialise import initialise
from aap_hw.train.data import EMBEDDED_SHA256, load_embedded
from aap_hw.train.loop import train
from aap_hw.train.settings import Augmentation, Optimiser, Schedule, TrainSettings

SEED = 1
INPUT_SHAPE = (3, 32, 32)
SETTINGS = TrainSettings(
    epochs=30,
    batch_size=128,
    learning_rate=0.1,
    optimiser=Optimiser(weight_decay=5e-4),
    schedule=Schedule("cosine", warmup_epochs=1.0),
    augmentation=Augmentation(flip=True, crop_padding=2),
)
OUT = Path(__file__).resolve().parent.parent / "aap_hw" / "data"


def cpu_model() -> str:
    """The processor's name as Linux gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def report(epoch: int, epochs: int, loss: float, accuracy: float, seconds: float) -> None:
    print(
        f"epoch {epoch}/{epochs}  loss {loss:.4f}  test accuracy {accuracy:.2f} %  {seconds:.1f} s",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=SETTINGS.epochs, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write to (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        # Before half an hour of training.
        require_writable_folder(arguments.out)
        make_folder(arguments.out)
        settings = dataclasses.replace(SETTINGS, epochs=arguments.epochs)
        model = CifarResNet(blocks=3, classes=10)
        initialise(model, seed=SEED)
        result = train(model, load_embedded(), settings, seed=SEED, inputs=Inputs.of(INPUT_SHAPE), on_epoch=report)
        weights = save(model.state_dict())
        log = {
            "model": "resnet20",
            "data": {"set": "fashion_mnist_12k", "sha256": EMBEDDED_SHA256, "input_shape": INPUT_SHAPE},
            "seed": SEED,
            "threads": 1,
            "settings": dataclasses.asdict(settings),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "machine": {"cpu": cpu_model(), "architecture": platform.machine()},
            "accuracy_percent": round(result.accuracy, 4),
            "seconds": round(sum(record.seconds for record in result.history), 1),
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
            "epochs": [
                {
                    "epoch": record.epoch,
                    "loss": round(record.loss, 5),
                    "accuracy_percent": round(record.accuracy, 4),
                    "seconds": round(record.seconds, 1),
                }
                for record in result.history
            ],
        }
        write_atomic(arguments.out / "resnet20_fashion_mnist.safetensors", weights)
        write_atomic(arguments.out / "resnet20_fashion_mnist.json", json.dumps(log, indent=1) + "\n")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130
    print(f"{result.accuracy:.2f} % on the test images; wrote {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
