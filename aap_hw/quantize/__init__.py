"""Networks in int8: what quantisation after training makes of a model, and the scales that the compiler reads off it.

The work is torchao's, in its PT2E flow. `quantise` calibrates a model; what it returns runs in PyTorch and is the
reference for the compiled network. `read_quantised` splits that, or what you quantised yourself, into a float network
and the scales of its values.
"""

from aap_hw.quantize.calibration import quantise
from aap_hw.quantize.reading import read_quantised

__all__ = ["quantise", "read_quantised"]
