"""Random kernels that move, resize, sample and combine values, recurrent layers, and convolutions of all ranks.

See `drawn`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from aap_hw.compile.front.views import NoView, View
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.library.folding import filters_first
from aap_hw.graph import WidthExpr
from tests.compile.drawn import BATCH, ODD, Case, after, numbers, of_convolution, rounding
from tests.compile.movements import moved_at_random
from tests.compile.random_kernels import EXPONENTIAL, HALF_ULP
from tests.compile.recurrent import states
from tests.compile.running import Convolution, OneSided
from tests.compile.transposed import Transposed
from tests.compile.transposed import kernels as transposed_kernels

SIZE, MOST_VALUES = st.integers(1, 14), 20000


def nhwc(image: Tensor) -> Tensor:
    return image.permute(0, 2, 3, 1)


@st.composite
def resizings(draw: st.DrawFn) -> Case:
    how = draw(st.sampled_from(["nearest", "nearest-exact", "bilinear", "bicubic", "smooth", "mean", "largest"]))
    size, to = (draw(SIZE), draw(SIZE)), (draw(st.integers(1, 30)), draw(st.integers(1, 30)))
    width, batch, corners = draw(ODD), draw(BATCH), how in ("bilinear", "bicubic") and draw(st.booleans())
    image = torch.randn(batch, width, *size, generator=numbers(draw))
    factors = ""
    if how in ("nearest", "nearest-exact", "bilinear", "bicubic") and not corners and draw(st.booleans()):
        scales = [draw(st.sampled_from([0.6, 1.3, 1.7, 2.0, 2.3])) if s > 1 else 1.7 for s in size]
        to = tuple(math.floor(s * f) for s, f in zip(size, scales, strict=True))
        made = F.interpolate(image, scale_factor=tuple(scales), mode=how)
        # Keys have the factors that PyTorch goes by, which forgets some of nearest pixels of images.
        is_forgotten = [how == "nearest" and t in (s, 2 * s) for s, t in zip(size, to, strict=True)]
        said = zip(is_forgotten, to, size, scales, strict=True)
        factors = ",".join(str(t / s if forgotten else f) for forgotten, t, s, f in said)
    elif how in ("mean", "largest"):
        made = (F.adaptive_avg_pool2d if how == "mean" else F.adaptive_max_pool2d)(image, to)
    elif how == "smooth":
        how = draw(st.sampled_from(["bilinear", "bicubic"]))
        to = to[0], max(to[1], 2)  # of one column PyTorch's result depends on the memory format
        made = F.interpolate(image, to, mode=how, antialias=True)
        how = f"smooth_{how}"
    else:
        made = F.interpolate(image, to, mode=how, align_corners=corners if how.startswith("bi") else None)
    terms = math.prod(math.ceil(s / t) + 4 for s, t in zip(size, to, strict=True))
    # Both compute places and weights in float32; the weights of a cubic sum up to less than 2 in size.
    picked = how in ("nearest", "nearest-exact", "largest")
    error = 0.0 if picked else 2 * (rounding(terms) + 2 * max(size) * HALF_ULP) * 2 * float(image.abs().max())
    name = how.replace("bilinear", "linear").replace("bicubic", "cubic").replace("-", "_")
    key = KernelKey.make("resize", size, batch, how=name + "_corners" * corners, to=to, factors=factors)
    return Case.of(key, (width, width), [nhwc(image)], nhwc(made), error)


@st.composite
def samplings(draw: st.DrawFn) -> Case:
    random, batch, width = numbers(draw), draw(BATCH), draw(ODD)
    if draw(st.booleans()):
        times, rows, taken = draw(st.integers(1, 4)), draw(ODD), draw(ODD)
        table = torch.randn(times, rows, width, generator=random)
        index = torch.randint(-rows, rows, (taken,), generator=random)
        kinds = draw(st.sampled_from([("w", "x"), ("x", "c"), ("x", "x")]))
        texts = {"table": f"{kinds[0]}[{times},{rows},o]", "index": f"{kinds[1]}[{taken}]"}
        key = KernelKey.make("gather", (), batch, **texts)
        return Case.of(key, (width, width), [table, index.float()], table[:, index], 0.0)
    size, to = (draw(SIZE), draw(SIZE)), (draw(SIZE), draw(SIZE))
    how, padding = draw(st.sampled_from(["bilinear", "nearest", "bicubic"])), draw(st.sampled_from(["zeros", "border"]))
    has_corners = draw(st.booleans())
    image, axes = torch.randn(batch, width, *size, generator=random), list[Tensor]()
    for length in (size[1], size[0]):
        # Places outside, too; none near the middle between two pixels, where rounding decides which is nearest.
        whole = torch.randint(-2, length + 2, (batch, *to), generator=random)
        at = whole + 0.8 * (torch.rand(batch, *to, generator=random) - 0.5)
        axes.append(2 * at / (length - 1) - 1 if has_corners and length > 1 else (2 * at + 1) / length - 1)
    if has_corners:  # an image of one row or column has no places along it
        axes = [torch.zeros_like(a) if n == 1 else a for a, n in zip(axes, (size[1], size[0]), strict=True)]
    grid = torch.stack(axes, -1)
    made = F.grid_sample(image.double(), grid.double(), how, padding, align_corners=has_corners)
    slope = 0.0 if how == "nearest" else 4 * (max(size) + 3) * 8 * HALF_ULP
    key = KernelKey.make(
        "grid_sample", size, batch, how=how, padding=padding, to=to, corners="1" if has_corners else ""
    )
    error = (slope + (how != "nearest") * rounding(4)) * float(image.abs().max())
    return Case.of(key, (width, width), [nhwc(image), grid], nhwc(made), error)


@st.composite
def recurrent_layers(draw: st.DrawFn) -> Case:
    op, hidden = draw(st.sampled_from(["lstm", "gru", "rnn_tanh", "rnn_relu"])), draw(ODD)
    projected = draw(st.integers(1, hidden - 1)) if op == "lstm" and hidden > 1 and draw(st.booleans()) else 0
    batch, steps, seed = draw(st.integers(1, 4)), draw(st.integers(1, 12)), draw(st.integers(0, 2**31))
    backwards, steps_first = draw(st.booleans()), draw(st.booleans())
    torch.manual_seed(seed)
    layer: nn.RNNBase = {
        "lstm": lambda *sizes: nn.LSTM(*sizes, proj_size=projected),
        "gru": nn.GRU,
        "rnn_tanh": nn.RNN,
        "rnn_relu": lambda *sizes: nn.RNN(*sizes, nonlinearity="relu"),
    }[op](1, hidden)
    gates = layer.weight_hh_l0.shape[0]
    given = 2 * torch.randn(batch, steps, gates)
    count = draw(st.booleans()) * (2 if op == "lstm" else 1)
    first = [torch.randn(batch, channels) for channels in (projected or hidden, hidden)[:count]]
    made, cells = states(layer.requires_grad_(False), given, first, backwards=backwards)
    largest = max(float(each.abs().max()) for each in (made, *first))
    of_sum = rounding(hidden + 2) * (layer.weight_hh_l0.abs().sum(1).max() * largest + given.abs().max() + 1)
    # A state is read again by a few steps, in which its error shrinks.
    error = 4 * float(of_sum + EXPONENTIAL * max(largest, 1))
    if projected:
        error *= 1 + float(layer.weight_hr_l0.abs().sum(1).max())
    if steps_first:
        given, made = given.transpose(0, 1), made.transpose(0, 1)
    attributes = {"direction": "backwards" if backwards else "", "order": "steps_first" if steps_first else ""}
    made = made.unsqueeze(2)
    if op == "lstm" and not projected and draw(st.booleans()):
        assert cells is not None
        attributes["cells"] = "last"
        made = torch.cat([made.flatten(0, -2), cells])[None, :, None]
    key = KernelKey.make(op, (steps, 1), batch, first="given" if first else "", **attributes)
    operands = [given.unsqueeze(2), *first, layer.weight_hh_l0, layer.bias_hh_l0]
    if projected:
        key, operands = key.having(states="projected"), [*operands, layer.weight_hr_l0]
    return Case.of(key, (gates, projected or hidden), operands, made, error)


def lying(draw: st.DrawFn, shape: list[int]) -> tuple[View, Tensor, Tensor]:
    """A view of numbered values that lie in some order of axes, the row of them, and the values in this shape."""
    order = draw(st.permutations(range(len(shape))))
    row = torch.arange(math.prod(shape))
    values = row.reshape([shape[axis] for axis in order]).permute([order.index(axis) for axis in range(len(shape))])
    return View.of("x", [WidthExpr(size) for size in shape], shape, order, "x"), row, values


def moved(draw: st.DrawFn) -> tuple[View, Tensor, Tensor]:
    """The same behind a few movements."""
    shape = draw(st.lists(st.one_of(st.integers(1, 6), st.integers(1, 40)), min_size=1, max_size=4))
    while math.prod(shape) > MOST_VALUES:
        shape = shape[:-1]
    view, row, values = lying(draw, shape)
    for _ in range(draw(st.integers(0, 6))):
        try:
            found = moved_at_random(draw, view, values)
        except NoView:
            continue
        if found[1].numel() < MOST_VALUES:
            view, values = found
    return view, row, values


@st.composite
def copies(draw: st.DrawFn) -> Case:
    parts = [moved(draw)]
    _, _, first = parts[0]
    # Others lie beside it in each of the rows that some of its axes make.
    leading = first.shape[: draw(st.integers(0, first.dim()))]
    for _ in range(draw(st.integers(0, 2)) if math.prod(leading) < 1000 else 0):
        parts.append(lying(draw, [*leading, *draw(st.lists(st.integers(1, 12), max_size=2))]))
    texts = [view.text(range(values.dim()), WidthExpr(1), WidthExpr(1), {}) for view, _, values in parts]
    rows = math.prod(leading) if len(parts) > 1 else 1
    made = torch.cat([values.reshape(rows, -1) for _, _, values in parts], 1) if len(parts) > 1 else first
    key = KernelKey.make("strided_copy", (), 1, parts="".join(texts), rows=rows if rows > 1 else "")
    return Case.of(key, (1, 1), [row.float() for _, row, _ in parts], made, 0.0)


@st.composite
def paddings(draw: st.DrawFn) -> Case:
    (height, width), channels, batch = (draw(SIZE), draw(SIZE)), draw(ODD), draw(BATCH)
    mode = draw(st.sampled_from(["constant", "reflect", "replicate", "circular"]))
    most = {"reflect": (height - 1, width - 1), "circular": (height, width)}.get(mode, (9, 9))
    (top, bottom), (left, right) = ([draw(st.integers(0, m)) for _ in range(2)] for m in most)
    value = draw(st.sampled_from([0.0, -0.5])) if mode == "constant" else 0.0
    image = torch.randn(batch, channels, height, width, generator=numbers(draw))
    made = F.pad(image, (left, right, top, bottom), mode, value if mode == "constant" else None)
    how = {"mode": mode if mode != "constant" else "", "value": value or ""}
    key = KernelKey.make("pad", (height, width), batch, padding=(top, left), padding_end=(bottom, right), **how)
    return Case.of(key, (channels, channels), [nhwc(image)], nhwc(made), 0.0)


@st.composite
def lines(draw: st.DrawFn) -> Case:
    """Convolutions of one row, and of images with several channels made of each or padded on one side."""
    kind = draw(st.sampled_from(["line", "line", "multiplied", "transposed", "one-sided"]))
    width, kernel, stride = draw(ODD), draw(st.integers(1, 9)), draw(st.integers(1, 3))
    length = kernel + draw(st.integers(0, 30))
    steps, batch = draw(st.sampled_from([("bias",), ("bias", "add", "relu"), ("bias", "silu")])), draw(BATCH)
    if kind == "transposed":
        beyond = (0, draw(st.integers(0, stride - 1)))
        geometry = (1, kernel), (1, stride), (0, (kernel - 1) // 2)
        return of_convolution(Transposed(width, draw(ODD), (1, length), *geometry, (1, 1), steps, batch, beyond=beyond))
    if kind == "one-sided":
        ends = draw(st.integers(0, 3)), draw(st.integers(0, 3))
        geometry = (3, 3), (stride, stride), (draw(st.integers(0, 2)), 1)
        return of_convolution(OneSided(width, draw(ODD), (7, 9), *geometry, (1, 1), steps, batch, ends=ends))
    if kind == "multiplied":
        times, geometry = draw(st.integers(1, 3)), ((3, kernel), (1, stride), (1, kernel // 2))
        return of_convolution(
            Convolution(width, width * times, (5, length), *geometry, (1, 1), steps, batch, depthwise=True)
        )
    dilation = draw(st.integers(1, 2))
    geometry = (1, kernel), (1, stride), (0, draw(st.integers(dilation * kernel // 2, 9)))
    return of_convolution(
        Convolution(width, draw(ODD), (1, length), *geometry, (1, dilation), steps, batch, depthwise=False)
    )


@st.composite
def volumes(draw: st.DrawFn) -> Case:
    """Convolutions of volumes, also transposed ones."""
    is_transposed, groups, random = draw(st.booleans()), draw(st.sampled_from([1, 1, 1, 2])), numbers(draw)
    read, made, batch = groups * draw(st.integers(1, 40)), groups * draw(st.integers(1, 40)), draw(BATCH)
    triple = st.tuples(*[st.integers(1, 3)] * 3)
    kernel, stride, size = draw(triple), draw(triple), draw(st.tuples(*[st.integers(3, 7)] * 3))
    padding = tuple(draw(st.integers(0, (k - 1) // 2)) for k in kernel)
    steps = draw(st.sampled_from([(), ("relu",), ("silu",)]))
    image, bias = torch.randn(batch, read, *size, generator=random), torch.randn(made, generator=random)
    weight_shape = (read, made // groups) if is_transposed else (made, read // groups)
    weight = torch.randn(*weight_shape, *kernel, generator=random)
    how: dict[str, object] = {
        "kernel": kernel,
        "stride": stride,
        "padding": padding,
        "groups": groups if groups > 1 else "",
    }
    convolve: Callable[[Tensor, Tensor, Tensor], Tensor]
    if is_transposed:
        beyond = tuple(draw(st.integers(0, s - 1)) for s in stride)
        how |= {"output_padding": beyond if any(beyond) else ""}

        def convolve(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
            return F.conv_transpose3d(x, w, b, stride, padding, beyond, groups)

        op, given = "conv_transpose3d", filters_first(weight, groups)
    else:
        dilation = draw(st.tuples(*[st.integers(1, 2)] * 3)) if min(size) > 4 else (1, 1, 1)
        how |= {"dilation": dilation}

        def convolve(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
            return F.conv3d(x, w, b, stride, padding, dilation, groups)

        op, given = "conv3d", weight
    expected = convolve(image.double(), weight.double(), bias.double())
    sizes = convolve(image.double().abs(), weight.double().abs(), bias.double().abs())
    expected, error = after(steps, expected, rounding(read // groups * math.prod(kernel) + 1) * sizes)
    key = KernelKey.make(op, size, batch, epilogue=("bias", *steps), **how)
    last = (0, 2, 3, 4, 1)
    return Case.of(key, (read, made), [image.permute(last), given, bias], expected.permute(last), error.permute(last))


@st.composite
def transposed(draw: st.DrawFn) -> Case:
    return of_convolution(draw(transposed_kernels()))
