"""Layers that every part of the PyTorch model is made of, and how they are called.

A processor multiplies faster by an operation that takes a layer's weights, not the layer. It is
used where the layer is a plain one; adapters, hooks, quantised and other layers that stand in for
a plain one are always called, see `is_plain`.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda features: F.gelu(features, approximate="tanh"),
    "hard_swish": F.hardswish,
    "mish": F.mish,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "swish": F.silu,
}

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_HOOKS_ON_ALL = (
    nn.modules.module._global_forward_hooks,
    nn.modules.module._global_forward_pre_hooks,
)
_PLAIN_LAYERS = frozenset({nn.Linear, nn.Embedding})
_PLAIN_CONVOLUTIONS = frozenset({nn.Conv2d})


def is_plain(layer: nn.Module, types: frozenset[type] = _PLAIN_LAYERS) -> bool:
    """Whether a layer computes just what its weights say, so that these may be used without it.

    It does not where another class, a hook, a forward of its own or a parametrisation is in its
    place, or weights that are no plain tensors.

    Args:
        layer: The layer; its children do not count.
        types: Classes of layers that are plain.
    """
    state = layer.__dict__
    return (
        type(layer) in types
        and "forward" not in state
        and "weight" not in state  # pruned, or sharded
        and not any(map(state.__getitem__, _HOOKS))
        and not any(_HOOKS_ON_ALL)
        and all(type(p) is nn.Parameter for p in state["_parameters"].values() if p is not None)
    )


def is_traced() -> bool:
    """Whether a graph is being made: it must hold for other inputs, and stay small."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


@functools.cache
def _has_fused_product() -> bool:
    """Whether this build of PyTorch has oneDNN's product with what follows it in one pass."""
    rows = torch.ones(2, 3)
    try:
        fused = torch.ops.mkldnn._linear_pointwise(rows, rows, None, "gelu", [], "none")
    except (AttributeError, RuntimeError):
        return False
    return torch.allclose(fused, F.gelu(rows @ rows.T))


def _is_for_onednn(x: Tensor) -> bool:
    """Whether oneDNN should multiply, by an operation that has no gradients and is not exported.

    For fp32 on a processor PyTorch itself takes MKL, which uses half the vector width of AMD's
    processors, and a pass over the memory for an activation. Autocast would not see the operation.
    """
    if is_traced() or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    return x.device.type == "cpu" and x.dtype == torch.float32 and _has_fused_product()


def affine(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """As `F.linear`, maybe with the exact GELU of the result; faster on a processor."""
    if _is_for_onednn(x) and weight.dtype == x.dtype:
        activation = "gelu" if gelu else "none"
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "none")
    x = F.linear(x, weight, bias)
    return F.gelu(x) if gelu else x


def product(left: Tensor, right: Tensor) -> Tensor:
    """As `left @ right`; where each is one matrix, faster on a processor."""
    if not _is_for_onednn(left) or (left.shape[:-2].numel(), right.shape[:-2].numel()) != (1, 1):
        return left @ right
    leading = max(left.shape[:-2], right.shape[:-2], key=len)
    # oneDNN takes other strides too, and for some of them a hundred times as long.
    matrices = left.flatten(0, -2).contiguous(), right.flatten(0, -2).mT.contiguous()
    return affine(*matrices).view(*leading, left.shape[-2], right.shape[-1])


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """What a linear layer, or whatever stands in for it, makes of the last axis."""
    if _is_for_onednn(x) and is_plain(layer):
        return affine(x, layer.weight, layer.bias)  # type: ignore[arg-type]
    return layer(x)


def device_of(weight: Tensor) -> torch.device | str:
    """Where a layer with this weight takes its input.

    A weight that is offloaded lies on the meta device and comes when the layer is called, which
    then moves its input by itself.
    """
    return "cpu" if weight.device.type == "meta" else weight.device


