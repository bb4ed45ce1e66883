"""A YOLO of ultralytics, as ``--model examples/yolo/net.py:make``: change the four names in capitals to your own.

Only the code that makes the network is ultralytics'. Its trained weights come by ``--weights``, which runs nothing.
"""

from pathlib import Path

import numpy as np
from detect import prepared
from PIL import Image
from torch import nn
from ultralytics.nn.tasks import DetectionModel

CONFIGURATION = "yolov8n.yaml"  # as your checkpoint was trained from: yolo11s.yaml, ...
CLASSES = 3
IMAGES = Path("shapes/images/train")
SIDE = 160
# More than tell which filters matter.
MOST = 64


def make() -> nn.Module:
    """The unpruned network: images (N, 3, H, W) of 0 to 1 to boxes and scores (N, 4 + CLASSES, places)."""
    model = DetectionModel(CONFIGURATION, nc=CLASSES, verbose=False)
    set_export(model, True)
    return model


def set_export(model: nn.Module, export: bool) -> None:
    """Whether it returns decoded boxes alone, as ultralytics exports it, or what its losses need beside them."""
    for module in model.modules():
        if hasattr(module, "export"):
            module.export = export


def images() -> np.ndarray:
    """Some of your images (N, 3, SIDE, SIDE), as ``--example``: they tell which filters matter."""
    paths = sorted(path for path in IMAGES.iterdir() if path.suffix in (".png", ".jpg", ".jpeg"))
    made = []
    for path in paths[:MOST]:
        with Image.open(path) as picture:
            made.append(prepared(picture, SIDE, SIDE)[0])
    return np.stack(made)
