"""From a network, a latency table and a budget to a pruned network: planning, rounds, and the run folder."""
