"""Linear layers that multiply in 8 bits, for processors that are faster at it.

Written here because PyTorch's own, `torch.ao.quantization`, is deprecated in favour of a further
package. The scales are those of its dynamic quantisation: of the weights one an output, fixed; of
the inputs one a token, found anew in every call.
"""

from typing import Any

import torch
from torch import Tensor, nn

_LARGEST = 127


class Int8Linear(nn.Module):
    """A linear layer whose weights, and for the product its inputs, are 8-bit integers.

    Args:
        linear: The layer that it stands in for; its bias is shared.
    """

    weight: Tensor  # (in, out) int8
    scales: Tensor  # (out,)

    def __init__(self, linear: nn.Linear) -> None:
        """Rounds the weights."""
        super().__init__()
        weight, scales = _rounded(linear.weight.detach())  # (out, in), (out, 1)
        self.register_buffer("weight", weight.T.contiguous())
        self.register_buffer("scales", scales[:, 0])
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Maps the last axis; any leading axes. No gradients flow through it."""
        rows, scales = _rounded(x.detach().reshape(-1, x.shape[-1]))
        product = torch._int_mm(rows, self.weight) * scales * self.scales
        if self.bias is not None:
            product = product + self.bias
        return product.to(x.dtype).unflatten(0, x.shape[:-1])


def _rounded(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix as int8, and the scale (rows, 1) float32 that each of its rows is to be times."""
    matrix = matrix.float()
    smallest = torch.finfo(torch.float32).tiny  # a row of zeros has no scale of its own
    scales = matrix.abs().amax(dim=1, keepdim=True).clamp(min=smallest) / _LARGEST
    return (matrix / scales).round().to(torch.int8), scales


def use_int8_linears(model: Any) -> Any:
    """The model, the linear layers of whose encoder now compute in 8 bits.

    The decoder, which takes little time, stays exact.

    Args:
        model: A PyTorch `SegmentAnythingModel`. It is changed, and can no longer be trained.
    """
    for name, layer in [*model.image_encoder.named_modules()]:
        if isinstance(layer, nn.Linear):
            model.image_encoder.set_submodule(name, Int8Linear(layer))
    return model
