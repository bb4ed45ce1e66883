"""From a run to what runs on the device: compile, check against PyTorch, time, and bundle."""

from aap_hw.callable_package import make_callable

make_callable(__name__)
