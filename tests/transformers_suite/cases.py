"""Transformers' common tests, made out for SamModel and for ours, of the same size each.

    python -m tests.transformers_suite.cases models found.json

writes what becomes of them, in a process of their own: they change global settings, and carry
marks that are none of our pytest's.

SamModel and SamProcessor are the control: what they fail here is no fault of ours.
"""

import json
import sys
import unittest
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from transformers import SamConfig, SamModel, SamProcessor
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from segment_anything_transformers import (
    SegmentAnythingImageProcessor,
    SegmentAnythingModel,
    SegmentAnythingModelConfig,
    SegmentAnythingProcessor,
)
from tests.transformers_suite.distribution import common_tests
from tests.transformers_suite.running import outcomes

IMAGE_SIDE, PATCH, EMBED_DIM = 24, 2, 32
GRID = IMAGE_SIDE // PATCH
PROMPT_SETS = 3

Case = type[unittest.TestCase]


# ------------------------------------------------------------------------------------- models


class ModelTester:
    """What the common tests of models ask about the model that they are given."""

    batch_size = 2
    num_hidden_layers = 2
    num_attention_heads = 4
    hidden_size = 36
    is_training = False

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, Any]]:
        """A small configuration, and inputs for its model."""
        shape = (self.batch_size, 3, IMAGE_SIDE, IMAGE_SIDE)
        points = torch.rand(self.batch_size, PROMPT_SETS, 1, 2) * IMAGE_SIDE
        return self.get_config(), {"pixel_values": torch.rand(shape), "input_points": points}

    def get_config(self) -> Any:
        """A small configuration."""
        raise NotImplementedError


class SamModelTester(ModelTester):
    def get_config(self) -> SamConfig:
        return SamConfig(
            vision_config={
                "image_size": IMAGE_SIDE,
                "patch_size": PATCH,
                "hidden_size": self.hidden_size,
                "num_hidden_layers": self.num_hidden_layers,
                "num_attention_heads": self.num_attention_heads,
                "output_channels": EMBED_DIM,
                "num_pos_feats": EMBED_DIM // 2,
                "window_size": 5,
                "global_attn_indexes": [1],
            },
            prompt_encoder_config={
                "image_size": IMAGE_SIDE,
                "patch_size": PATCH,
                "mask_input_channels": 4,
                "hidden_size": EMBED_DIM,
            },
            mask_decoder_config={
                "hidden_size": EMBED_DIM,
                "mlp_dim": 64,
                "num_attention_heads": 4,
                "iou_head_hidden_dim": 32,
            },
        )


class OurModelTester(ModelTester):
    is_training = True

    def get_config(self) -> SegmentAnythingModelConfig:
        return SegmentAnythingModelConfig(
            input_size=(IMAGE_SIDE, IMAGE_SIDE),
            embed_dim=EMBED_DIM,
            encoder_patch_size=PATCH,
            encoder_embed_dim=self.hidden_size,
            encoder_nb_blocks=self.num_hidden_layers,
            encoder_nb_heads=self.num_attention_heads,
            encoder_window_size=5,
            encoder_global_attn_indices=(1,),
            prompt_mask_hidden_dim=4,
            decoder_nb_heads=4,
            decoder_mlp_channels=64,
            decoder_iou_hidden_dim=32,
        )


def _model_case(model: type, tester: type[ModelTester]) -> Case:
    """Every common test of models, for one class."""
    common: Any = common_tests("test_modeling_common")
    configuration: Any = common_tests("test_configuration_common")

    class ModelTest(common.ModelTesterMixin, unittest.TestCase):
        all_model_classes: ClassVar = (model,)
        test_resize_embeddings = False
        test_can_init_all_missing_weights_before_2023 = True

        def setUp(self) -> None:
            torch.manual_seed(0)
            self.model_tester = tester()
            self.config_tester = configuration.ConfigTester(
                self,
                config_class=type(self.model_tester.get_config()),
                has_text_modality=False,
                common_properties=["initializer_range"],
            )

        def test_config(self) -> None:
            self.config_tester.run_common_tests()

        def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
            inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
            if return_labels and tester.is_training:
                shape = (self.model_tester.batch_size, PROMPT_SETS, IMAGE_SIDE, IMAGE_SIDE)
                generator = torch.Generator().manual_seed(0)
                inputs["labels"] = (torch.rand(shape, generator=generator) > 0.5).long()
            return inputs

        def test_model_get_set_embeddings(self) -> None:
            # An image is no list of words: the layer before the blocks is no nn.Embedding.
            network = model(self.model_tester.get_config())
            assert isinstance(network.get_input_embeddings(), torch.nn.Module)
            assert network.get_output_embeddings() is None

        def test_attention_outputs(self) -> None:
            _check_attentions(self, model)

        def test_hidden_states_output(self) -> None:
            _check_hidden_states(self, model)

        def test_retain_grad_hidden_states_attentions(self) -> None:
            _check_retained_gradients(self, model)

    return ModelTest


