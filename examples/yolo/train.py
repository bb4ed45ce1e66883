"""Train a pruned YOLO with ultralytics' own trainer; its settings are given as to ultralytics' own command.

    python examples/yolo/train.py RUN data=shapes/data.yaml imgsz=160 epochs=20

The weights are in ``RUN/training/weights/best.pt`` then, which ``aap-hw deploy RUN --weights`` takes. The run's Python
code is run, so let it be a run of yours.
"""

import sys
from pathlib import Path

from net import set_export
from ultralytics.cfg import parse_key_value_pair
from ultralytics.models.yolo.detect import DetectionTrainer

import aap_hw


def train(run: Path, **settings: object) -> Path:
    """Train the network of a run's folder; returns the checkpoint."""
    model = aap_hw.load(run, trust_source=True)
    set_export(model, False)
    usual = {"project": str(run.resolve()), "name": "training", "exist_ok": True}
    # Named by its configuration, the trainer looks for no checkpoint, and fetches none.
    trainer = DetectionTrainer(overrides={"model": model.yaml["yaml_file"], **usual, **settings})
    trainer.model = model  # it makes one only where there is none yet
    trainer.train()
    return Path(trainer.best)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    run, *pairs = sys.argv[1:]
    print(train(Path(run), **dict(parse_key_value_pair(pair) for pair in pairs)))
