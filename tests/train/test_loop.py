"""Training learns, repeats itself, and leaves usable weights however it ends."""

from dataclasses import fields, replace

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from aap_hw.errors import UserError
from aap_hw.train import loop
from aap_hw.train.checkpoint import TrainState
from aap_hw.train.data import LabelledImages
from aap_hw.train.evaluation import evaluate, flushed_denormals
from aap_hw.train.loop import bf16_helps, train
from aap_hw.train.settings import Augmentation, Loss, Optimiser, Schedule, TrainSettings
from tests.train.striped import QUICK, SHAPE, small_model


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_training_learns_what_an_untrained_network_does_not_know(stripes):
    model = small_model()
    before = evaluate(model, stripes, SHAPE)
    result = train(model, stripes, TrainSettings(epochs=6, batch_size=20), seed=0, inputs=SHAPE)
    assert before < 80
    assert result.accuracy > 95
    assert result.history[-1].loss < result.history[0].loss
    assert result.accuracy == evaluate(model, stripes, SHAPE)


class Packed(nn.Module):
    """Returns its scores as some libraries do: by name, beside what there is only in training."""

    def __init__(self, beside=None):
        super().__init__()
        self.inner, self.beside = small_model(), beside

    def forward(self, images):
        scores = self.inner(images)
        return {"loss": scores if self.beside else None, "logits": scores}


def test_scores_that_are_returned_by_name_are_learnt_as_those_alone(stripes):
    alone, packed = small_model(), Packed()
    taught = replace(QUICK, loss=Loss(distillation=0.5))
    result = train(alone, stripes, taught, seed=0, inputs=SHAPE, teacher=small_model())
    assert train(packed, stripes, taught, seed=0, inputs=SHAPE, teacher=Packed()).accuracy == result.accuracy
    assert same(state_of(alone), state_of(packed.inner))


def test_network_that_returns_more_than_scores_is_refused(stripes):
    with pytest.raises(UserError, match=r"one score for each class, and the network returns \(20, 2\) and \(20, 2\)"):
        train(Packed(beside=True), stripes, QUICK, seed=0, inputs=SHAPE)


def test_same_seed_gives_the_same_weights_and_another_seed_does_not(stripes):
    models = []
    for seed, noise in ((3, 1), (3, 2), (4, 1)):
        torch.manual_seed(noise)  # the surrounding program's random numbers must not matter
        model = small_model(dropout=0.5)
        train(model, stripes, QUICK, seed=seed, inputs=SHAPE)
        models.append(state_of(model))
    assert same(models[0], models[1])
    assert not same(models[0], models[2])


def test_training_leaves_the_global_generator_alone(stripes):
    torch.manual_seed(7)
    expected = torch.rand(4)
    torch.manual_seed(7)
    train(small_model(), stripes, QUICK, seed=0, inputs=SHAPE)
    assert torch.equal(torch.rand(4), expected)


def test_each_epoch_is_reported_once(stripes):
    reports = []
    result = train(small_model(), stripes, QUICK, seed=0, inputs=SHAPE, on_epoch=lambda *args: reports.append(args))
    assert [report[:2] for report in reports] == [(1, 2), (2, 2)]
    assert [report[2:] for report in reports] == [(r.loss, r.accuracy, r.seconds) for r in result.history]


def test_trained_model_is_contiguous_and_in_eval_mode(stripes):
    model = small_model()
    train(model, stripes, QUICK, seed=0, inputs=SHAPE)
    assert not any(module.training for module in model.modules())
    assert all(tensor.is_contiguous() for tensor in model.state_dict().values())


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(stripes):
    model = small_model()
    good = {}

    def poison(epoch, *_):
        good.update(state_of(model))
        # The next forward pass gives a loss that is not a number.
        model[0].weight.data.fill_(float("nan"))

    with pytest.raises(UserError, match=r"epoch 2 of 2: the loss .* after epoch 1; try a learning rate below 0.05"):
        train(model, stripes, QUICK, seed=0, inputs=SHAPE, on_epoch=poison)
    assert same(state_of(model), good)
    assert not model.training


def test_a_learning_rate_that_diverges_in_the_first_epoch_keeps_the_weights_from_before(stripes):
    model = small_model()
    before = state_of(model)
    settings = TrainSettings(epochs=3, batch_size=20, learning_rate=1e30, schedule=Schedule(warmup_epochs=0.0))
    with pytest.raises(UserError, match="as they were before training"):
        train(model, stripes, settings, seed=0, inputs=SHAPE)
    assert same(state_of(model), before)


