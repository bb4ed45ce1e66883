"""Networks that people deploy beside ImageNet's classifiers: which package builds each, and what inputs it takes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import _deployed_nets as nets
import torch
from torch import nn
from torchvision import models

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Deployed:
    """A network of the set.

    Attributes
    ----------
    build : makes it, with random weights.
    shapes : of its inputs, without the batch axis.
    package : what must be installed, as Python imports it.
    numbers : for each input, how many whole numbers there are to draw from; 0 for one of floats, as all are by default.
    """

    build: Callable[[], nn.Module]
    shapes: tuple[Shape, ...]
    package: str = "torchvision"
    numbers: tuple[int, ...] = ()

    @property
    def is_installed(self) -> bool:
        """Whether its package is there."""
        return find_spec(self.package) is not None

    def inputs(self, batch: int = 1) -> tuple[torch.Tensor, ...]:
        """Random inputs that it takes."""
        numbers = self.numbers or (0,) * len(self.shapes)
        return tuple(
            torch.randint(count, (batch, *shape)) if count else torch.randn(batch, *shape)
            for shape, count in zip(self.shapes, numbers, strict=True)
        )


def _timm(name: str, side: int = 224) -> Deployed:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False)

    return Deployed(build, ((3, side, side),), "timm")


def _smp(kind: str, encoder: str) -> Deployed:
    def build() -> nn.Module:
        import segmentation_models_pytorch as smp

        return getattr(smp, kind)(encoder, encoder_weights=None)

    return Deployed(build, ((3, 256, 256),), "segmentation_models_pytorch")


class _RawHeads(nn.Module):
    """A detector up to what its loss reads: distances of boxes and scores, before anchors and decoding."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raw = self.detector(image)[1]
        return raw["boxes"], raw["scores"]


def _yolo(name: str, side: int = 640, *, raw: bool = False) -> Deployed:
    """A detector as ultralytics exports it, boxes and scores in one tensor, or its raw heads."""

    def build() -> nn.Module:
        os.environ |= {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false"}
        from ultralytics.nn.tasks import DetectionModel

        model = DetectionModel(f"{name}.yaml", verbose=False).eval()
        if raw:
            return _RawHeads(model)
        for module in model.modules():
            if hasattr(module, "export"):
                module.export, module.format = True, "onnx"
        return model

    return Deployed(build, ((3, side, side),), "ultralytics")


NETWORKS: dict[str, Deployed] = {
    "yolov8n": _yolo("yolov8n"),
    "yolov8n raw heads": _yolo("yolov8n", raw=True),
    "yolo11n": _yolo("yolo11n"),
    "smp:Unet resnet18": _smp("Unet", "resnet18"),
    "smp:FPN mobilenet_v2": _smp("FPN", "mobilenet_v2"),
    "smp:Segformer mit_b0": _smp("Segformer", "mit_b0"),
    **{
        f"timm:{name}": _timm(name, side)
        for name, side in {
            "mobilenetv4_hybrid_medium": 256,
            "mobilevit_s": 256,
            "efficientvit_b1": 224,
            "fastvit_t8": 256,
            "convnext_nano": 224,
            "convnextv2_atto": 224,
            "deit_tiny_patch16_224": 224,
            "mobileone_s1": 224,
        }.items()
    },
    "simple_baseline": Deployed(nets.SimpleBaseline, ((3, 256, 192),)),
    "denoising_unet": Deployed(nets.DenoisingUNet, ((3, 256, 256),)),
    "fsrcnn": Deployed(nets.fsrcnn, ((1, 180, 320),)),
    "espcn": Deployed(nets.espcn, ((1, 180, 320),)),
    "m5": Deployed(nets.m5, ((1, 16000),)),
    "tc_resnet8": Deployed(nets.tc_resnet8, ((40, 101),)),
    "r3d_small": Deployed(nets.r3d_small, ((3, 8, 56, 56),)),
    "causal_tcn": Deployed(nets.CausalTcn, ((16, 100),)),
    "crnn": Deployed(nets.Crnn, ((1, 32, 128),)),
    "gru_wake_word": Deployed(nets.GruWakeWord, ((1, 80, 100),)),
    "siamese": Deployed(nets.Siamese, ((3, 96, 96), (3, 96, 96))),
}
SETS = {"deployed": NETWORKS}
QUICK = ("tc_resnet8",)


def network(name: str, side: int = 224) -> Deployed:
    """A network of a set by its name there, or of torchvision by its name, or of timm by its name after ``timm:``."""
    for each in SETS.values():
        if name in each:
            return each[name]
    if name.startswith("timm:"):
        return _timm(name.removeprefix("timm:"), side)
    return Deployed(lambda: models.get_model(name, weights=None), ((3, side, side),))
