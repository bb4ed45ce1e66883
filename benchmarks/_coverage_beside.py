"""torch-pruning on one network of the coverage benchmark: whether it finds groups and gives a network that runs.

Whether what it gives is right is not looked at: an upper bound, in its favour. Arguments: the set and the network.
"""

from __future__ import annotations

import sys
import warnings

import torch
from _coverage_case import KEPT
from _coverage_sets import network
from torch import nn


def main() -> None:
    import torch_pruning

    warnings.filterwarnings("ignore")
    kind, name = sys.argv[1:]
    found = network(kind, name)
    model, examples = found.build().eval(), found.inputs()
    heads = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == 1000]
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        examples[0] if len(examples) == 1 else examples,
        importance=torch_pruning.importance.MagnitudeImportance(p=1),
        pruning_ratio=1 - KEPT,
        ignored_layers=heads,
    )
    before = sum(parameter.numel() for parameter in model.parameters())
    pruner.step()
    with torch.no_grad():
        model(*examples)
    if sum(parameter.numel() for parameter in model.parameters()) >= before:
        raise SystemExit("nothing was cut")


if __name__ == "__main__":
    main()
