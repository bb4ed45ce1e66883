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
    steps = Steps(__doc__, run=RUN)
    epochs, images = (1, 40) if steps.quick else (15, 200)
    if not steps.goes_on:
        whole = net.make()
        print(f"the whole network overlaps by {train(whole, epochs, images):.1f} %")
        torch.save(whole.state_dict(), "unet.pt")
    model = ("--model", str(HERE / "net.py:make"), "--example", str(HERE / "net.py:samples"))
    steps.profile(*model)
    steps.prune(*model, "--weights", "unet.pt", budget="50%")
    smaller = aap_hw.load(RUN, trust_source=True)
    print(f"\nthe pruned network overlaps by {train(smaller, epochs, images):.1f} %, trained as long again")
    torch.save(smaller.state_dict(), "smaller.pt")
    steps.deploy(RUN, "--weights", "smaller.pt")


if __name__ == "__main__":
    main()
