"""What the processors are tested with: inputs of 96 x 64 pixels, masks of 24 x 16."""

import pytest
import torch

from segment_anything_transformers import (
    SegmentAnythingImageProcessor,
    SegmentAnythingModel,
    SegmentAnythingProcessor,
)
from tests.fake_backend import small_config
from tests.model.processing.inputs import SIZES, random_image


@pytest.fixture(scope="package")
def config():
    return small_config(encoder_patch_size=16)


@pytest.fixture(scope="package")
def image_processor(config):
    return SegmentAnythingImageProcessor.from_config(config)


@pytest.fixture(scope="package")
def processor(image_processor):
    return SegmentAnythingProcessor(image_processor)


@pytest.fixture(scope="package")
def model(config):
    torch.manual_seed(0)
    return SegmentAnythingModel(config).eval()


@pytest.fixture
def images():
    return [random_image(*size, seed=seed) for seed, size in enumerate(SIZES)]