def _asked(case: Any, model: type, way: str, *names: str) -> Any:
    """The output of a model with eager attention, asked by argument or by configuration."""
    config, inputs = case.model_tester.prepare_config_and_inputs_for_common()
    config.return_dict = True
    named = dict.fromkeys(names, True)
    if way == "configuration":
        for part in (config, *(getattr(config, key) for key in config.sub_configs)):
            for name in names:
                setattr(part, name, True)
        named = {}
    torch.manual_seed(0)
    network: Any = model
    return network._from_config(config, attn_implementation="eager").eval()(**inputs, **named)


def _check_attentions(case: Any, model: type) -> None:
    """The encoder's attention by block, (N windows heads, L, L), and the decoder's by layer."""
    heads, images = case.model_tester.num_attention_heads, case.model_tester.batch_size
    windows = 9  # of five patches in a grid of twelve, in both directions
    for way in ("argument", "configuration"):
        output = _asked(case, model, way, "output_attentions")
        shapes = [tuple(attention.shape) for attention in output.vision_attentions]
        window, whole = 5 * 5, GRID * GRID
        expected = [(images * windows * heads, window, window), (images * heads, whole, whole)]
        assert shapes == expected
        decoder = [tuple(attention.shape) for attention in output.mask_decoder_attentions]
        assert decoder == [(images * PROMPT_SETS, 1, whole, EMBED_DIM)] * 2
        assert output.vision_hidden_states is None
        sums = output.vision_attentions[0].sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums))


def _check_hidden_states(case: Any, model: type) -> None:
    """What enters the encoder's first block and what leaves each, (N, H'', W'', D)."""
    tester = case.model_tester
    for way in ("argument", "configuration"):
        output = _asked(case, model, way, "output_hidden_states")
        shapes = [tuple(state.shape) for state in output.vision_hidden_states]
        one = (tester.batch_size, GRID, GRID, tester.hidden_size)
        assert shapes == [one] * (tester.num_hidden_layers + 1)
        assert output.vision_attentions is None


def _check_retained_gradients(case: Any, model: type) -> None:
    output = _asked(case, model, "argument", "output_attentions", "output_hidden_states")
    kept = [output.vision_hidden_states[0], output.vision_attentions[0]]
    for tensor in kept:
        tensor.retain_grad()
    output.pred_masks.flatten()[0].backward()
    for tensor in kept:
        assert tensor.grad is not None
        assert tensor.grad.abs().max().item() > 0


# ---------------------------------------------------------------------------------- processors


