"""Mask logits at full size as a PyTorch tensor whose values are made when they are first asked for.

The mask-generation pipeline of transformers asks for the logits of all masks at full size, and then
keeps a few. Those that it drops before it looks at them never exist.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from .mask_upscaling import MaskUpscaler

try:
    import torch
    from torch.utils._pytree import tree_map
except ImportError:  # Transformers asks for every import that is not inside a `try`, but whoever
    raise  # has no PyTorch has no tensors either, and never comes here


class FullSizeLogits(torch.Tensor):
    """A float32 tensor (..., H0, W0) that any operation of PyTorch fills first.

    Attributes:
        low_resolution: (..., H', W') the logits that it is made of, in numpy.
        upscaler: What brings them to full size.
    """

    low_resolution: np.ndarray
    upscaler: MaskUpscaler

    @staticmethod
    def __new__(cls, low_resolution: np.ndarray, upscaler: MaskUpscaler) -> FullSizeLogits:
        """A tensor of the right shape, without memory."""
        shape = (*low_resolution.shape[:-2], *upscaler.original_hw)
        tensor = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=torch.float32)
        tensor.low_resolution, tensor.upscaler = low_resolution, upscaler
        return tensor

    @cached_property
    def whole(self) -> torch.Tensor:
        """The same as an ordinary tensor."""
        flat = self.low_resolution.reshape(-1, *self.low_resolution.shape[-2:])
        return torch.from_numpy(self.upscaler.whole(flat)).reshape(self.shape)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Runs the operation on ordinary tensors."""
        args, kwargs = tree_map(
            lambda value: value.whole if isinstance(value, cls) else value, (args, kwargs or {})
        )
        return function(*args, **kwargs)

    def numpy(self, *, force: bool = False) -> np.ndarray:
        """The values, as of any tensor."""
        return self.whole.numpy(force=force)

    def tolist(self) -> Any:
        """The values, as of any tensor."""
        return self.whole.tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        """That of an ordinary tensor."""
        return repr(self.whole)

    def __deepcopy__(self, memo: Any) -> torch.Tensor:
        """An ordinary tensor."""
        return self.whole.clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled as an ordinary tensor."""
        return self.whole.__reduce_ex__(protocol)
