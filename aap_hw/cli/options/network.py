"""Which network is meant: where it comes from, what it takes, its weights and its classes.

``network_options`` gives a command, as one dictionary to pass on, what the functions of `aap_hw.api` call
``input_shape``, ``example``, ``weights`` and ``classes``.
"""

from __future__ import annotations

from typing import Any

import click

from aap_hw.cli.options.grouping import Decorator, as_one
from aap_hw.cli.options.numbers import Whole

DEFAULT_MODEL = "mobilenetv2"


class InputsText(click.ParamType[Any]):
    """``3x224x224``, ``1x16000``, or ``ids:int64:128,mask:bool:128``: what a network takes."""

    name = "SHAPE,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the text into Inputs; bad text is a UserError that says what to type."""
        from aap_hw.inputs import Inputs

        return Inputs.of(value)


def model_option_of(**how: Any) -> Decorator:
    """The option that says where the network comes from; keywords say what if it is not given."""
    return click.option(
        "--model",
        "model_name",
        metavar="SOURCE",
        help="The network: a name such as resnet50, torchvision:NAME, timm:NAME, FILE.py:FUNCTION, MODULE:FUNCTION, or "
        "FILE.pt2.",
        **how,
    )


model_option = model_option_of(default=DEFAULT_MODEL, show_default=True)
input_option = click.option(
    "--input",
    "input_shape",
    type=InputsText(),
    help="Shape of one input, without the batch: 3x224x224 for images, 1x16000 for sound, NAME:TYPE:SHAPE,... for "
    "several inputs; default: what is usual for the network.",
)
example_option = click.option(
    "--example",
    metavar="FILE.npz",
    help="Real inputs, instead of --input: arrays with one sample per row, or a function of yours that returns "
    "them (FILE.py:FUNCTION). Without --data, filters are also ranked by them.",
)
classes_option = click.option(
    "--classes",
    type=Whole(min=2),
    metavar="N",
    help="Build a network that has a name for N classes; default: its usual number.",
)
_weights_option = click.option(
    "--weights",
    metavar="WEIGHTS",
    help="Trained weights: 'pretrained' for those that torchvision or timm publish, or one of these by name "
    "(IMAGENET1K_V2, timm:NAME.TAG, hf-hub:ORG/NAME); a checkpoint file of yours (safetensors or torch.save); "
    "'embedded' (resnet20 only); 'none'. Default: random ones, or what your own code sets; 'embedded' with "
    "--data embedded.",
)
_measured_weights_option = click.option(
    "--weights",
    metavar="WEIGHTS",
    help="The weights that the network will have, as for 'aap-hw plan'. They may say the size of its input and its "
    "number of classes; latencies do not depend on the numbers in them.",
)
network_options = as_one("network", dict, input_option, example_option, _weights_option, classes_option)
measured_network_options = as_one(
    "network", dict, input_option, example_option, _measured_weights_option, classes_option
)
