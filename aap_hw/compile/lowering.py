"""The way in for code outside of the compiler's rooms: a network becomes one compiled library."""

from aap_hw.compile.library.lowering import compile_network, lower_network, state_of

__all__ = ["compile_network", "lower_network", "state_of"]
