"""The counts of channels that PyTorch's own layers keep beside their weights, which forward passes read."""

from __future__ import annotations

import torch
from torch import nn


def _weight_of(layer: nn.Module) -> torch.Tensor:
    """The weight of a layer, or what it is computed from: asking for it might change it (spectral norm in training)."""
    weight = {**layer._buffers, **layer._parameters}.get("weight")
    return max(layer.parameters(), key=lambda each: (each.dim(), each.numel())) if weight is None else weight


def refresh_attributes(module: nn.Module) -> None:
    """Bring the counts that a layer keeps in line with its weights; forward passes read `groups`."""
    if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
        axes = 2 if isinstance(module, nn.Linear) else 2 + len(module.kernel_size)
        if _weight_of(module).dim() != axes:  # several weights side by side, as its author has made it
            return
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        in_channels, out_per_group = _weight_of(module).shape[:2]
        if module.groups == module.in_channels:
            module.groups = in_channels
        module.in_channels, module.out_channels = in_channels, out_per_group * module.groups
    elif isinstance(module, nn.modules.conv._ConvNd):
        out_channels, in_per_group = _weight_of(module).shape[:2]
        if module.groups > 1 and module.in_channels == module.groups:
            module.groups = out_channels // (module.out_channels // module.groups)
        module.out_channels = out_channels
        module.in_channels = in_per_group * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = _weight_of(module).shape
    elif isinstance(module, (nn.modules.batchnorm._NormBase)):
        for tensor in (module.weight, module.running_mean):
            if tensor is not None:
                module.num_features = tensor.shape[0]
    elif isinstance(module, nn.GroupNorm):
        if module.affine:
            size = module.num_channels // module.num_groups
            module.num_channels = module.weight.shape[0]
            # One group stays one, over fewer channels; of several whole ones go.
            module.num_groups = module.num_channels // size if module.num_groups > 1 else 1
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        if module.weight is not None:
            module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        _refresh_recurrent(module)
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
    elif isinstance(module, nn.MultiheadAttention):
        module.embed_dim, module.kdim, module.vdim = _widths_read(module)
        module.head_dim = module.embed_dim // module.num_heads
    elif isinstance(module, nn.Transformer):
        inner = [each for each in module.modules() if isinstance(each, nn.MultiheadAttention)]
        if inner:
            module.d_model = _widths_read(inner[0])[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.shape[0]


def _widths_read(attention: nn.MultiheadAttention) -> list[int]:
    """How wide queries, keys and values are, of which the weights are in one parameter or in three."""
    weights = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
    return [(attention.in_proj_weight if each is None else each).shape[1] for each in weights]


def _refresh_recurrent(module: nn.RNNBase | nn.RNNCellBase) -> None:
    """A layer keeps its weights in a list, too, which is what it computes with."""
    weights = dict(module.named_parameters(recurse=False))
    if isinstance(module, nn.RNNBase) and not weights.keys() >= set(module._flat_weights_names):
        return  # it computes one of them, which is never cut
    suffix = "_l0" if isinstance(module, nn.RNNBase) else ""
    gates = 4 if isinstance(module, (nn.LSTM, nn.LSTMCell)) else 3 if isinstance(module, (nn.GRU, nn.GRUCell)) else 1
    rows, module.input_size = weights[f"weight_ih{suffix}"].shape
    module.hidden_size = rows // gates
    if isinstance(module, nn.RNNBase):
        module.proj_size = weights["weight_hr_l0"].shape[0] if module.proj_size else 0
        module._flat_weights = [weights[name] for name in module._flat_weights_names]
