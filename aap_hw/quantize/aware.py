"""Training that knows of rounding: a model's program, with torchao's fake quantisation in it, and back.

The program trains like any model, every value and weight being rounded as kernels in int8 round them. Then the model
takes back its weights and the statistics of its batch norms, and is quantised like any other. So nothing depends on
the ranges that training followed.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import nn
from torch.fx import GraphModule, Node

from aap_hw.graph.program.call import Call, set_argument, training_argument
from aap_hw.inputs import Inputs
from aap_hw.quantize.calibration import exported
from aap_hw.quantize.form import by_place, prefix_by_place
from aap_hw.quantize.pt2e import disable_observer, enable_observer, prepare_qat_pt2e
from aap_hw.quantize.quantizer import LEARNT, KernelQuantizer, name_of
from aap_hw.quantize.reference import Program

# That of PyTorch's norms.
USUAL_MOMENTUM = 0.1


class AwareProgram(Program):
    """A model's program that rounds as it trains, for batches of one size; batches of other sizes only evaluate it.

    Parameters
    ----------
    floats
        Names of layers whose weights stay in float32.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, size: int, floats: Collection[str] = ()) -> None:
        program = exported(by_place(model, inputs.names), inputs.zeros(size))
        prefix = prefix_by_place(inputs.names)
        modules = model.named_modules(remove_duplicate=False)
        averaging = {f"{prefix}{name}.running_mean" for name, each in modules if _averages(each)}
        settings = _settings(program, averaging)
        quantizer = KernelQuantizer(inputs.zeros(size), {prefix + layer for layer in floats}, LEARNT)
        prepared = prepare_qat_pt2e(program, quantizer)
        _restore(prepared, settings)
        learns = {prefix + name: each.requires_grad for name, each in model.named_parameters()}
        for name, each in prepared.named_parameters():
            each.requires_grad_(learns.get(name, True))
        super().__init__(prepared, inputs.names, size)
        self._prefix, self._is_settled = prefix, False
        self.train(model.training)

    def train(self, mode: bool = True) -> AwareProgram:
        """Let dropout drop or not. Unless settled, norms take the batch's statistics and ranges follow what is seen."""
        self.training = mode
        follows = mode and not self._is_settled
        for node in self.program.graph.nodes:
            if (argument := training_argument(node)) is not None:
                set_argument(node, argument, follows if _name(node) == "batch_norm" else mode)
        self.program.recompile()
        self.program.apply(enable_observer if follows else disable_observer)
        return self

    def settle(self, settled: bool) -> None:
        """Keep statistics of batch norms and ranges in training, too, or no longer.

        Weights then learn with what is deployed: a batch's own statistics and moving ranges are noise to them.
        """
        self._is_settled = settled
        self.train(self.training)

    def give(self, model: nn.Module) -> None:
        """Let the model that the program was made of have what was learned."""
        learned = self.program.state_dict()
        known = {name: learned[self._prefix + name] for name in model.state_dict() if self._prefix + name in learned}
        # Of a tensor with several names the program knows one. Its value under another one would be the old one.
        model.load_state_dict(known, strict=False)


def _name(node: Node) -> str:
    return Call(node).name if node.op == "call_function" else ""


def _averages(module: nn.Module) -> bool:
    """Whether a batch norm's statistics are the mean over all batches, which a program's operators do not say."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.momentum is None


def _settings(program: GraphModule, averaging: Collection[str]) -> dict[str, tuple[float, float]]:
    """Momentum and epsilon of each batch norm, by the name of its running mean.

    Norms whose running means are in ``averaging`` have no momentum of their own, and get PyTorch's usual one.
    """
    norms = [Call(node) for node in program.graph.nodes if _name(node) == "batch_norm"]
    found = {name_of(norm["running_mean"]): (norm["momentum"], norm["eps"]) for norm in norms}
    return {name: (USUAL_MOMENTUM if name in averaging else momentum, eps) for name, (momentum, eps) in found.items()}


def _restore(program: GraphModule, settings: dict[str, tuple[float, float]]) -> None:
    """Give batch norms their own momentum and epsilon again: torchao puts others in their place."""
    for node in program.graph.nodes:
        if _name(node) != "batch_norm":
            continue
        mean, variance = (Call(node)[each] for each in ("running_mean", "running_var"))
        momentum, eps = settings[name_of(mean)]
        set_argument(node, "momentum", momentum)
        set_argument(node, "eps", eps)
        for user in list(variance.users):
            if _name(user) == "add":
                user.args = (user.args[0], eps, *user.args[2:])
    program.recompile()
