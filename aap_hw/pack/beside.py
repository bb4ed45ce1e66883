"""What PyTorch makes of the networks and layers of a pack, for comparison: eager, compiled, and cuDNN at its best.

Each comes as a list of calls of PyTorch's own operators, with the shapes of its weights, which are made up here: how
long it takes does not depend on them. As PyTorch is set, its convolutions of float32 may use TensorFloat-32, which our
kernels never do; the results say whether they did. Without PyTorch, or without its GPU, nothing is compared.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aap_hw.device.timing import Timing

# Calls before a function is timed, calls of one sample, and samples.
WARMUP, CALLS, SAMPLES = 20, 10, 50


def time_beside(
    entries: Sequence[Mapping[str, Any]],
    times_us: dict[str, dict[str, Any]],
    write: Callable[[], None],
    say: Callable[[str], None],
) -> None:
    """Time each entry in the ways it asks for, and add what was found to ``times_us`` under its name."""
    try:
        import torch
    except ImportError:
        say("PyTorch is not installed here: nothing is compared with it")
        return
    if not torch.cuda.is_available():
        say(f"PyTorch {torch.__version__} has no GPU here: nothing is compared with it")
        return
    for entry in entries:
        if entry["name"] not in times_us:
            say(f"timing {entry['name']} in PyTorch")
            about = {"torch": torch.__version__, "tf32": str(torch.backends.cudnn.allow_tf32)}
            times_us[entry["name"]] = {**about, **_ways(entry)}
            write()


def _ways(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Microseconds of a call in each way, or why a way could not be gone."""
    torch: Any = importlib.import_module("torch")

    type_ = getattr(torch, entry["program"]["type"])
    module = module_of(entry["program"]).to("cuda", type_)
    plain = [torch.rand(shape, device="cuda", dtype=type_) for shape in entry["shapes"]]
    channels_last = [each.to(memory_format=torch.channels_last) if each.ndim == 4 else each for each in plain]

    def graphs() -> float:
        # Captured once and replayed: no time is spent on launching, so that what is left is cuDNN's.
        flat = _time_us(_captured(module, plain))
        return min(flat, _time_us(_captured(module.to(memory_format=torch.channels_last), channels_last)))

    ways: dict[str, Callable[[], float]] = {
        "eager": lambda: _time_us(lambda: module(*plain)),
        "torch.compile": lambda: _time_us(_compiled(module, plain)),
        "cudnn": graphs,
    }
    found: dict[str, Any] = {}
    with torch.inference_mode():
        for name in entry["ways"]:
            torch.backends.cudnn.benchmark = name == "cudnn"
            try:
                found[name] = ways[name]()
            except Exception as problem:  # whatever PyTorch lacks there, the other ways are still worth knowing
                found[name] = f"{type(problem).__name__}: {str(problem).strip().splitlines()[0][:200]}"
    return found


def module_of(program: Mapping[str, Any]) -> Any:
    """The network of a program, in PyTorch, with made-up weights.

    Raises
    ------
    ValueError : it calls something else than PyTorch's operators.
    """
    import torch

    graph, values, root = torch.fx.Graph(), dict[str, Any](), torch.nn.Module()
    generator = torch.Generator().manual_seed(0)
    for number, node in enumerate(program["nodes"]):
        name = node["name"]
        if "shape" in node:
            value = torch.rand(node["shape"], generator=generator)
            # Variances are vectors, and positive; sums over matrices stay within what float16 holds.
            root.register_buffer(f"weight_{number}", 0.5 + value if value.ndim < 2 else 0.1 * (value - 0.5))
            values[name] = graph.get_attr(f"weight_{number}")
        elif "call" in node:
            space, _, operator = node["call"].partition(".")
            if space != "aten":
                raise ValueError(f"{node['call']} is no operator of PyTorch")
            function: Any = torch.ops.aten
            for part in operator.split("."):
                function = getattr(function, part)
            values[name] = graph.call_function(function, tuple(_values(node["arguments"], values)))
        else:
            values[name] = graph.placeholder(name)
    graph.output(tuple(values[name] for name in program["outputs"]))
    return torch.fx.GraphModule(root, graph).eval()


def _values(arguments: Sequence[Any], values: Mapping[str, Any]) -> list[Any]:
    """Arguments in which texts are the names of nodes."""
    return [
        values[each] if isinstance(each, str) else _values(each, values) if isinstance(each, list) else each
        for each in arguments
    ]


def _compiled(module: Any, inputs: Sequence[Any]) -> Callable[[], Any]:
    torch: Any = importlib.import_module("torch")
    function = torch.compile(module)
    function(*inputs)
    return lambda: function(*inputs)


def _captured(module: Any, inputs: Sequence[Any]) -> Any:
    torch: Any = importlib.import_module("torch")
    for _ in range(3):  # cuDNN tries its algorithms in the first call, which cannot be captured
        module(*inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        module(*inputs)
    return graph.replay


def _time_us(call: Callable[[], Any]) -> float:
    """Microseconds of a call between two CUDA events, by the same statistic as all latencies."""
    torch: Any = importlib.import_module("torch")

    for _ in range(WARMUP):
        call()
    samples = []
    for _ in range(SAMPLES):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        for _ in range(CALLS):
            call()
        last.record()
        last.synchronize()
        samples.append(first.elapsed_time(last) * 1e3 / CALLS)
    return Timing.of(samples).latency_us
