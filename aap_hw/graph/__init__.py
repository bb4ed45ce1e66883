"""Channel groups of a PyTorch model, read from its exported graph, and surgery along them.

Start with `ChannelGraph.trace`. What no rule understands is frozen with a reason; no group is guessed.
"""

from aap_hw.graph.channel_graph import ChannelGraph
from aap_hw.graph.groups.groups import Axis, ChannelGroup
from aap_hw.graph.groups.widths import WidthExpr
from aap_hw.graph.trial.heads import WholeHeads

__all__ = ["Axis", "ChannelGraph", "ChannelGroup", "WholeHeads", "WidthExpr"]
