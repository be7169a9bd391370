"""The command that trained `sam_vit_t`: it goes on where it was cut off; its models ship."""

import sys
from argparse import Namespace

import numpy as np
import pytest
import torch

from examples import train_sam_vit_t
from examples.ship_sam_vit_t import ship
from segment_anything_transformers import SegmentAnythingModel
from tests.few_scenes import write_grey_square, write_scenes
from tests.tiny import random_model, shallow_config


@pytest.fixture
def initial(tmp_path):
    """A model to start from, of the kind of `sam_vit_t` but with a ninth of its weights."""
    fields = {"encoder_embed_dim": 64, "encoder_nb_heads": 2, "decoder_mlp_channels": 64}
    random_model(shallow_config("sam_vit_t", **fields)).save_pretrained(tmp_path / "initial")
    return tmp_path / "initial"


@pytest.fixture
def train(tmp_path, initial, monkeypatch):
    """Trains to a step, in a folder of its own; returns the checkpoint."""
    scenes = write_scenes(tmp_path)

    def run(name, steps, *options):
        line = f"train --scenes {scenes} --output {tmp_path / name} --initial {initial} --size 128 "
        line += f"--batch-size 1 --objects 2 --workers 0 --save-every 2 --steps {steps} "
        line += "--warmup-steps 2 --corrections 0"
        monkeypatch.setattr(sys, "argv", [*line.split(), *options])
        train_sam_vit_t.main()
        return torch.load(tmp_path / name / "last.pt", weights_only=True)

    return run


@pytest.mark.slow
def test_a_run_that_was_cut_off_ends_where_the_other_does(train, initial):
    at_once = train("at_once", 4)
    assert train("cut", 2)["step"] == 2
    resumed = train("cut", 4)
    assert resumed["step"] == at_once["step"] == 4
    for part in ("parts", "average"):
        assert resumed[part].keys() == at_once[part].keys()
        for name, weight in at_once[part].items():
            assert torch.equal(weight, resumed[part][name]), name
    start = SegmentAnythingModel.from_pretrained(initial).state_dict()
    assert any(not at_once["parts"][f"model.{name}"].equal(w) for name, w in start.items())


@pytest.mark.slow
def test_photographs_can_take_part(train, tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    mask = np.zeros((1, 64, 64), bool)
    mask[0, 8:48, 8:48] = True
    write_grey_square(folder, "square", mask)
    name = "model.mask_decoder.iou_prediction_head.layers.2.bias"
    scenes, photographs = (
        train(share, 2, "--photographs", str(folder), "--photograph-share", share)["parts"][name]
        for share in ("0", "1")
    )
    assert not scenes.equal(photographs)


def test_the_state_before_the_rate_falls_is_kept(train, tmp_path):
    train("falling", 3, "--decay-steps", "2")
    assert torch.load(tmp_path / "falling" / "stable.pt", weights_only=True)["step"] == 1


def test_the_rate_rises_stays_and_falls_to_zero():
    options = Namespace(warmup_steps=4, steps=20, decay_steps=5)
    shares = [train_sam_vit_t.learning_rate_share(step, step, options) for step in range(21)]
    assert shares[:4] == [0.25, 0.5, 0.75, 1.0]
    assert shares[4:16] == [1.0] * 12
    assert shares[16:] == [0.8, 0.6, 0.4, 0.2, 0.0]


@pytest.mark.parametrize(("optimizer", "kinds"), [("muon", 2), ("adamw", 1)])
def test_every_weight_has_one_optimizer(optimizer, kinds):
    model = SegmentAnythingModel.from_pretrained("sam_vit_t")
    options = Namespace(learning_rate=1e-3, weight_decay=0.05, optimizer=optimizer)
    optimizers = train_sam_vit_t.make_optimizers(model, options)
    assert len(optimizers) == kinds
    groups = [group for one in optimizers for group in one.param_groups]
    learning = [weight for group in groups for weight in group["params"]]
    assert {*map(id, learning)} == {*map(id, model.parameters())}
    assert len(learning) == len(list(model.parameters()))
    decay = {id(weight): group["weight_decay"] for group in groups for weight in group["params"]}
    assert decay[id(model.image_encoder.blocks[0].mlp.lin1.weight)] == 0.05
    assert decay[id(model.image_encoder.blocks[0].mlp.lin1.bias)] == 0


def test_what_is_a_new_models_is_refused_with_another(train, capsys):
    with pytest.raises(SystemExit):
        train("other", 2, "--random", "patches")
    assert "--random is a new model's" in capsys.readouterr().err


def test_with_minutes_the_time_decides():
    options = Namespace(warmup_steps=2, steps=100, decay_steps=50, minutes=2.0)
    scheduled = [train_sam_vit_t.scheduled_step(9, seconds, options) for seconds in (0, 60, 90)]
    assert scheduled == [0, 50, 75]
    shares = [train_sam_vit_t.learning_rate_share(9, step, options) for step in scheduled]
    assert shares == [1.0, 1.0, 0.5]
    # However long the first step took, the rate rises over steps.
    assert train_sam_vit_t.learning_rate_share(0, 50, options) == 0.5
    assert train_sam_vit_t.scheduled_step(9, 60, Namespace(minutes=None)) == 9


def test_a_run_ends_when_its_minutes_are_over(train):
    assert 1 <= train("timed", 10_000, "--minutes", "0.05")["step"] < 1000


def test_a_loss_that_is_not_finite_ends_the_run(train, monkeypatch, tmp_path):
    real = train_sam_vit_t.training_loss.rating_loss
    monkeypatch.setattr(
        train_sam_vit_t.training_loss, "rating_loss", lambda *given: real(*given) * float("nan")
    )
    with pytest.raises(FloatingPointError, match="The loss is nan at step 0"):
        train("broken", 2)
    assert not (tmp_path / "broken" / "last.pt").exists()


def test_stored_scenes_cannot_be_made_plain(train, capsys):
    with pytest.raises(SystemExit):
        train("plain", 2, "--plain", "0.2")
    assert "--plain is for --pools" in capsys.readouterr().err


def test_minutes_are_for_one_process(train, monkeypatch, capsys):
    monkeypatch.setattr(train_sam_vit_t, "PROCESSES", 2)
    with pytest.raises(SystemExit):
        train("two", 2, "--minutes", "1")
    assert "--minutes is for one process" in capsys.readouterr().err


def test_the_mean_of_models_is_shipped(tmp_path):
    model = SegmentAnythingModel.from_pretrained("sam_vit_t")
    for name, change in (("a", 0.25), ("b", -0.75)):
        with torch.no_grad():
            model.mask_decoder.iou_token.weight.add_(change)
        model.save_pretrained(tmp_path / name)
    ship([tmp_path / "a", tmp_path / "b"], tmp_path / "shipped")
    shipped = SegmentAnythingModel.from_pretrained(tmp_path / "shipped")
    start = SegmentAnythingModel.from_pretrained("sam_vit_t")
    token, expected = (one.mask_decoder.iou_token.weight for one in (shipped, start))
    torch.testing.assert_close(token, expected - 0.125, rtol=0, atol=1e-3)  # stored in half
    assert torch.equal(shipped.image_encoder.pos_embed, start.image_encoder.pos_embed)
