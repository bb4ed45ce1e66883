"""From a network, a latency table and a budget to a pruned network: planning, rounds, and the run folder."""

from aap_hw.callable_package import make_callable

make_callable(__name__)