def test_ctrl_c_passes_through_and_keeps_the_last_complete_epoch(stripes):
    model = small_model()
    good = {}

    def interrupt_in_second_epoch(module, inputs):
        if good and module.training:
            raise KeyboardInterrupt

    model[0].register_forward_pre_hook(interrupt_in_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        train(model, stripes, QUICK, seed=0, inputs=SHAPE, on_epoch=lambda *_: good.update(state_of(model)))
    assert same(state_of(model), good)
    assert not model.training


def test_training_goes_on_from_any_epoch_to_the_very_weights_of_an_uninterrupted_one(stripes):
    settings, states = replace(QUICK, epochs=3), []
    model = small_model()
    whole = train(model, stripes, settings, seed=3, inputs=SHAPE, on_checkpoint=states.append)
    assert [len(state.history) for state in states] == [1, 2, 3]
    for state in states:
        on_disk = safetensors.torch.load(safetensors.torch.save(state.tensors))
        other, reported = small_model(seed=9), []
        result = train(
            other, stripes, settings, seed=3, inputs=SHAPE,
            resume_from=TrainState(state.history, on_disk), on_epoch=lambda epoch, *_, to=reported: to.append(epoch),
        )  # fmt: skip
        assert same(state_of(model), state_of(other))
        assert result.accuracy == whole.accuracy
        assert [record.loss for record in result.history] == [record.loss for record in whole.history]
        assert reported == list(range(len(state.history) + 1, 4))


def test_evaluation_counts_correct_answers_and_keeps_the_mode(stripes):
    class AlwaysFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return torch.tensor([1.0, 0.0]).expand(len(x), 2)

    model = AlwaysFirst().train()
    assert evaluate(model, stripes, SHAPE, batch_size=7) == 50.0
    assert model.training


def test_a_batch_of_which_nothing_can_be_read_is_left_out(stripes):
    class WithoutTheLast(LabelledImages):
        def stored(self, split, indices):
            (images,), labels = super().stored(split, indices)
            return ((images[:0],), labels[:0]) if 59 in indices else ((images,), labels)

    class AlwaysFirst(nn.Linear):
        def forward(self, x):
            return torch.stack([torch.tensor([1.0, 0.0]) for _ in x])

    data = WithoutTheLast(*(getattr(stripes, each.name) for each in fields(stripes)))
    assert evaluate(AlwaysFirst(1, 1), data, SHAPE, batch_size=58) == 50.0


def test_the_average_of_the_weights_is_what_is_kept(stripes):
    seen, model = [], small_model(dropout=0.0)
    settings = replace(QUICK, epochs=1, batch_size=70, average=0.6)

    def see(module, inputs):
        if module.training:
            seen.append(module.weight.detach().clone())

    model[0].register_forward_pre_hook(see)
    plain = small_model(dropout=0.0)
    train(plain, stripes, replace(settings, average=0.0), seed=0, inputs=SHAPE)
    train(model, stripes, settings, seed=0, inputs=SHAPE)
    # The first update copies; weights after the first, second and third step.
    first, second, third = seen[1], seen[2], plain[0].weight
    expected = 0.6 * (0.6 * first + 0.4 * second) + 0.4 * third
    assert torch.allclose(model[0].weight, expected, atol=1e-6)
    assert not torch.allclose(model[0].weight, third, atol=1e-4)


def test_training_with_an_average_resumes_to_the_very_weights(stripes):
    settings, states = replace(QUICK, average=0.9, optimiser=Optimiser("adamw")), []
    whole = small_model()
    train(whole, stripes, settings, seed=3, inputs=SHAPE, on_checkpoint=states.append)
    other = small_model(seed=5)
    train(other, stripes, settings, seed=3, inputs=SHAPE, resume_from=states[0])
    assert same(state_of(whole), state_of(other))


@pytest.mark.parametrize(
    ("vendor", "flags", "helps"),
    [
        ("AuthenticAMD", "fpu avx512_bf16 avx2", True),
        ("GenuineIntel", "fpu avx512_bf16 avx2", False),
        ("GenuineIntel", "fpu avx512_bf16 amx_bf16 avx2", True),
        ("AuthenticAMD", "fpu avx512f avx2", False),
        ("0x41", "fp asimd bf16 i8mm", True),
    ],
)
def test_bf16_is_chosen_where_a_cpu_is_quicker_in_it_but_not_for_depthwise_convolutions(
    vendor, flags, helps, monkeypatch, tmp_path
):
    (tmp_path / "cpuinfo").write_text(f"vendor_id : {vendor}\nflags : {flags}\n")
    monkeypatch.setattr(loop, "Path", lambda _: tmp_path / "cpuinfo")
    dense = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2))
    depthwise = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8))
    assert bf16_helps(dense, torch.device("cpu")) == helps
    assert not bf16_helps(depthwise, torch.device("cpu"))


def test_mixup_learns_too_and_the_same_seed_gives_the_same_weights(stripes):
    settings = TrainSettings(epochs=5, batch_size=20, augmentation=Augmentation(mixup=0.4))
    models = [small_model(), small_model()]
    results = [train(model, stripes, settings, seed=1, inputs=SHAPE) for model in models]
    assert results[0].accuracy > 90
    assert same(*map(state_of, models))


def test_a_single_image_is_refused():
    one = np.zeros((1, 12, 12), np.uint8)
    data = LabelledImages(one, np.zeros(1, np.int64), one, np.zeros(1, np.int64), ("a", "b"))
    with pytest.raises(UserError, match="give at least 2"):
        train(small_model(), data, QUICK, seed=0, inputs=SHAPE)


def test_denormals_count_as_zero_inside_only():
    tiny = torch.tensor([1e-39])
    if not torch.set_flush_denormal(False) and (tiny * 1 == 0).item():
        pytest.skip("this processor always flushes denormals")
    with flushed_denormals():
        assert (tiny * 1 == 0).item()
    assert (tiny * 1 != 0).item()
