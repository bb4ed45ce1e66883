"""Networks of branches of whole modules: attention and MLPs behind norms, with a factor, and YOLO's bottlenecks."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 2, 6
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, -1))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(12, 20), nn.Linear(20, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.linspace(0.5, 1.5, 12))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class TransformerBlock(nn.Module):
    """As timm writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn, self.ls1 = nn.LayerNorm(12), Attention(), LayerScale()
        self.norm2, self.mlp, self.ls2 = nn.LayerNorm(12), Mlp(), LayerScale()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class ConvNextBlock(nn.Module):
    """A factor that is the block's own parameter, and another order of axes before and after."""

    def __init__(self, *factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.depthwise, self.norm, self.mlp = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.LayerNorm(12), Mlp()
        self.gamma = nn.Parameter(torch.linspace(0.5, 1.5, 12))

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))
        if self.factor:  # as timm writes it
            return x + y.permute(0, 3, 1, 2).mul(self.gamma.reshape(self.factor))
        return x + (y * self.gamma).permute(0, 3, 1, 2)


class Conv(nn.Module):
    def __init__(self, before: int, after: int, size: int = 1) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(before, after, size, padding=size // 2, bias=False), nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(6, hidden, 3), Conv(hidden, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x))


class C2f(nn.Module):
    """Shortcuts inside of a module that concatenates what they make."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(12, 12), Conv(24, 12)
        self.m = nn.ModuleList(Bottleneck(hidden) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class OfConvolutions(nn.Module):
    """Attention of convolutions, whose result no zeros in place of each of these give: a view splits their channels."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.key, self.each = 2, 3, 6
        self.qkv, self.proj, self.pe = Conv(12, 24), Conv(12, 12), nn.Conv2d(12, 12, 3, padding=1, groups=12)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        qkv = self.qkv(x).view(n, self.heads, 2 * self.key + self.each, h * w)
        q, k, v = qkv.split([self.key, self.key, self.each], 2)
        made = v @ (q.transpose(-2, -1) @ k).softmax(-1).transpose(-2, -1)
        return self.proj(made.reshape(n, c, h, w) + self.pe(v.reshape(n, c, h, w)))


class Psa(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.ffn = OfConvolutions(), nn.Sequential(Conv(12, 24), Conv(24, 12))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.ffn(x)


class OnTokens(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x.flatten(2).transpose(1, 2)).transpose(1, 2).unsqueeze(-1)


class Net(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 12, 3, padding=1), body, nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


BODIES: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    # branches that can be removed, by what their modules' paths begin with
    "timm's": (lambda: OnTokens(TransformerBlock()), ["body.blocks.0.norm1", "body.blocks.0.norm2"]),
    "ConvNeXt": (
        lambda: nn.Sequential(ConvNextBlock(), ConvNextBlock(1, -1, 1, 1)),
        ["body.0.depthwise", "body.1.depthwise"],
    ),
    "C2f": (lambda: C2f(6), ["body.m.0.cv1", "body.m.1.cv1"]),
    "PSA": (Psa, ["body.attn", "body.ffn"]),
    "C3k2": (lambda: C2f(3), ["body.m.0.cv1.conv", "body.m.1.cv1.conv"]),
}


class Behind(nn.Module):
    """An MLP behind a norm, in whose place something else may stand."""

    def __init__(self, mlp: Mlp) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(12), mlp

    def forward(self, x: Tensor) -> Tensor:
        return x + self.read(self.norm(x))

    def read(self, x: Tensor) -> Tensor:
        return self.mlp(x)
