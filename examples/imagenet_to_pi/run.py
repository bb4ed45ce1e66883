"""An ImageNet classifier of timm's on a Raspberry Pi 5, within 60 % of its latency.

python examples/imagenet_to_pi/run.py --connect rpc://127.0.0.1:9090
python examples/imagenet_to_pi/run.py --quick
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # what recipes share

import numpy as np
from PIL import Image
from steps import Steps

# Your pictures: a folder with train/CLASS/* and val/CLASS/*.
IMAGES = "imagefolder:photos"
WEIGHTS = "pretrained"
RUN = "runs/imagenet_to_pi"


def main() -> None:
    aap_hw = Steps(__doc__, device="rpi5", run=RUN)
    if aap_hw.quick:  # a tiny network of timm's, and pictures that are made here
        model = ("--model", "timm:test_byobnet", "--input", "3x64x64", "--classes", "2")
        images, how = f"imagefolder:{made_pictures(Path('pictures'))}", ("--rounds", "1", "--epochs", "1")
    else:
        model = ("--model", "timm:mobilenetv4_conv_small", "--weights", WEIGHTS)
        images, how = IMAGES, ("--rounds", "3", "--epochs", "10", "--learning-rate", "0.01")
    aap_hw.doctor()
    aap_hw.profile(*model)
    aap_hw.prune(*model, "--data", images, *how, budget="60%")
    aap_hw.deploy(RUN)


def made_pictures(folder: Path, side: int = 64) -> Path:
    """A few pictures of two classes, stripes and noise, in the layout that ``--data imagefolder:`` reads."""
    random = np.random.default_rng(0)
    for split, count in (("train", 32), ("val", 16)):
        for number in range(count):
            kind = ("stripes", "noise")[number % 2]
            pixels = random.integers(0, 255, (side, side, 3))
            if kind == "stripes":
                pixels = pixels // 4 + 180 * (np.arange(side) // 8 % 2)[:, None]
            path = folder / split / kind / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


if __name__ == "__main__":
    main()
