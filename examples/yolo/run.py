"""A YOLO at 60 % of its latency, from training the whole one to boxes in pictures.

python examples/yolo/run.py            # with ultralytics; an hour or so on two cores
python examples/yolo/run.py --quick    # a tiny detector of the same blocks, without ultralytics
"""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # what recipes share

import shapes
import tiny
import torch
from steps import Steps

import aap_hw

HERE = Path(__file__).parent
DATA = Path("shapes")
RUN = "runs/yolo"


def main() -> None:
    steps = Steps(__doc__, run=RUN)
    if not steps.quick and find_spec("ultralytics") is None:
        sys.exit("this recipe needs ultralytics (pip install ultralytics); its quick form does not: --quick")
    network, weights, train_whole, train_cut = QUICK if steps.quick else YOLO
    model = ("--model", f"{HERE / network}:make", "--example", f"{HERE / network}:images")
    if not steps.goes_on:
        train_whole()
    steps.profile(*model)
    steps.prune(*model, "--weights", weights, budget="60%")
    steps.deploy(RUN, "--weights", train_cut())
    pictures = sorted((DATA / "images" / "val").iterdir())
    print("\nwhat the bundle finds:", flush=True)
    detect = (HERE / "detect.py", steps.bundle, *pictures, "--names", ",".join(shapes.NAMES))
    subprocess.run([sys.executable, *map(str, detect)], check=True)


def whole_yolo() -> None:
    """Train the whole YOLO on images of shapes; this stands for the training that you have."""
    import net
    from ultralytics import YOLO

    shapes.write(DATA, 200, net.SIDE)
    where = {"project": str(Path("runs").resolve()), "name": "unpruned", "exist_ok": True}
    YOLO(net.CONFIGURATION).train(data=str(DATA / "data.yaml"), imgsz=net.SIDE, epochs=30, **where)


def cut_yolo() -> str:
    """Train the pruned YOLO by ultralytics' trainer."""
    import net
    import train

    return str(train.train(Path(RUN), data=str(DATA / "data.yaml"), imgsz=net.SIDE, epochs=20))


def whole_tiny() -> None:
    """Train the whole tiny detector."""
    shapes.write(DATA, 12, tiny.SIDE)
    torch.save(tiny.train(tiny.make(), steps=80).state_dict(), "whole.pt")


def cut_tiny() -> str:
    """Train the pruned tiny detector."""
    smaller = aap_hw.load(RUN, trust_source=True)
    torch.save(tiny.train(smaller, steps=20).state_dict(), "smaller.pt")
    return "smaller.pt"


# The file that makes the network and names images of it, its weights, and what trains it before it is cut and after.
YOLO = ("net.py", "runs/unpruned/weights/best.pt", whole_yolo, cut_yolo)
QUICK = ("tiny.py", "whole.pt", whole_tiny, cut_tiny)

if __name__ == "__main__":
    main()
