import copy
import pickle

import numpy as np
import torch

from segment_anything_transformers.model.full_size_logits import FullSizeLogits
from segment_anything_transformers.model.mask_upscaling import MaskUpscaler


def logits_and_values():
    upscaler = MaskUpscaler((24, 16), (96, 64), (41, 64), (70, 110))
    low_resolution = np.random.default_rng(0).normal(size=(2, 3, 24, 16)).astype(np.float32)
    values = upscaler.whole(low_resolution.reshape(6, 24, 16)).reshape(2, 3, 70, 110)
    return FullSizeLogits(low_resolution, upscaler), torch.from_numpy(values)


def test_nothing_is_made_before_it_is_asked_for():
    logits, values = logits_and_values()
    assert isinstance(logits, torch.Tensor)
    assert (logits.shape, logits.dtype) == (values.shape, values.dtype)
    assert logits.device == values.device
    assert "whole" not in vars(logits)
    assert torch.equal(logits[1], values[1])
    assert "whole" in vars(logits)


def test_every_use_sees_the_values():
    logits, values = logits_and_values()
    assert torch.equal(logits > 0, values > 0)
    assert torch.equal(1 + logits, 1 + values)
    assert torch.equal(torch.cat([logits, values]), torch.cat([values, values]))
    assert torch.equal(logits.flatten(0, 1).mean(0), values.flatten(0, 1).mean(0))
    np.testing.assert_array_equal(logits.numpy(), values.numpy())
    np.testing.assert_array_equal(np.asarray(logits), values.numpy())
    assert logits.tolist() == values.tolist()
    assert repr(logits) == repr(values)
    assert torch.equal(logits.detach().cpu().half(), values.half())
    assert torch.equal(next(iter(logits)), values[0])
    assert type(logits.clone()) is torch.Tensor


def test_copies_are_ordinary_tensors():
    logits, values = logits_and_values()
    for copied in (copy.deepcopy(logits), pickle.loads(pickle.dumps(logits))):
        assert type(copied) is torch.Tensor
        assert torch.equal(copied, values)
