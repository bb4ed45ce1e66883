"""Code of kernels on the slow path: TVM's importer for PyTorch and its default lowering, without a schedule.

One operator becomes an exported program, a Relax function, and, all its steps together, one function, which is slower
than a kernel with a schedule; on a GPU dlight's rules bind its loops to threads. The importer gets some operators wrong
without a word, so every function is run here, once, and compared with PyTorch.
"""

from __future__ import annotations

import functools
import itertools
import warnings
from typing import Any

import numpy as np
import torch
import tvm
from torch import nn
from tvm import relax
from tvm.relax.frontend.torch import from_exported_program

from aap_hw.compile.code.function import OPAQUE, Argument, KernelFunction
from aap_hw.compile.families.slow import IMAGE, NoCode, Operand, SlowCall
from aap_hw.compile.gpu.scheduling import scheduled
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.target import DeviceTarget, GpuTarget

Function = tuple[Any, tuple[np.ndarray, ...]]
"""A PrimFunc, and the values of its last arguments, which belong to it."""


def build_slow(address: Address, target: DeviceTarget) -> KernelFunction:
    """Code of a kernel whose key holds the call of an operator.

    Raises
    ------
    NoCode : TVM cannot lower the operator either.
    """
    call = SlowCall.of(address)
    code, literals = _right_function(address)
    if isinstance(target, GpuTarget):
        code = scheduled(code, target)
    arguments = [
        *[Argument("constant" if operand.is_constant else "activation", operand.stored) for operand in _in_order(call)],
        *[Argument("literal", literal.shape, type=str(literal.dtype)) for literal in literals],
    ]
    return KernelFunction(code, tuple(arguments), call.output.stored, literals=literals)


NOT_COMPILED = f"TVM {tvm.__version__} has no code for it"
# Where an operator is tried first: what holds for one number of channels holds for all. Small, as what TVM makes of it
# may be slow, but not so small that axes vanish.
TRIED_WIDTHS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048)


@functools.lru_cache(maxsize=4096)
def _trial_of(key: KernelKey) -> Address | None:
    """Where the operator of a key is tried: at the first usual widths that it can have; None if it can have none.

    They follow from the key alone, as code must not depend on which widths of a kernel were asked for before.
    """
    pairs = [(width, width) for width in TRIED_WIDTHS] + list(itertools.permutations(TRIED_WIDTHS, 2))
    return next((trial for pair in pairs if _exists(trial := Address(key, pair))), None)


def _exists(address: Address) -> bool:
    """Whether an operator can have these widths."""
    try:
        call = SlowCall.of(address)
        made = call.run(torch.empty(operand.shape, device="meta") for operand in call.operands)
    except Exception:  # whatever PyTorch says to operands that do not fit
        return False
    return tuple(made.shape) == call.output.shape


@functools.lru_cache(maxsize=4096)
def _is_right_in_steps(trial: Address) -> bool:
    """Whether TVM imports an operator rightly as the small steps that PyTorch makes of it, not as it is.

    Raises
    ------
    NoCode : neither is right.
    """
    call = SlowCall.of(trial)
    examples, last = [_example(operand) for operand in _in_order(call)], None
    problem = f"TVM {tvm.__version__} computes something else in its place"
    for in_steps in (False, True):
        try:
            if _computes(_one_function(_OneCall(call, spelt_out=True), examples, in_steps), _OneCall(call), examples):
                return in_steps
        except Exception as error:  # whatever TVM raises, it cannot do it
            problem, last = NOT_COMPILED, error
    raise NoCode(trial.key, problem) from last


def _right_function(address: Address) -> Function:
    """The function of a call in the way that is right for its operator."""
    call = SlowCall.of(address)
    in_steps = _is_right_in_steps(_trial_of(address.key) or address)
    examples = [_example(operand) for operand in _in_order(call)]
    try:
        return _one_function(_OneCall(call, spelt_out=True), examples, in_steps)
    except Exception as error:
        raise NoCode(address.key, NOT_COMPILED) from error


def _in_order(call: SlowCall) -> list[Operand]:
    """What a kernel takes: activations first, then constants."""
    return sorted(call.operands, key=lambda operand: operand.is_constant)


def _example(operand: Operand) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if operand.dtype == "float32":
        return torch.randn(operand.stored, generator=generator)
    return torch.randint(0, 2, operand.stored, generator=generator).float()


def _computes(function: Function, model: nn.Module, examples: list[torch.Tensor]) -> bool:
    """Whether a function makes of some examples what a model makes of them."""
    code, literals = function
    expected = model(*examples).numpy()
    output = tvm.runtime.tensor(np.zeros(expected.shape, "float32"))
    module = tvm.IRModule({"one_call": code.with_attr("global_symbol", "one_call")})
    run = tvm.compile(module, target="llvm").jit()["one_call"]
    run(*[tvm.runtime.tensor(array) for array in [*(example.numpy() for example in examples), *literals]], output)
    scale = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
    return np.allclose(output.numpy(), expected, rtol=1e-4, atol=1e-5 * scale, equal_nan=True)


