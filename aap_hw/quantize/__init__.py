"""Networks in int8: what quantisation after training makes of a model, and the scales that the compiler reads off it.

The work is torchao's, in its PT2E flow. `quantise` calibrates a model; what it returns runs in PyTorch and is the
reference for the compiled network. `read_quantised` splits that, or what you quantised yourself, into a float network
and the scales of its values. `Int8Form` is what a run keeps of it, `float_layers` finds the layers that rounding costs
too much, and `AwareProgram` trains with rounding. `for_timing` is for who only wants to know how fast a network is.
"""

from aap_hw.quantize.aware import AwareProgram
from aap_hw.quantize.calibration import quantise
from aap_hw.quantize.form import Int8Form, calibrated, for_timing
from aap_hw.quantize.ranges import noise_share
from aap_hw.quantize.reading import read_quantised
from aap_hw.quantize.reference import Program, rounded
from aap_hw.quantize.sensitivity import FloatLayers, float_layers

__all__ = [
    "AwareProgram",
    "FloatLayers",
    "Int8Form",
    "Program",
    "calibrated",
    "float_layers",
    "for_timing",
    "noise_share",
    "quantise",
    "read_quantised",
    "rounded",
]
