"""Training on parts of a large picture: every position is that in the whole."""

import pytest
import torch
from torch.testing import assert_close

from examples.training_frame import enlarged, move_frame, use_frame
from segment_anything_transformers import SegmentAnythingModel
from segment_anything_transformers.model import image_encoder

SIDE, PATCH = 128, 16


@pytest.fixture
def model(monkeypatch):
    # `use_frame` replaces it for good, and other tests of this process need it.
    monkeypatch.setattr(image_encoder, "_relative_positions", image_encoder._relative_positions)
    return SegmentAnythingModel.from_pretrained("sam_vit_t", input_size=(SIDE, SIDE)).eval()


@torch.no_grad()
def test_a_view_of_the_whole_is_the_picture(model):
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[[10.0, 20.0, 90.0, 100.0]]])
    expected = model(pixels, input_boxes=boxes)
    use_frame(model)
    assert_close(model(pixels, input_boxes=boxes).pred_masks, expected.pred_masks)


@torch.no_grad()
def test_a_part_has_the_positions_of_the_whole(model):
    layer, points = model.prompt_encoder.pe_layer, torch.tensor([[0.25, 0.5], [1.0, 0.0]])
    in_the_whole = layer(torch.tensor([[0.625, 0.25], [1.0, 0.0]]))
    use_frame(model)
    move_frame(model, SIDE // 2, x=1.0, y=0.0)  # the upper right quarter
    assert_close(layer(points), in_the_whole)
    positions = model.image_encoder._positions(4, 4)
    assert torch.equal(positions, model.image_encoder.pos_embed[:, :4, 4:])
    table = model.image_encoder.blocks[1].attn.rel_pos_h
    distances = image_encoder._relative_positions(table, 4)
    assert torch.equal(distances[3, 0], table[SIDE // PATCH - 1 + 3])


def test_an_enlarged_model_keeps_its_distances(model, tmp_path):
    model.save_pretrained(tmp_path)
    large = enlarged(str(tmp_path), 2 * SIDE, "eager")
    assert large.config.input_size == (2 * SIDE, 2 * SIDE)
    small_table = model.image_encoder.blocks[1].attn.rel_pos_h
    table = large.image_encoder.blocks[1].attn.rel_pos_h
    grid = SIDE // PATCH
    assert len(table) == 4 * grid - 1
    assert torch.equal(table[grid : 3 * grid - 1], small_table)
    assert torch.equal(table[0], small_table[0])
    frequencies = [
        part.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix for part in (model, large)
    ]
    assert_close(frequencies[1], 2.0 * frequencies[0])
