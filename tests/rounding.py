"""How far a model in half precision may be from itself in float32."""

from typing import Any

import numpy as np
import torch


def assert_within_rounding(computed: Any, exact: Any, dtype: torch.dtype) -> None:
    """Compares whole tensors by the spacing of numbers in `dtype`, of which a model adds up some.

    Args:
        computed: What was computed in `dtype`.
        exact: The same from float32.
        dtype: `torch.bfloat16` or `torch.float16`.

    Raises:
        AssertionError: The mean error is above 2 spacings at the mean value, or the largest above 8
            at the largest value.
    """
    exact = np.asarray(exact, np.float64)
    error = np.abs(np.asarray(computed, np.float64) - exact)
    spacing = torch.finfo(dtype).eps
    assert np.isfinite(error).all()
    assert error.max() <= 8 * spacing * np.abs(exact).max()
    assert np.sqrt(np.mean(error**2)) <= 2 * spacing * np.sqrt(np.mean(exact**2))
