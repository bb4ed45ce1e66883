"""Softmax, e^(x - max) / sum, which has two kinds of key.

``softmax`` is over the channels of vectors (N, C) or of the pixels of an image, as at the end of a classifier; its key
needs no lengths. ``axis_softmax`` is along any axis. Its key holds the lengths before, along and behind that axis, as
the key of a reduction does. With ``log`` the result is the logarithm.
"""

from __future__ import annotations

from aap_hw.compile.families.family import FAMILIES, Family, image_shape, nothing
from aap_hw.compile.families.reductions import Reduction

FAMILIES.register("softmax")(Family(lambda address: image_shape(address.key, address.width_out), nothing, nothing))
FAMILIES.register("axis_softmax")(Family(lambda address: Reduction.of(address).source, nothing, nothing))
