"""Which of the decoder's two forms runs: for tests that want one of them."""

from contextlib import contextmanager

from segment_anything_transformers.model.fast_decoder import FastDecoder
from segment_anything_transformers.model.mask_decoder import MaskDecoder


@contextmanager
def only(is_fast):
    """One form alone runs inside; the other one must not be asked."""
    decide, decode = MaskDecoder._is_fast, FastDecoder.decode
    calls = []
    MaskDecoder._is_fast = lambda self, embeddings: is_fast
    FastDecoder.decode = lambda *args: calls.append(1) or decode(*args)
    try:
        yield
    finally:
        MaskDecoder._is_fast, FastDecoder.decode = decide, decode
    assert bool(calls) == is_fast


@contextmanager
def counted():
    """A list that grows by an entry whenever the fast form decodes."""
    decode, calls = FastDecoder.decode, []
    FastDecoder.decode = lambda *args: calls.append(1) or decode(*args)
    try:
        yield calls
    finally:
        FastDecoder.decode = decode
