"""How it is chosen what is cut: by which scores, by which rule, and which channel groups may be.

``cut_options`` gives a command all of it as one dictionary, ``cuts``, with the names of
`aap_hw.prune.task.PruneSettings`.
"""

from __future__ import annotations

import click

from aap_hw.cli.options.grouping import as_one
from aap_hw.cli.options.numbers import Whole
from aap_hw.prune.defaults import ALLOCATORS, ATTENTION_CUTS, SCORE_SCALES, SCORES, THRESHOLD_WEIGHTS

attention_cuts_option = click.option(
    "--attention-cuts",
    type=click.Choice(ATTENTION_CUTS),
    default="widths",
    show_default=True,
    help="In transformers: narrow all heads of a block alike (widths), or remove whole heads where the code allows it.",
)
cut_options = as_one(
    "cuts",
    dict,
    click.option(
        "--calibration-images",
        type=Whole(min=1),
        metavar="N",
        help="Rank filters by N images; default: from 16 at 224x224 to 512 at 32x32.",
    ),
    click.option(
        "--score",
        type=click.Choice(SCORES),
        help="Filter importance criterion. read-attention (default): what a filter adds to what the next layers read. "
        "attention (default with --allocator threshold): the paper's mean activation, which has nothing to do with "
        "transformers.",
    ),
    click.option(
        "--score-scale",
        type=click.Choice(SCORE_SCALES),
        default="raw",
        show_default=True,
        help="How scores of different groups are made comparable. Only 'rank' changes what --allocator exact chooses.",
    ),
    click.option(
        "--allocator",
        type=click.Choice(ALLOCATORS),
        default="exact",
        show_default=True,
        help="How widths are chosen. exact: the plan that keeps the most within the budget. threshold: the paper's "
        "rule.",
    ),
    click.option(
        "--threshold-weights",
        type=click.Choice(THRESHOLD_WEIGHTS),
        help="What --allocator threshold weighs a group by; default: the first of these that has a budget, else "
        "parameters.",
    ),
    click.option(
        "--only",
        multiple=True,
        metavar="GLOB",
        help="Cut only channel groups with such a name, like 'layer1.*', or kind, like 'kind:mlp'; can be repeated.",
    ),
    click.option(
        "--skip",
        multiple=True,
        metavar="GLOB",
        help="Do not cut channel groups with such a name or kind ('aap-hw plan' shows both); can be repeated.",
    ),
    click.option(
        "--no-depth",
        "depth",
        flag_value=False,
        default=True,
        help="Keep every residual branch, however narrow; without this, whole branches may go.",
    ),
    attention_cuts_option,
    click.option(
        "--renormalised/--no-renormalised",
        default=None,
        help="Whether to cut channels that a norm averages over, as a layer norm does; default: only if the network is "
        "trained afterwards.",
    ),
)
