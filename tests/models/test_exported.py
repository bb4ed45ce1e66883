"""An exported program is cut and trained like the network it was made from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from aap_hw.compile.front.program import is_random
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.models.exported import is_quantised, load
from aap_hw.models.origin import Origin
from aap_hw.models.source import find
from tests.graph.ground_truth import assert_cut_equals_silenced, random_keep
from tests.models.exporting import ANY_NUMBER, Net
from tests.quantize.saved import quantised_program


def test_program_says_its_size_and_computes_what_the_network_did(file: Path, original: nn.Module) -> None:
    origin = Origin.of(str(file))
    assert (origin.model, origin.short, origin.inputs.image) == (str(file), "my net", (3, 8, 8))
    assert origin.classes == 7
    images = torch.rand(5, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(origin.build()(images), original(images))


def test_program_has_the_groups_of_the_network_and_is_cut_like_it(file: Path, original: nn.Module) -> None:
    program = Origin.of(str(file)).build()
    graph = ChannelGraph.trace(program, (torch.zeros(2, 3, 8, 8),))
    expected = ChannelGraph.trace(original, (torch.zeros(2, 3, 8, 8),))
    described = [(g.name, g.width, g.frozen is None, len(g.axes)) for g in graph.groups]
    assert described == [(g.name, g.width, g.frozen is None, len(g.axes)) for g in expected.groups]
    assert [name for name, _, free, _ in described if free] == ["stem.0", "wide"]
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    exact = program.double()
    graph = ChannelGraph.trace(exact, (images,))
    smaller = assert_cut_equals_silenced(exact, graph, images, random_keep(graph, 3))
    torch.export.export(smaller, (images,))


def test_batch_norm_and_dropout_obey_the_training_flag(file: Path) -> None:
    program = Origin.of(str(file)).build()
    images = torch.rand(16, 3, 8, 8)
    before = program.get_buffer("stem.1.running_mean").clone()
    assert torch.equal(program(images), program(images))
    assert torch.equal(program.get_buffer("stem.1.running_mean"), before)
    program.train()
    assert not torch.equal(program(images), program(images))
    assert not torch.equal(program.get_buffer("stem.1.running_mean"), before)
    program.eval()
    assert torch.equal(program(images), program(images))


class Drops(nn.Module):
    """Every kind of dropout, and a norm that takes the batch's statistics in evaluation, too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3, track_running_stats=False)
        self.drop = nn.Sequential(nn.Dropout2d(), nn.AlphaDropout(), nn.FeatureAlphaDropout(), nn.RReLU())
        self.lstm = nn.LSTM(4, 4, num_layers=2, dropout=0.5, batch_first=True)
        self.attention = nn.TransformerEncoderLayer(4, 2, 8, 0.5, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.drop(self.norm(x)), self.lstm(x[:, 0])[0], self.attention(x[:, 1])


def test_every_dropout_of_a_program_that_was_exported_in_training_obeys_the_flag(tmp_path: Path) -> None:
    model, images = Drops(), torch.rand(3, 3, 4, 4)
    torch.export.save(torch.export.export(model.train(), (images,), **ANY_NUMBER), tmp_path / "net.pt2")
    program = load(tmp_path / "net.pt2")
    nodes = ChannelGraph.trace(program.eval(), (images,)).program.graph.nodes
    assert not [node for node in nodes if is_random(node)]
    with torch.no_grad():
        torch.testing.assert_close(program(images), model.eval()(images))
        program.train()
        assert not any(map(torch.equal, program(images), program(images)))


def test_program_for_one_number_of_images_is_refused_with_what_to_write(original: nn.Module, tmp_path: Path) -> None:
    torch.export.save(torch.export.export(original, (torch.zeros(1, 3, 8, 8),)), tmp_path / "one.pt2")
    with pytest.raises(UserError, match=r"exported for batches of exactly 1; .*dynamic_shapes=\(\{0: torch.export.Dim"):
        find(str(tmp_path / "one.pt2"))


def test_quantised_program_is_one_for_compiling_only(tmp_path: Path) -> None:
    program = quantised_program()
    torch.export.save(program, tmp_path / "q.pt2")
    with pytest.raises(UserError, match=r"q\.pt2 is quantised already, and can only be compiled and deployed as it is"):
        Origin.of(str(tmp_path / "q.pt2"))
    origin = Origin.of(str(tmp_path / "q.pt2"), may_be_quantised=True)
    assert (origin.is_quantised, origin.inputs.image) == (True, (3, 16, 16))
    module, image = origin.build(), torch.rand(1, 3, 16, 16)
    assert is_quantised(module)
    assert not is_quantised(Net())
    assert torch.equal(module(image), program.module()(image))
    torch.export.save(quantised_program(batch=2), tmp_path / "two.pt2")
    with pytest.raises(UserError, match=r"two\.pt2 was exported for batches of exactly 2; "):
        Origin.of(str(tmp_path / "two.pt2"), may_be_quantised=True)


def test_program_of_several_sizes_of_images_has_no_usual_one(original: nn.Module, tmp_path: Path) -> None:
    sizes = ({0: torch.export.Dim("n", min=1), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")},)
    program = torch.export.export(original, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=sizes)
    torch.export.save(program, tmp_path / "any.pt2")
    with pytest.raises(UserError, match="has no usual image size"):
        Origin.of(str(tmp_path / "any.pt2"))
    assert Origin.of(str(tmp_path / "any.pt2"), (3, 16, 12)).classes == 7


class Looked(nn.Module):
    """Rows of a table, as many times as is said beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)

    def forward(self, ids: torch.Tensor, times: torch.Tensor | int) -> torch.Tensor:
        return self.table(ids) * (times if isinstance(times, int) else times[..., None])  # type: ignore[no-any-return]


def test_program_of_several_inputs_says_what_they_are_and_that_their_batches_agree(tmp_path: Path) -> None:
    network, n = Looked(), torch.export.Dim("n", min=1)
    example = torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 5)
    program = torch.export.export(network, example, dynamic_shapes=({0: n}, {0: n}), strict=False)
    torch.export.save(program, tmp_path / "two.pt2")
    origin = Origin.of(str(tmp_path / "two.pt2"))
    assert origin.inputs.text == "int64:5,5"
    ids, times = torch.randint(9, (3, 5)), torch.rand(3, 5)
    torch.testing.assert_close(origin.build()(ids, times), network(ids, times))


def test_program_that_takes_more_than_tensors_is_refused(tmp_path: Path) -> None:
    program = torch.export.export(Looked(), (torch.zeros(2, 5, dtype=torch.int64), 3), strict=False)
    torch.export.save(program, tmp_path / "times.pt2")
    with pytest.raises(UserError, match="does not take tensors alone"):
        find(str(tmp_path / "times.pt2"))


class SaysHow(nn.Module):
    """Operators that are told in a word how to compute."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.gelu(self.layer(x), approximate="tanh")
        x = nn.functional.interpolate(x, scale_factor=2, mode="bilinear")
        return torch.einsum("nchw,nchv->nc", x, torch.div(x, 2, rounding_mode="floor"))


def test_words_about_how_to_compute_are_no_reason_to_refuse(tmp_path: Path) -> None:
    torch.export.save(
        torch.export.export(network := SaysHow().eval(), (torch.zeros(2, 3, 8, 8),), **ANY_NUMBER), tmp_path / "how.pt2"
    )
    images = torch.rand(3, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(Origin.of(str(tmp_path / "how.pt2")).build()(images), network(images))


def test_texts_that_a_program_was_saved_with_do_not_matter(original: nn.Module, tmp_path: Path) -> None:
    program = torch.export.export(original, (torch.zeros(2, 3, 8, 8),), **ANY_NUMBER)
    torch.export.save(program, tmp_path / "net.pt2", extra_files={"notes/of mine.txt": "of May"})
    images = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(Origin.of(str(tmp_path / "net.pt2")).build()(images), original(images))
