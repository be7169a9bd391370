"""The rating of the masks, trained alone."""

import sys

import pytest
import torch
from torch.utils.data import default_collate

from examples import train_rating
from examples.scene_dataset import SceneDataset, ViewOptions
from examples.training_loss import first_prompts, normalise
from segment_anything_transformers import SegmentAnythingModel
from tests.few_scenes import write_scenes

SIZE, OBJECTS = 128, 2


@pytest.fixture
def scenes(tmp_path):
    return write_scenes(tmp_path)


@pytest.fixture
def model(tmp_path):
    """The model in the package, of a small input, and it has forgotten how to rate."""
    torch.manual_seed(0)
    model = SegmentAnythingModel.from_pretrained("sam_vit_t", input_size=(SIZE, SIZE)).eval()
    for parameter in model.mask_decoder.iou_prediction_head.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(tmp_path / "model")
    return model


def one_batch(scenes, seed):
    data = SceneDataset([scenes], ViewOptions(size=SIZE, objects=OBJECTS), 3, seed)
    return default_collate([data[number] for number in range(3)])


@torch.no_grad()
def test_what_is_read_gives_the_scores(model, scenes):
    batch = one_batch(scenes, seed=1)
    rated = train_rating.answers(model, batch)
    assert rated.iou.shape == (3 * 3 * OBJECTS, 4)  # a click, a box, and one of them corrected
    assert ((rated.iou >= 0) & (rated.iou <= 1)).all()
    pixels = normalise(batch["pixels"], batch["inside"], model.config)
    prompts = first_prompts(batch["points"], batch["boxes"])
    _, scores = model.decode(model.get_image_embeddings(pixels), *prompts)
    read = model.mask_decoder.iou_prediction_head(rated.tokens)[: 3 * 2 * OBJECTS]
    torch.testing.assert_close(read, scores.flatten(0, 1))


def test_only_the_rating_learns(model, scenes, tmp_path, monkeypatch, capsys):
    command = f"train_rating --scenes {scenes} --model {tmp_path / 'model'} --output "
    command += f"{tmp_path / 'rated'} --views 12 --size {SIZE} --objects {OBJECTS} --epochs 20 "
    monkeypatch.setattr(sys, "argv", (command + "--batch-size 16 --learning-rate 3e-3").split())
    train_rating.main()
    trained = SegmentAnythingModel.from_pretrained(tmp_path / "rated").eval()
    before, after = model.state_dict(), trained.state_dict()
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if "iou_prediction_head" in name}
    unseen = train_rating.answers(model, one_batch(scenes, seed=1))
    losses = [
        train_rating.figures(one.mask_decoder.iou_prediction_head, unseen)[0]
        for one in (model, trained)
    ]
    assert losses[1] < 0.5 * losses[0]
    assert capsys.readouterr().out.count("epoch") == 20