class _OneCall(nn.Module):
    """The call as a model, of tensors as they lie in memory: activations first, then constants."""

    def __init__(self, call: SlowCall, spelt_out: bool = False) -> None:
        super().__init__()
        self._call, self._spelt_out = call, spelt_out

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        operands = self._call.operands
        order = sorted(range(len(operands)), key=lambda index: operands[index].is_constant)
        tensors = [values[order.index(index)] for index in range(len(operands))]
        in_pytorchs_order = [
            tensor.permute(0, -1, *range(1, tensor.dim() - 1)) if operand.kind == IMAGE else tensor
            for operand, tensor in zip(operands, tensors, strict=True)
        ]
        result = self._call.run(in_pytorchs_order, self._spelt_out)
        return result.permute(0, *range(2, result.dim()), 1) if self._call.output.kind == IMAGE else result


def _one_function(model: nn.Module, examples: list[torch.Tensor], in_steps: bool) -> Function:
    """What computes the same as a model of a few operators."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, tuple(examples), strict=False)
        module = _imported(program.run_decompositions() if in_steps else program)
    inner, literals = _without_constants(module["main"])
    variables = [relax.Var(f"value_{i}", parameter.ty) for i, parameter in enumerate(inner.params)]
    del module["main"]
    builder = relax.BlockBuilder(module)
    function = builder.add_func(inner.without_attr("global_symbol").with_attr("Primitive", 1), "one_call")
    with builder.function("main", variables):
        with builder.dataflow():
            result = builder.emit_output(relax.Call(function, variables))
        builder.emit_func_output(result)
    fused = relax.transform.FuseTIR()(builder.get())
    codes = [code for code in fused.functions.values() if isinstance(code, tvm.tirx.PrimFunc)]
    if len(codes) != 1 or len(codes[0].params) != len(variables) + 1:
        raise ValueError(f"it becomes {len(codes)} functions")
    return codes[0].without_attr("global_symbol").with_attr("op_pattern", OPAQUE), literals


def _without_constants(function: relax.Function) -> tuple[relax.Function, tuple[np.ndarray, ...]]:
    """The function with its tables of numbers, which fusion does not take, as further parameters; and their values."""
    found: dict[relax.Var, np.ndarray] = {}

    @relax.expr_functor.mutator
    class Lifted(relax.PyExprMutator):  # type: ignore[misc]
        def visit_generic_const_(self, constant: relax.Expr) -> relax.Expr:
            variable = relax.Var(f"literal_{len(found)}", constant.ty)
            found[variable] = constant.value.numpy()
            return variable

    body = Lifted().visit_expr(function.body)
    return relax.Function([*function.params, *found], body, function.ret_ty), tuple(found.values())


def _imported(program: torch.export.ExportedProgram) -> tvm.IRModule:
    """A program as calls of functions of TVM's."""
    module = from_exported_program(program, unwrap_unit_return_tuple=True, custom_convert_map=OURS)
    passes = [
        relax.transform.DeadCodeElimination(["main"]),
        relax.transform.DecomposeOpsForInference(),
        relax.transform.LegalizeOps(),
    ]
    return tvm.transform.Sequential(passes)(module)


def _reduction(operator: Any) -> Any:
    """How the importer is told to translate a reduction over axes."""

    def convert(node: torch.fx.Node, importer: Any) -> relax.Var:
        value, *how = node.args
        return importer.block_builder.emit(operator(importer.env[value], *how))

    return convert


def _index_select(node: torch.fx.Node, importer: Any) -> relax.Var:
    """Places are never out of bounds here, and TVM warns of them in the mode that the importer chooses."""
    value, axis, places = node.args
    return importer.block_builder.emit(relax.op.take(importer.env[value], importer.env[places], axis, mode="clip"))


def _embedding(node: torch.fx.Node, importer: Any) -> relax.Var:
    """Rows of a table. Beyond it the importer's would read memory that is not there: the nearest row is taken."""
    table, places = (importer.env[each] for each in node.args[:2])
    emit, shape = importer.block_builder.emit, places.ty.shape.values
    flat = emit(relax.op.reshape(emit(relax.op.astype(places, "int32")), [-1]))
    rows = emit(relax.op.take(table, flat, axis=0, mode="clip"))
    return emit(relax.op.reshape(rows, [*shape, table.ty.shape.values[-1]]))


# Operators that the importer lacks, or translates in a way that we do without.
OURS = {
    "amax.default": _reduction(relax.op.max),
    "amin.default": _reduction(relax.op.min),
    "prod.dim_int": _reduction(relax.op.prod),
    "embedding.default": _embedding,
    "index_select.default": _index_select,
}
