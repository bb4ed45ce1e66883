"""A U-Net at half of its latency, trained by a loop of your own.

python examples/segmentation/run.py [--quick]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # what recipes share

import net
import torch
from steps import Steps
from train import train

import aap_hw

HERE = Path(__file__).parent
RUN = "runs/segmentation"


def main() -> None:
    run = Steps(__doc__)
    epochs, images, budget = (1, 40, "90%") if run.quick else (15, 200, "50%")
    whole = net.make()
    print(f"the whole network overlaps by {train(whole, epochs, images):.1f} %")
    torch.save(whole.state_dict(), "unet.pt")
    model = ("--model", str(HERE / "net.py:make"), "--example", str(HERE / "net.py:samples"))
    run("profile", "--device", run.device, *model, "--out", run.table)
    run(
        "prune",
        "--device",
        run.device,
        *model,
        "--weights",
        "unet.pt",
        "--lut",
        run.table,
        "--budget",
        budget,
        "--out",
        RUN,
    )
    smaller = aap_hw.load(RUN, trust_source=True)
    print(f"\nthe pruned network overlaps by {train(smaller, epochs, images):.1f} %, trained as long again")
    torch.save(smaller.state_dict(), "smaller.pt")
    run("deploy", RUN, "--device", run.device, "--weights", "smaller.pt")


if __name__ == "__main__":
    main()
