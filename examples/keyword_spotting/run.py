"""Keyword spotting on raw sound, from an untrained network to one that takes half of the time.

python examples/keyword_spotting/run.py [--quick]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # what recipes share

import net
import torch
from steps import Steps

HERE = Path(__file__).parent
RUN = "runs/keywords"


def main() -> None:
    aap_hw = Steps(__doc__, run=RUN)
    if not aap_hw.goes_on:
        net.write("words.npz", *((200, 50) if aap_hw.quick else (2000, 400)))
        train("words.pt", epochs=1 if aap_hw.quick else 8)
    model = ("--model", str(HERE / "net.py:make"), "--input", f"1x{net.SAMPLES}")
    how = ("--rounds", "1", "--epochs", "1", "--calibration-images", "16") if aap_hw.quick else ("--rounds", "2")
    aap_hw.profile(*model)
    aap_hw.prune(*model, "--weights", "words.pt", "--data", "npz:words.npz", *how, budget="50%")
    aap_hw.deploy(RUN)


def train(path: str, epochs: int) -> None:
    """Train the whole network; this stands for the training that you have."""
    torch.manual_seed(0)
    x, y = (torch.from_numpy(each) for each in net.sounds(200 * epochs, 1))
    model = net.make().train()
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(epochs):
        for some in torch.randperm(len(x)).split(50):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(model(x[some]), y[some]).backward()
            optimiser.step()
    torch.save(model.state_dict(), path)


if __name__ == "__main__":
    main()
