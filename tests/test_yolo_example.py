"""The example of a YOLO goes from a run to boxes; what it does without ultralytics is right on its own."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import batched_nms, box_convert

import aap_hw
from aap_hw.compile.front.partition import partition
from aap_hw.graph import ChannelGraph
from aap_hw.lut.enumeration import group_candidates, points_of
from aap_hw.lut.table import LatencyPoint, LatencyTable
from tests.needs import needs_ultralytics
from tests.synthetic import latency_us, of_this_device

FOLDER = Path(__file__).parent.parent / "examples" / "yolo"
SIDE = 64
# YOLOv8 of two scales, which compiles in seconds.
TINY = """
nc: 3
backbone:
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 1, C2f, [32, True]]
  - [-1, 1, Conv, [48, 3, 2]]
  - [-1, 1, C2f, [48, True]]
head:
  - [[2, 4], 1, Detect, [nc]]
"""


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Its files can be imported by name, as they import each other."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for name in ("detect", "net", "shapes", "train"):
        sys.modules.pop(name, None)


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.mark.usefixtures("example")
def test_boxes_that_are_chosen_are_those_of_torchvision() -> None:
    random = np.random.default_rng(3)
    places = 300
    output = np.concatenate([random.uniform(5, 60, (2, places)), random.uniform(5, 30, (2, places)),
                             random.uniform(0, 1, (4, places))]).astype(np.float32)  # fmt: skip
    chosen = module("detect").chosen(output, 0.7, 0.4)
    corners = box_convert(torch.from_numpy(output[:4].T), "cxcywh", "xyxy")
    scores, numbers = torch.from_numpy(output[4:]).max(0)
    kept = [place for place in batched_nms(corners, scores, numbers, 0.4).tolist() if scores[place] >= 0.7]
    assert 20 < len(kept) < int((scores >= 0.7).sum())
    assert [each.number for each in chosen] == numbers[kept].tolist()
    np.testing.assert_allclose([each.box for each in chosen], corners[kept], rtol=1e-6)
    np.testing.assert_allclose([each.score for each in chosen], scores[kept])


@pytest.mark.usefixtures("example")
@pytest.mark.parametrize("size", [(160, 160), (300, 100), (91, 203)])
def test_picture_lies_where_the_example_says(size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size, (255, 0, 0))
    image, scale, left, top = module("detect").prepared(picture, 64, 96)
    assert image.shape == (3, 64, 96)
    rows, columns = np.nonzero(image[0] == 1)
    assert (columns.min(), rows.min()) == (left, top)
    assert columns.max() + 1 - left == round(size[0] * scale)
    assert rows.max() + 1 - top == round(size[1] * scale)
    assert max((columns.max() + 1 - left) / 96, (rows.max() + 1 - top) / 64) == 1
    np.testing.assert_allclose(image[:, 0, 0] if left or top else image[:, 0, 0] * 0 + 114 / 255, 114 / 255, rtol=1e-6)


@pytest.mark.usefixtures("example")
def test_boxes_of_the_drawn_shapes_lie_around_them(tmp_path: Path) -> None:
    shapes = module("shapes")
    shapes.write(tmp_path, 6, 96)
    assert [len(list((tmp_path / "images" / split).iterdir())) for split in ("train", "val")] == [6, 1]
    random = np.random.default_rng(0)
    alone = 0
    for _ in range(40):
        image, lines = shapes.drawn(random, 96)
        if len(lines) > 1:
            continue
        alone += 1
        _, x, y, width, height = (float(each) * 96 for each in lines[0].split())
        outside = np.asarray(image).astype(int)
        beyond = ((outside < 60) | (outside >= 140)).any(2)  # of the noise
        rows, columns = np.nonzero(beyond)
        found = columns.min(), columns.max(), rows.min(), rows.max()
        np.testing.assert_allclose(found, (x - width / 2, x + width / 2, y - height / 2, y + height / 2), atol=1.1)
    assert alone > 3


@pytest.mark.slow
@pytest.mark.usefixtures("example")
@needs_ultralytics
def test_yolo_is_cut_trained_and_finds_what_pytorch_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    (tmp_path / "tiny.yaml").write_text(TINY)
    # As a user edits it.
    text = (FOLDER / "net.py").read_text()
    for name, value in {"CONFIGURATION": f'"{tmp_path}/tiny.yaml"', "SIDE": str(SIDE)}.items():
        text, found = re.subn(rf"(?m)^{name} = \S+", f"{name} = {value}", text)
        assert found
    copy = tmp_path / "net.py"
    copy.write_text(text)
    (tmp_path / "detect.py").write_text((FOLDER / "detect.py").read_text())
    monkeypatch.syspath_prepend(str(tmp_path))
    module("shapes").write(Path("shapes"), 8, SIDE)
    net, train, detect = (module(name) for name in ("net", "train", "detect"))
    monkeypatch.setattr("aap_hw.prune.job.device_of", lambda *_: (None, "of the test"))
    aap_hw.prune(f"{copy}:make", _table(net.make().eval()), "60%", example=f"{copy}:images", out="run")

    checkpoint = train.train(Path("run"), data="shapes/data.yaml", imgsz=SIDE, epochs=1, batch=4, plots=False)
    smaller = aap_hw.load("run", trust_source=True)
    bundle = aap_hw.bundle("run", "x86", weights=checkpoint)
    from ultralytics.nn.tasks import load_checkpoint

    trained = load_checkpoint(checkpoint)[0].float().eval()
    assert [p.shape for p in trained.parameters()] == [p.shape for p in smaller.parameters()]
    assert sum(p.numel() for p in smaller.parameters()) < 0.9 * sum(p.numel() for p in net.make().parameters())

    picture = Path("shapes/images/val/0000.png")
    image = detect.prepared(Image.open(picture), SIDE, SIDE)[0]
    net.set_export(trained, True)
    with torch.no_grad():
        expected = detect.chosen(trained(torch.from_numpy(image)[None])[0].numpy(), 0.0, 0.7)[:5]
    ((*found,),) = [found[:5] for found in detect.detect(bundle, [picture], 0.0, 0.7)]
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.box, other.box, atol=0.05)
        assert one.score == pytest.approx(other.score, rel=1e-3)


def _table(model: torch.nn.Module) -> LatencyTable:
    """Latencies by a formula, as measuring them takes minutes."""
    graph = ChannelGraph.trace(model, (torch.zeros(1, 3, SIDE, SIDE),))
    network = partition(graph)
    how = {"warmup": 1, "repeats": 3, "copies": 2, "statistic": "median", "granularity": 16, "at_most": 3}
    made = LatencyTable(of_this_device(), {**how, "reference_us": 80.0, "reference_drift": 0.01})
    for address in points_of(network, group_candidates(graph.frozen(network.fixed), 16, 3)):
        made.add(address.key, LatencyPoint(address.widths, latency_us(address), 0.1, 3))
    return made