def _image_processor_case(image_processor: type) -> Case:
    """Every common test of image processors, for one class."""
    common: Any = common_tests("test_image_processing_common")

    class Tester(common.ImageProcessingTester):
        size: ClassVar = {"longest_edge": 20}
        pad_size: ClassVar = {"height": 20, "width": 20}
        mask_size: ClassVar = {"longest_edge": 12}
        mask_pad_size: ClassVar = {"height": 12, "width": 12}

        def _get_image_processing_classes(self) -> dict[str, type]:
            return {"pil": image_processor}

        def prepare_image_processor_dict(self) -> dict[str, Any]:
            names = ("size", "pad_size", "mask_size", "mask_pad_size")
            return {name: getattr(self, name) for name in names}

        def expected_output_image_shape(self, images: Any) -> tuple[int, int, int]:
            return self.num_channels, self.pad_size["height"], self.pad_size["width"]

    class ImageProcessingTest(common.ImageProcessingTestMixin, unittest.TestCase):
        image_processor_tester_class = Tester

        def setUp(self) -> None:
            np.random.seed(0)
            super().setUp()

        def test_call_segmentation_maps(self) -> None:
            processor = image_processor(**self.image_processor_dict)
            pictures, maps = (
                self.image_processor_tester.prepare_semantic_segmentation_inputs_ade20k(
                    batched=True
                )
            )
            one = processor(pictures[0], maps[0], return_tensors="pt")
            both = processor(pictures, maps, return_tensors="pt")
            for count, encoding in enumerate((one, both), start=1):
                assert tuple(encoding["pixel_values"].shape) == (count, 3, 20, 20)
                # Ours have one more axis, of the prompt sets, as the masks that they belong to do.
                assert (len(encoding["labels"]), *encoding["labels"].shape[-2:]) == (count, 12, 12)
                assert encoding["labels"].dtype == torch.long

    return ImageProcessingTest


def _processor_case(kind: type, image_processor: type) -> Case:
    """Every common test of processors, for one class."""
    common: Any = common_tests("test_processing_common")

    class ProcessorTest(common.ProcessorTesterMixin, unittest.TestCase):
        processor_class = kind

        @classmethod
        def _setup_image_processor(cls) -> Any:
            return image_processor()

        def setUp(self) -> None:
            np.random.seed(0)

        def test_images_alone(self) -> None:
            processor, pictures = self.get_processor(), self.prepare_images_inputs(batch_size=1)
            inputs = processor(images=pictures, return_tensors="pt")
            alone = processor.image_processor(pictures, return_tensors="pt")
            assert inputs.keys() == alone.keys()
            for name, tensor in alone.items():
                torch.testing.assert_close(inputs[name], tensor)
            assert tuple(alone["pixel_values"].shape) == (1, 3, 1024, 1024)
            assert alone["original_sizes"].tolist() == [[30, 400]]
            assert alone["reshaped_input_sizes"].tolist() == [[77, 1024]]

        def test_segmentation_maps(self) -> None:
            processor, pictures = self.get_processor(), self.prepare_images_inputs(batch_size=1)
            maps = [np.random.randint(0, 255, (30, 400), np.uint8)]
            inputs = processor(images=pictures, segmentation_maps=maps, return_tensors="pt")
            alone = processor.image_processor(pictures, maps, return_tensors="pt")
            assert inputs.keys() == alone.keys()
            torch.testing.assert_close(inputs["labels"], alone["labels"])
            assert tuple(alone["labels"].shape[-2:]) == (256, 256)

        def test_post_process_masks(self) -> None:
            processor = self.get_processor()
            sizes, scaled, expected = [[1764, 2646]], [[683, 1024]], (1, 3, 1764, 2646)
            tensors = torch.tensor(sizes), torch.tensor(scaled)
            arrays = np.array(sizes), np.array(scaled)
            for masks in (torch.ones(1, 3, 5, 5), np.ones((1, 3, 5, 5), np.float32)):
                for given in ((sizes, scaled), tensors, arrays):
                    found = processor.post_process_masks([masks], *given)
                    assert tuple(found[0].shape) == expected
            with pytest.raises((TypeError, ValueError)):
                processor.post_process_masks([[1, 0], [0, 1]], *arrays)

    return ProcessorTest


# ------------------------------------------------------------------------------------- all


def cases(suite: str) -> tuple[Case, Case]:
    """The control's tests and ours: of "models", "image_processors" or "processors"."""
    if suite == "models":
        return (
            _model_case(SamModel, SamModelTester),
            _model_case(SegmentAnythingModel, OurModelTester),
        )
    if suite == "image_processors":
        return (
            _image_processor_case(SamImageProcessorPil),
            _image_processor_case(SegmentAnythingImageProcessor),
        )
    return (
        _processor_case(SamProcessor, SamImageProcessorPil),
        _processor_case(SegmentAnythingProcessor, SegmentAnythingImageProcessor),
    )


if __name__ == "__main__":
    suite, path = sys.argv[1:]
    Path(path).write_text(json.dumps([outcomes(case) for case in cases(suite)]))
