import pytest

from examples.finetune import main
from segment_anything_transformers import (
    SegmentAnythingImageProcessor,
    SegmentAnythingModel,
    SegmentAnythingProcessor,
)
from tests.fake_backend import small_config
from tests.sample_folders import write_folder
from tests.tiny import random_model


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["decoder", "lora", "all"])
def test_the_example_saves_what_it_learnt(tmp_path, capsys, mode):
    model = random_model(small_config())
    model.save_pretrained(tmp_path / "tiny")
    processor = SegmentAnythingImageProcessor.from_config(model.config)
    SegmentAnythingProcessor(processor).save_pretrained(tmp_path / "tiny")
    data, held_out = (str(write_folder(tmp_path / name)) for name in ("data", "held_out"))
    (tmp_path / "data" / "masks" / "0.png").unlink()
    options = ["--model", str(tmp_path / "tiny"), "--output", str(tmp_path / "tuned")]
    options += ["--eval-data", held_out, "--mode", mode]
    main([data, "--steps", "1", *options])
    assert "skipped 0.png: it has no mask" in capsys.readouterr().err
    tuned = SegmentAnythingModel.from_pretrained(tmp_path / "tuned").state_dict()
    changed = {name for name, tensor in model.state_dict().items() if not tensor.equal(tuned[name])}
    assert any(name.startswith("mask_decoder") for name in changed)
    assert any(name.startswith("image_encoder") for name in changed) == (mode != "decoder")
    main([data, "--steps", "3", *options, "--resume"])
    resumed = SegmentAnythingModel.from_pretrained(tmp_path / "tuned").state_dict()
    assert any(not tensor.equal(tuned[name]) for name, tensor in resumed.items())
    assert (tmp_path / "tuned" / "checkpoints" / "checkpoint-3").is_dir()
