"""Whether channels that a norm is taken over should be cut: a small transformer, with and without, trained and not.

It is trained on the embedded images (patches of 4 x 4, no class token), pruned to a share of its multiply-accumulates
in one step by read attention, with its residual stream or without, and trained again for a short time.

    python benchmarks/renormalised.py --json -
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH, LEARNING_RATE = 64, 2e-3


@dataclass(frozen=True)
class Images:
    """Training and test images (N, 1, 28, 28), and their classes."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


class Block(nn.Module):
    """Attention and two linear layers, each behind a layer norm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads, self.head_dim = heads, width // heads

    def forward(self, x: Tensor) -> Tensor:
        """Rows of tokens (N, T, C)."""
        images, tokens, _ = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(images, tokens, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(images, tokens, -1)
        x = x + self.proj(mixed)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Transformer(nn.Module):
    """Patches of 4 x 4, blocks, a norm, the mean over tokens, and ten scores."""

    def __init__(self, width: int = 48, depth: int = 3, heads: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, stride=4)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 49, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, 10) of images (N, 1, 28, 28)."""
        x = self.blocks(self.patches(x).flatten(2).transpose(1, 2) + self.positions)
        scores: Tensor = self.head(self.norm(x).mean(1))
        return scores


def main() -> None:
    # PyTorch reads the variable as it is loaded, which it is by now.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    from _report import print_report

    options = _options()
    rows = [row for seed in range(options.seeds) for row in _rows(seed, options)]
    print_report(rows, _summary(rows), options.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budgets", default="75,60,45", help="percent of the unpruned network's multiply-accumulates")
    parser.add_argument("--seeds", type=int, default=2, help="networks that are trained, each from other weights")
    parser.add_argument("--epochs", type=int, default=16, help="of the unpruned network's training")
    parser.add_argument("--retrain", type=int, default=2, help="epochs after pruning")
    parser.add_argument("--images", type=int, default=10_000, help="training images")
    parser.add_argument("--json", help="write JSON to this file, or to standard output for -")
    parser.add_argument("--quick", action="store_true", help="few images and one budget: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.budgets, options.seeds, options.epochs, options.retrain, options.images = "60", 1, 1, 1, 200
    return options


def _rows(seed: int, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from _report import say

    torch.manual_seed(seed)
    images = _images(options.images)
    whole = Transformer()
    began = time.perf_counter()
    _train(whole, images, options.epochs, LEARNING_RATE)
    before = _accuracy(whole, images)
    say(f"seed {seed}: {before:.2f} % after {time.perf_counter() - began:.0f} s")
    for budget in map(float, options.budgets.split(",")):
        for with_renormalised in (False, True):
            smaller, share, kept = _pruned(whole, images, budget / 100, with_renormalised)
            row = {
                "seed": seed,
                "renormalised": with_renormalised,
                "budget_pct": budget,
                "macs_pct": None if share is None else 100 * share,
                "stream_kept": kept,
                "unpruned_accuracy": before,
            }
            if smaller is not None:
                row["accuracy"] = _accuracy(smaller, images)
                torch.manual_seed(seed)  # the same batches for all
                _train(smaller, images, options.retrain, LEARNING_RATE / 2)
                row["accuracy_trained"] = _accuracy(smaller, images)
            say("  ".join(f"{name} {value}" for name, value in row.items()))
            yield row


def _images(count: int) -> Images:
    from aap_hw.train.data import load_embedded

    data = load_embedded()
    chosen = torch.as_tensor(data.spread("train", count))

    def scaled(values: Any) -> Tensor:
        return (torch.as_tensor(values).float().reshape(-1, 1, 28, 28) / 255 - 0.29) / 0.35

    train = scaled(data.train_images)[chosen], torch.as_tensor(data.train_labels)[chosen]
    return Images(train, (scaled(data.test_images), torch.as_tensor(data.test_labels)))


def _train(network: nn.Module, images: Images, epochs: int, learning_rate: float) -> None:
    inputs, classes = images.train
    steps = epochs * math.ceil(len(inputs) / BATCH)
    optimiser = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps, pct_start=0.2)
    network.train()
    for _ in range(epochs):
        for part in torch.randperm(len(inputs)).split(BATCH):
            loss = F.cross_entropy(network(inputs[part]), classes[part])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    network.eval()


@torch.no_grad()
def _accuracy(network: nn.Module, images: Images) -> float:
    inputs, classes = images.test
    found = torch.cat([network(part).argmax(1) for part in inputs.split(200)])
    return 100 * float((found == classes).float().mean())


def _pruned(
    whole: nn.Module, images: Images, share: float, with_renormalised: bool
) -> tuple[nn.Module | None, float | None, int]:
    """The network pruned to a share of its multiply-accumulates, the share that it has, and its stream's width.

    If that cannot be reached, there is no network.
    """
    from aap_hw.attention.observer import observed
    from aap_hw.attention.reading import read_attention
    from aap_hw.attention.sensitivity import sensitivities
    from aap_hw.compile.front.network import Kernel
    from aap_hw.compile.front.partition import partition
    from aap_hw.graph import ChannelGraph
    from aap_hw.graph.check.self_check import checked_cut
    from aap_hw.lut.predicting import kernel_costs
    from aap_hw.policy import GroupChoice, Infeasible, Problem, allocate, best_channels, candidate_widths, kept_share

    whole = copy.deepcopy(whole)
    shown = images.train[0][:: max(1, len(images.train[0]) // 256)]
    graph = ChannelGraph.trace(whole, (shown[:1],))
    if not with_renormalised:
        graph = graph.frozen({group.name: "is left alone" for group in graph.groups if group.renormalised})
    network = partition(graph)
    graph = graph.frozen(network.fixed)
    free = [group for group in graph.groups if group.frozen is None]
    scores = read_attention(whole, graph, observed(whole, [shown], graph=graph).variances())
    weights = sensitivities(graph, shown)
    mean = statistics.mean(weights.values())
    widths = {group.name: (group.width,) for group in graph.groups}
    widths |= {group.name: candidate_widths(group.width, 8, 16) for group in free}
    choices = [
        GroupChoice(g.name, widths[g.name], weights[g.name] / mean * _log(kept_share(scores[g.name], widths[g.name])))
        for g in free
    ]
    dense = sum(kernel.multiply_accumulates(network.dense) for kernel in network.kernels)
    problem = Problem(choices, {"macs": kernel_costs(network, widths, Kernel.multiply_accumulates)}, [])
    stream = next(group for group in graph.groups if group.name == "patches")
    try:
        found = allocate(problem, {"macs": share * dense})
    except Infeasible:
        return None, None, stream.width
    keep = {name: best_channels(scores[name], width).tolist() for name, width in found.widths.items()}
    smaller = checked_cut(graph, whole, keep, shown[:2])
    return smaller, found.spent["macs"] / dense, found.widths.get("patches", stream.width)


def _log(shares: Any) -> Any:
    return torch.as_tensor(shares).clamp_min(1e-6).log().numpy()


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean accuracies in percent, by budget, with renormalised groups and without."""
    summary: dict[str, Any] = {"unpruned_accuracy": statistics.mean(row["unpruned_accuracy"] for row in rows)}
    for budget in sorted({row["budget_pct"] for row in rows}, reverse=True):
        for with_renormalised, word in ((False, "without"), (True, "with")):
            for measure in ("accuracy", "accuracy_trained"):
                found = [
                    row[measure]
                    for row in rows
                    if measure in row and (row["budget_pct"], row["renormalised"]) == (budget, with_renormalised)
                ]
                summary[f"{measure}_{budget:g}_{word}"] = statistics.mean(found) if found else None
    return summary


if __name__ == "__main__":
    main()
