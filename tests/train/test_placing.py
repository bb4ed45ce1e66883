"""Networks are evaluated and trained in a layout and on a device that their code allows, and left as they were."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from aap_hw.models import exported
from aap_hw.train.evaluation import evaluate
from aap_hw.train.loop import train
from aap_hw.train.placing import move
from aap_hw.train.settings import Loss
from tests.train.striped import QUICK, SHAPE, small_model


class Views(nn.Module):
    """Views weights and a pooled image as rows, which only contiguous ones can be."""

    def __init__(self, views_weights):
        super().__init__()
        self.conv, self.pool, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(2), nn.Linear(32, 2)
        self.views_weights = views_weights

    def forward(self, x):
        weight = self.conv.weight
        if self.views_weights:
            rows = weight.view(len(weight), -1)
            weight = (rows - rows.mean(1, keepdim=True)).view_as(weight)
            return self.head(self.pool(F.conv2d(x, weight, self.conv.bias, padding=1)).flatten(1))
        return self.head(self.pool(self.conv(x)).view(-1, 32))


@pytest.mark.parametrize("kind", ["image", "weights", "program"])
def test_a_network_that_views_its_images_or_weights_is_evaluated_and_trained(stripes, kind, tmp_path):
    torch.manual_seed(0)
    model = Views(kind == "weights")
    if kind == "program":
        batch = {0: torch.export.Dim("batch")}
        program = torch.export.export(model, (torch.zeros(2, *SHAPE.image),), dynamic_shapes=[batch])
        torch.export.save(program, tmp_path / "net.pt2")
        model = exported.load(tmp_path / "net.pt2")
    with torch.no_grad():
        expected = model(stripes.tensors("test", SHAPE.image)).argmax(1).numpy()
    assert evaluate(model, stripes, SHAPE) == pytest.approx(100 * np.mean(expected == stripes.test_labels))
    settings = replace(QUICK, loss=Loss(distillation=0.5))
    history = train(model, stripes, settings, seed=1, inputs=SHAPE, teacher=Views(False)).history
    assert history[-1].loss < history[0].loss


def test_each_module_of_a_network_that_is_evaluated_keeps_its_mode(stripes):
    model = nn.Sequential(nn.BatchNorm2d(3).eval(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    evaluate(model, stripes, SHAPE)
    assert [module.training for module in model] == [False, True, True, True]


def test_a_network_that_fails_at_zeros_alone_is_evaluated(stripes):
    class Refuses(nn.Linear):
        def forward(self, x):
            if not x.any():
                raise ValueError("nothing to see")
            return torch.tensor([1.0, 0.0]).expand(len(x), 2)

    assert evaluate(Refuses(1, 1), stripes, SHAPE) == 50.0


def test_all_others_see_images_and_weights_with_channels_last(stripes):
    seen = set()

    def note(conv, args):
        seen.update(each.is_contiguous(memory_format=torch.channels_last) for each in (*args, conv.weight))

    model = small_model()
    model[0].register_forward_pre_hook(note)
    train(model, stripes, QUICK, seed=1, inputs=SHAPE)
    assert seen == {True}


def test_what_a_program_makes_is_on_the_device_that_it_was_moved_to():
    class Ramp(nn.Module):
        def forward(self, x):
            return x + torch.arange(x.shape[1], device=x.device) + torch.ones(1).to(x.device)

    x = torch.zeros(2, 3)
    program = torch.export.export(Ramp(), (x,)).module()
    move(program, torch.device("meta"))
    assert program(x.to("meta")).device.type == "meta"
    move(program, x.device)
    assert program(x).tolist() == [[1, 2, 3]] * 2
