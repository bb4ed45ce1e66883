"""A step of training goes where its formula says, worked out beside the loop from gradients of all images at once."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from aap_hw.errors import UserError
from aap_hw.train import loop
from aap_hw.train.loop import distance, train
from aap_hw.train.settings import Augmentation, Loss, Optimiser, Schedule, TrainSettings
from tests.train.striped import QUICK, SHAPE, small_model


def one_step(model, stripes, **changes):
    """Weights after one step over all images, without augmentation, warm-up or schedule, or after so many epochs."""
    settings = replace(
        TrainSettings(
            epochs=1,
            batch_size=210,
            learning_rate=0.1,
            optimiser=Optimiser(momentum=0.0, nesterov=False, weight_decay=0.0),
            schedule=Schedule("step", warmup_epochs=0.0),
            augmentation=Augmentation(flip=False, crop_padding=0),
        ),
        **changes,
    )
    train(model, stripes, settings, seed=0, inputs=SHAPE, teacher=small_model(seed=9))
    return model


def gradients(model, stripes, loss_of):
    """Of a loss of all training images, in training mode, worked out beside the loop."""
    copied = deepcopy(model).train()
    inputs = stripes.tensors("train", (3, 12, 12))
    loss_of(copied(inputs), torch.from_numpy(stripes.train_labels), inputs).backward()
    return {name: p.grad for name, p in copied.named_parameters()}


def stepped(before, slope, rate=0.1):
    return {name: tensor - rate * slope[name] for name, tensor in before.named_parameters()}


def close(model, expected, tolerance=1e-5):
    return all(torch.allclose(p, expected[name], atol=tolerance) for name, p in model.named_parameters())


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_has_momentum_weight_decay_smoothed_labels_and_the_rate_of_the_schedule(stripes, nesterov):
    before, momentum, decay = small_model(dropout=0.0), 0.8, 0.05

    def smoothed(out, labels, _):
        logs = F.log_softmax(out, 1)
        return -(0.7 * logs.gather(1, labels[:, None]).mean() + 0.3 * logs.mean())

    expected, velocity = deepcopy(before), {name: 0.0 for name, _ in before.named_parameters()}
    for rate in (0.1, 0.02, 0.02):
        slope = gradients(expected, stripes, smoothed)
        with torch.no_grad():
            for name, weight in expected.named_parameters():
                slope[name] += decay * weight
                velocity[name] = momentum * velocity[name] + slope[name]
                weight -= rate * (slope[name] + momentum * velocity[name] if nesterov else velocity[name])
    after = one_step(
        deepcopy(before),
        stripes,
        epochs=3,
        optimiser=Optimiser(momentum=momentum, nesterov=nesterov, weight_decay=decay),
        schedule=Schedule("step", (2,), factor=0.2, warmup_epochs=0.0),
        loss=Loss(label_smoothing=0.3),
    )
    assert close(after, dict(expected.named_parameters()))


def test_a_blended_image_has_the_labels_of_both_by_their_shares(stripes, monkeypatch):
    monkeypatch.setattr(loop, "draw_share", lambda *_: 0.75)
    before, order = small_model(dropout=0.0), torch.randperm(210, generator=torch.Generator().manual_seed(0))
    images, labels = stripes.tensors("train", (3, 12, 12))[order], torch.from_numpy(stripes.train_labels)[order]
    copied = deepcopy(before).train()
    out = copied(0.75 * images + 0.25 * images.flip(0))
    (0.75 * F.cross_entropy(out, labels) + 0.25 * F.cross_entropy(out, labels.flip(0))).backward()
    expected = stepped(before, {name: p.grad for name, p in copied.named_parameters()})
    augmentation = Augmentation(flip=False, crop_padding=0, mixup=0.4)
    assert close(one_step(deepcopy(before), stripes, augmentation=augmentation), expected)


def test_a_gradient_longer_than_the_clip_norm_is_shortened_to_it(stripes):
    before = small_model(dropout=0.0)
    slope = gradients(before, stripes, lambda out, labels, _: F.cross_entropy(out, labels))
    norm = math.sqrt(sum(float((g**2).sum()) for g in slope.values()))
    clipped = {name: g * (norm / 4) / norm for name, g in slope.items()}
    optimiser = Optimiser(momentum=0.0, nesterov=False, weight_decay=0.0, clip_norm=norm / 4)
    assert close(one_step(deepcopy(before), stripes, optimiser=optimiser), stepped(before, clipped))
    assert not close(deepcopy(before), stepped(before, clipped))


def test_distillation_follows_the_teacher_and_the_labels_by_their_shares(stripes):
    before, teacher = small_model(dropout=0.0), small_model(seed=9).eval()

    def loss(out, labels, inputs):
        taught = teacher(inputs).detach() / 2
        kl = (F.softmax(taught, 1) * (F.log_softmax(taught, 1) - F.log_softmax(out / 2, 1))).sum(1).mean()
        return 0.3 * F.cross_entropy(out, labels) + 0.7 * 4 * kl

    expected = stepped(before, gradients(before, stripes, loss))
    wanted = Loss(distillation=0.7, temperature=2.0)
    assert close(one_step(deepcopy(before), stripes, loss=wanted), expected)
    with pytest.raises(UserError, match="needs the unpruned network as its teacher"):
        train(before, stripes, replace(QUICK, loss=wanted), seed=0, inputs=SHAPE)


def test_a_network_is_at_no_distance_from_itself():
    outputs = torch.randn(5, 3)
    assert distance(outputs, outputs, 3.0).item() == pytest.approx(0, abs=1e-6)


def test_adamw_takes_a_first_step_of_the_learning_rate_in_every_direction(stripes):
    before = small_model(dropout=0.0)
    after = one_step(deepcopy(before), stripes, learning_rate=1e-3, optimiser=Optimiser("adamw", weight_decay=0.0))
    moved = torch.cat([(b - a).abs().flatten() for a, b in zip(before.parameters(), after.parameters(), strict=True)])
    assert moved.median().item() == pytest.approx(1e-3, rel=0.01)


def test_bf16_trains_nearly_the_same_weights_and_leaves_them_in_fp32(stripes, monkeypatch):
    before = small_model(dropout=0.0)
    exact, rounded = one_step(deepcopy(before), stripes), one_step(deepcopy(before), stripes, precision="bf16")
    for helps, expected in ((True, rounded), (False, exact)):
        monkeypatch.setattr(loop, "bf16_helps", lambda *_, helps=helps: helps)
        by_itself = one_step(deepcopy(before), stripes, precision="auto")
        assert close(by_itself, dict(expected.named_parameters()), tolerance=1e-6)
    assert {tensor.dtype for tensor in rounded.parameters()} == {torch.float32}
    assert not close(rounded, dict(exact.named_parameters()), tolerance=0.0)
    assert close(rounded, dict(exact.named_parameters()), tolerance=1e-2)
