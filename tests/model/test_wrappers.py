"""The model inside what shares its work among devices or processes, as one process shows it."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import distributed
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from segment_anything_transformers import (
    SAMAutomaticMaskGenerator,
    SAMPredictor,
    SegmentAnythingImageProcessor,
    SegmentAnythingProcessor,
)
from tests.fake_backend import small_config
from tests.tiny import random_images, random_model, random_prompts

IMAGE = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)


@pytest.fixture(scope="module")
def process_group():
    """A group of processes of which this is the only one."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def calls_of(model):
    """Arguments of calls that leave out weights, each call others."""
    pixels, prompts = random_images(model.config), random_prompts(model.config)
    with torch.no_grad():
        embeddings = model.get_image_embeddings(pixels)
    labels = torch.ones(*prompts["input_points"].shape[:2], *model.config.input_size)
    return [
        {"pixel_values": pixels, "input_points": prompts["input_points"]},
        {"pixel_values": pixels, "input_boxes": prompts["input_boxes"], "multimask_output": False},
        {"image_embeddings": embeddings, "input_masks": prompts["input_masks"]},
        {"pixel_values": pixels, "input_boxes": prompts["input_boxes"], "labels": labels},
    ]


def loss_of(output):
    return output.pred_masks.square().mean() if output.loss is None else output.loss


def test_distributed_training_looks_for_no_unused_weights(process_group):
    """With `find_unused_parameters` as it is by default, an own loop's second step would raise."""
    model = random_model(small_config())
    alone = copy.deepcopy(model)
    wrapped = DistributedDataParallel(model.train())
    for call in calls_of(alone):
        alone.zero_grad()
        loss_of(alone(**call)).backward()
        wrapped.zero_grad()
        loss_of(wrapped(**call)).backward()
        unused = 0
        for one, other in zip(alone.parameters(), model.parameters(), strict=True):
            unused += one.grad is None
            expected = torch.zeros_like(one) if one.grad is None else one.grad
            assert_close(other.grad, expected, rtol=1e-4, atol=1e-6)
        assert unused > 10


def sharded(model):
    for block in [block for block in model.modules() if is_whole(model, block)]:
        fully_shard(block)
    return fully_shard(model)


def sharded_as_before(model):
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"))


def is_whole(model, block):
    return type(block).__name__ in model._no_split_modules


@pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*NO_SHARD.*:UserWarning")
@pytest.mark.filterwarnings("ignore:.*returned a view tensor:UserWarning")  # blocks do
@pytest.mark.parametrize("shard", [sharded, sharded_as_before])
def test_sharded_weights_give_the_same_masks_and_learn(process_group, shard):
    model = random_model(small_config())
    call = calls_of(model)[0]
    expected = model(**call).pred_masks.detach()
    wrapped = shard(model.train())
    masks = wrapped(**call).pred_masks
    masks.square().mean().backward()
    assert all(weight.grad is not None for weight in wrapped.image_encoder.parameters())
    with torch.no_grad():
        again = wrapped(**call).pred_masks
    for found in (masks, again):
        assert_close(found, expected, rtol=0.0, atol=1e-5)


def replica(model):
    """What `DataParallel` makes of a model for each GPU: its weights are no parameters."""
    modules = [*model.modules()]
    copies = {module: module._replicate_for_data_parallel() for module in modules}
    for module, made in copies.items():
        for name, child in module._modules.items():
            setattr(made, name, copies[child])
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            setattr(made, name, None if tensor is None else tensor.clone())
    return copies[model]


@torch.no_grad()
def test_a_replica_of_data_parallel_gives_the_same_masks():
    model = random_model(small_config())
    other = replica(model)
    assert next(other.parameters(), None) is None
    for call in calls_of(model)[:3]:
        assert_close(other(**call).pred_masks, model(**call).pred_masks, rtol=0.0, atol=1e-5)


def test_predictor_generator_and_processor_go_to_other_processes():
    """A process that is spawned gets them as pickles."""
    model = random_model(small_config())
    predictor = SAMPredictor(model)
    predictor.set_image(IMAGE)
    click = np.array([[30, 20]])
    generator = SAMAutomaticMaskGenerator(
        model, points_per_side=2, pred_iou_thresh=0.0, stability_score_thresh=0.0
    )
    processor = SegmentAnythingProcessor(SegmentAnythingImageProcessor.from_config(model.config))
    others = pickle.loads(pickle.dumps((predictor, generator, processor)))
    for ours, theirs in zip(predictor(click), others[0](click), strict=True):
        np.testing.assert_array_equal(theirs, ours)
    records, of_other = generator.generate(IMAGE), others[1].generate(IMAGE)
    assert len(records) == len(of_other) > 0
    for ours, theirs in zip(records, of_other, strict=True):
        np.testing.assert_array_equal(theirs.pop("segmentation"), ours.pop("segmentation"))
        assert theirs == ours
    inputs, others_inputs = (one(IMAGE, return_tensors="pt") for one in (processor, others[2]))
    assert inputs.keys() == others_inputs.keys()
    for name, tensor in inputs.items():
        assert_close(others_inputs[name], tensor)