def convolve(layer: nn.Module, image: Tensor) -> Tensor:
    """What a convolution, or whatever stands in for it, makes of an image (N, C, H, W).

    With a kernel of one pixel it is a product, which is faster on a processor.
    """
    is_product = getattr(layer, "kernel_size", None) == (1, 1) and _is_for_onednn(image)
    if is_product and is_plain(layer, _PLAIN_CONVOLUTIONS):
        weight: Tensor = layer.weight.flatten(1)  # type: ignore[operator]
        product = affine(image.permute(0, 2, 3, 1), weight, layer.bias)  # type: ignore[arg-type]
        return product.permute(0, 3, 1, 2)
    return layer(image)


def vectors(embedding: nn.Module, count: int = 1) -> Tensor:
    """The `count` learned vectors (count, D) of an embedding, or of whatever stands in for it."""
    weight: Tensor = embedding.weight  # type: ignore[assignment]
    if is_plain(embedding):
        return weight
    return embedding(torch.arange(count, device=device_of(weight)))


def is_in_pieces(layer: nn.Module, features: Tensor) -> bool:
    """Whether pieces that fit the cache are worth it: on a processor, not while training.

    A graph that is traced stays small, and drop rates act on whole images.
    """
    return features.device.type == "cpu" and not layer.training and not is_traced()


def drop_path(branch: Tensor, rate: float, is_training: bool) -> Tensor:
    """Leaves the branch out for some images in training (arXiv:1603.09382)."""
    if not is_training or rate == 0.0:
        return branch
    keep = 1.0 - rate
    kept = torch.rand(branch.shape[0], 1, 1, 1, device=branch.device) < keep
    return branch * kept.to(branch.dtype) / keep


def slices(count: int, length: int) -> list[slice]:
    """Parts of `length` that cover an axis of `count` entries, the last one maybe shorter."""
    return [slice(start, start + length) for start in range(0, count, length)]


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of (N, C, H, W), with Meta's epsilon of 1e-6."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        """Starts as the identity after normalisation."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, features: Tensor) -> Tensor:
        """Features of mean 0 and variance 1 over the channels, then scaled and shifted."""
        channels_last = features.permute(0, 2, 3, 1)
        normalised = F.layer_norm(
            channels_last, self.weight.shape, self.weight, self.bias, self.eps
        )
        return normalised.permute(0, 3, 1, 2)


def embedding_neck(width: int, depth: int) -> nn.Sequential:
    """The end of an image encoder, from its width to that of image embeddings (N, D, H'', W'')."""
    return nn.Sequential(
        nn.Conv2d(width, depth, kernel_size=1, bias=False),
        LayerNorm2d(depth),
        nn.Conv2d(depth, depth, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(depth),
    )


class Perceptron(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(
        self, width: int, hidden: int, activation: Callable[[Tensor], Tensor], drop: float = 0.0
    ) -> None:
        """Maps `width` to `hidden` and back; `drop` acts after each layer in training."""
        super().__init__()
        self.lin1 = nn.Linear(width, hidden)
        self.lin2 = nn.Linear(hidden, width)
        self.activation = activation
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Transforms each token on its own."""
        hidden = self.drop(self.activation(linear(self.lin1, x)))
        return self.drop(linear(self.lin2, hidden))


def biases_are_fused(query: Tensor) -> bool:
    """Whether attention with a bias is left to PyTorch: on a processor it is slower there."""
    return query.device.type != "cpu"


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    dropout: float,
    implementation: str | None,
) -> Tensor:
    """Softmax attention over the last but one axis; `bias` adds to the scaled scores."""
    if implementation != "eager" and (bias is None or biases_are_fused(query)):
        return F.scaled_dot_product_attention(query, key, value, bias, dropout)
    scaled = query * query.shape[-1] ** -0.5
    if bias is not None and bias.ndim == 3:
        # The bias is a fresh tensor, and a large one. Autocast leaves operations in place alone.
        scores = bias.baddbmm_(scaled.to(bias.dtype), key.mT.to(bias.dtype))
    else:
        scores = scaled @ key.mT if bias is None else scaled @ key.mT + bias
    return F.dropout(scores.softmax(-1), dropout) @ value
