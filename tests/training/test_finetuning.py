"""Fine-tuning a tiny model on a folder: what learns, what is kept, what is resumed."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from transformers import pipeline

from segment_anything_transformers import (
    SegmentAnythingImageProcessor,
    SegmentAnythingModel,
    SegmentAnythingProcessor,
)
from segment_anything_transformers.data.annotations import folder_samples
from segment_anything_transformers.data.samples import AnnotationError, Samples
from segment_anything_transformers.evaluation.measures import masks_iou
from segment_anything_transformers.model import loss_segment_anything as losses
from segment_anything_transformers.model.image_encoder import EncoderAttention
from segment_anything_transformers.model.mask_decoder import MaskDecoder
from segment_anything_transformers.training import interactive_model
from segment_anything_transformers.training.batches import Collator, ObjectsDataset
from segment_anything_transformers.training.finetuning import (
    SegmentAnythingTrainer,
    find_checkpoint,
    finetune,
)
from segment_anything_transformers.training.interactive_model import (
    InteractiveSegmentAnythingModel,
    as_class,
    prepare_model,
    without_adapters,
)
from tests.environments import run_python
from tests.fake_backend import small_config
from tests.made_once import made_once
from tests.sample_folders import rectangles, write_folder
from tests.tiny import random_model

QUIET = {"use_cpu": True, "disable_tqdm": True, "log_level": "error", "seed": 1}
MODES = ("all", "decoder", "lora")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("training") / "data", objects=3)


@pytest.fixture
def model():
    return random_model(small_config())


def tune(model, folder, output, **options):
    options = {"max_steps": 4, "clicks": 1, "objects_per_image": 2, **QUIET, **options}
    return finetune(model, folder, output, **options)


def uneven_samples():
    """Pictures with one, four and two objects."""
    pictures = [rectangles(seed, count=count) for seed, count in enumerate((1, 4, 2))]
    return Samples(["1", "4", "2"], lambda index: (*pictures[index], None))


def draw_the_same(monkeypatch):
    """Prompts are then the same for a picture in any batch."""
    monkeypatch.setattr(losses, "_uniform", lambda shape, device: torch.full(shape, 0.25))
    monkeypatch.setattr(losses, "_normal", lambda shape, device: torch.zeros(shape))


def logged(log, name):
    return [entry[name] for entry in log if name in entry]


def processor_of(model):
    return SegmentAnythingProcessor(SegmentAnythingImageProcessor.from_config(model.config))


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_what_is_frozen_stays_bit_equal(model, folder, tmp_path, mode):
    before = weights(model)
    tuned = tune(model, folder, tmp_path / "tuned", mode=mode, learning_rate=1e-2).model
    assert type(tuned) is SegmentAnythingModel
    changed = {name for name, tensor in weights(tuned).items() if not tensor.equal(before[name])}
    parts = {name.split(".")[0] for name in changed}
    expected = {
        "all": {"image_encoder", "prompt_encoder", "mask_decoder"},
        "decoder": {"mask_decoder"},
        "lora": {"image_encoder", "mask_decoder"},
    }
    assert parts == expected[mode]
    of_encoder = {name for name in changed if name.startswith("image_encoder")}
    if mode == "lora":
        assert of_encoder == {
            f"image_encoder.blocks.{n}.attn.{layer}.weight"
            for n in (0, 1)
            for layer in ("qkv", "proj")
        }
    assert "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix" not in changed


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_the_result_is_a_model_like_any_other(model, folder, tmp_path, mode):
    result = tune(model, folder, tmp_path / "tuned", mode=mode, eval_data=folder)
    loaded = SegmentAnythingModel.from_pretrained(tmp_path / "tuned")
    for name, tensor in result.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    config = json.loads((tmp_path / "tuned" / "config.json").read_text())
    assert config["architectures"] == ["SegmentAnythingModel"]
    processor = SegmentAnythingProcessor.from_pretrained(tmp_path / "tuned")
    assert processor.image_processor.size["longest_edge"] == 96
    measured = [entry for entry in result.log if "eval_iou_box" in entry]
    assert [entry["step"] for entry in measured] == [0, 1, 2, 3, 4]
    assert all(0 <= entry["eval_iou_click"] <= 1 for entry in measured)
    assert np.isfinite(logged(result.log, "loss")).all()


@torch.no_grad()
def measured(model, items):
    """A batch, and the IoU (N, P, 2) of its masks: the box's, and the click's that is rated best.

    At the size of the low-resolution masks: the processor's labels against the logits.
    """
    batch = Collator(processor_of(model), with_prompts=True)(items)
    pixels = batch["pixel_values"]
    of_box = model(pixels, input_boxes=batch["input_boxes"], multimask_output=False).pred_masks
    points = {name: batch[name] for name in ("input_points", "input_labels")}
    of_click = model(pixels, **points)
    rated_best = of_click.iou_scores.argmax(-1)[..., None, None, None]
    logits = torch.cat([of_box, of_click.pred_masks.take_along_dim(rated_best, 2)], dim=2)
    truth = batch["labels"][:, :, None] > 0
    masks = (logits > 0) & (batch["labels"][:, :, None] >= 0)
    return batch, (masks & truth).sum((-2, -1)) / (masks | truth).sum((-2, -1))


def test_metrics_are_the_predictors(model, folder):
    interactive = as_class(model, InteractiveSegmentAnythingModel)
    dataset = ObjectsDataset(folder_samples(folder))
    batch, expected = measured(model, [dataset[0], dataset[1]])
    with torch.no_grad():
        assert_close(interactive(**batch)["ious"], expected)
    assert batch["input_points"].shape == (2, 3, 1, 2)


def test_what_pads_batches_is_not_measured(model, folder, tmp_path):
    """Of pictures with different numbers of objects, two at once: the mean is that of the seven."""
    samples = uneven_samples()
    expected = torch.cat([measured(model, [item])[1][0] for item in ObjectsDataset(samples)])
    assert expected.shape == (7, 2)
    options = {"eval_data": samples, "per_device_eval_batch_size": 2, "max_steps": 1}
    log = tune(model, folder, tmp_path / "tuned", **options).log
    for name, ious in zip(("box", "click"), expected.T, strict=True):
        assert log[0][f"eval_iou_{name}"] == pytest.approx(ious.mean().item(), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_run_that_was_cut_off_ends_where_the_other_does(
    model, folder, tmp_path, mode, monkeypatch
):
    options = {"mode": mode, "max_steps": 6, "save_steps": 2, "gradient_accumulation_steps": 2}
    whole = tune(random_model(small_config()), folder, tmp_path / "whole", **options)
    step, count = SegmentAnythingTrainer.training_step, iter(range(100))

    def fail(self, *args, **kwargs):
        if next(count) == 9:  # in the fifth step
            raise RuntimeError("power cut")
        return step(self, *args, **kwargs)

    monkeypatch.setattr(SegmentAnythingTrainer, "training_step", fail)
    with pytest.raises(RuntimeError, match="power cut"):
        tune(model, folder, tmp_path / "cut", **options)
    monkeypatch.undo()
    (tmp_path / "cut" / "checkpoints" / "checkpoint-5").mkdir()  # was not written to its end
    resumed = tune(random_model(small_config()), folder, tmp_path / "cut", resume=True, **options)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name
    losses = [logged(run.log, "loss") for run in (whole, resumed)]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_a_run_that_was_killed_ends_where_the_other_does(folder, tmp_path):
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.training import test_finetuning as tests
step, count = tests.SegmentAnythingTrainer.training_step, iter(range(100))
def kill(self, *args, **kwargs):
    if next(count) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *args, **kwargs)
tests.SegmentAnythingTrainer.training_step = kill
model = tests.random_model(tests.small_config())
tests.tune(model, {str(folder)!r}, {str(tmp_path / "cut")!r}, save_steps=2)
"""
    with pytest.raises(AssertionError):
        run_python(code)
    assert Path(find_checkpoint(tmp_path / "cut" / "checkpoints")).name == "checkpoint-2"
    models = [random_model(small_config()) for _ in range(2)]
    whole = tune(models[0], folder, tmp_path / "whole", save_steps=2).model
    resumed = tune(models[1], folder, tmp_path / "cut", save_steps=2, resume=True).model
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


def test_an_earlier_run_is_not_overwritten(model, folder, tmp_path):
    tune(model, folder, tmp_path / "tuned", max_steps=1)
    with pytest.raises(ValueError, match="checkpoints of an earlier run"):
        tune(model, folder, tmp_path / "tuned", max_steps=1)


def test_faulty_samples_are_refused_or_skipped(model, tmp_path):
    folder = write_folder(tmp_path / "data")
    (folder / "images" / "1.png").write_bytes(b"no picture")
    with pytest.raises(
        AnnotationError, match=r"1 of 3 samples are faulty: 1\.png: .*images/1\.png: "
    ):
        tune(model, folder, tmp_path / "tuned")
    result = tune(model, folder, tmp_path / "tuned", faults="skip")
    assert [message.split(":")[0] for message in result.faults] == ["1.png"]
    assert all(torch.isfinite(tensor).all() for tensor in result.model.state_dict().values())


@pytest.mark.slow
def test_bad_data_among_good_changes_nothing(tmp_path):
    """Every kind of fault, in the middle of the folder: as if it had not been there."""
    folder = write_folder(tmp_path / "data", count=7, objects=3)
    images, masks = folder / "images", folder / "masks"
    content = (images / "1.png").read_bytes()
    (images / "1.png").write_bytes(content[: len(content) // 2])
    (masks / "2.png").unlink()
    Image.new("L", (30, 20), 1).save(masks / "3.png")
    Image.new("L", (64, 64)).save(masks / "4.png")
    result = tune(random_model(small_config()), folder, tmp_path / "tuned", faults="skip")
    assert [message.split(":")[0] for message in result.faults] == [
        f"{n}.png" for n in (1, 2, 3, 4)
    ]
    good = folder_samples(folder).take([0, 5, 6])
    expected = tune(random_model(small_config()), good, tmp_path / "expected")
    for name, tensor in expected.model.state_dict().items():
        assert torch.equal(result.model.state_dict()[name], tensor), name
    losses = [logged(run.log, "loss") for run in (result, expected)]
    assert losses[0] == losses[1]
    assert np.isfinite(losses[0]).all()


def test_a_loss_that_is_no_number_ends_the_training(model, folder, tmp_path):
    with pytest.raises(ValueError, match=r"loss of step \d is nan.*rate lower than 1e\+30"):
        tune(model, folder, tmp_path / "tuned", mode="all", learning_rate=1e30)
    assert not (tmp_path / "tuned" / "model.safetensors").exists()


@pytest.mark.slow
def test_one_image_is_learnt_whole_and_the_stock_pipeline_shows_the_gain(tmp_path):
    """Objects that it does not find with the model as it was, it finds with the tuned one."""
    folder = write_folder(tmp_path / "data", count=1, size_hw=(96, 64))
    [sample] = folder_samples(folder)
    model = random_model(small_config())
    model.save_pretrained(tmp_path / "before")
    processor_of(model).save_pretrained(tmp_path / "before")
    options = {"mode": "all", "max_steps": 250, "clicks": 0, "learning_rate": 4e-3}
    options |= {"eval_data": folder, "eval_steps": 250, "save_strategy": "no"}
    log = tune(model, folder, tmp_path / "after", **options).log
    start, end = (entry for entry in log if "eval_iou_box" in entry)
    for prompt in ("box", "click"):
        assert start[f"eval_iou_{prompt}"] < 0.5
        assert end[f"eval_iou_{prompt}"] >= 0.98
    found = {}
    for name in ("before", "after"):
        generate = pipeline("mask-generation", model=str(tmp_path / name))
        masks = generate(Image.fromarray(sample.image), points_per_crop=6, pred_iou_thresh=0.7)[
            "masks"
        ]
        ious = [
            max((masks_iou(np.asarray(m), true) for m in masks), default=0) for true in sample.masks
        ]
        found[name] = min(ious)
    assert found["before"] < 0.5
    assert found["after"] > 0.9


def test_modes_are_checked(model):
    with pytest.raises(ValueError, match="one of all, decoder, lora, got 'encoder'"):
        prepare_model(model, "encoder")


@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_each_round_and_checkpointing_change_nothing_but_memory(
    model, mode, monkeypatch
):
    monkeypatch.setattr(interactive_model, "with_gradients", lambda loss, inputs: loss)
    torch.manual_seed(0)
    learner = prepare_model(model, mode).train()
    pixels = torch.randn(1, 3, 96, 64)
    labels = torch.zeros(1, 2, 24, 16)
    labels[:, :, 4:15, 3:9] = 1
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            monkeypatch.undo()
            without_adapters(learner).activation_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(5)
        learner.zero_grad()
        learner(pixel_values=pixels, labels=labels)["loss"].backward()
        gradients.append(
            {n: p.grad.clone() for n, p in learner.named_parameters() if p.grad is not None}
        )
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_with_checkpointing_the_encoder_computes_twice(folder, tmp_path, mode, monkeypatch):
    calls = Counter()
    for layer in (EncoderAttention, MaskDecoder):

        def forward(self, *args, kept=layer.forward, **kwargs):
            calls[type(self)] += 1
            return kept(self, *args, **kwargs)

        monkeypatch.setattr(layer, "forward", forward)
    found = []
    for asked in (False, True):
        calls.clear()
        options = {"mode": mode, "max_steps": 1, "activation_checkpointing": asked}
        tune(random_model(small_config()), folder, tmp_path / str(asked), **options)
        found.append((calls[MaskDecoder], calls[EncoderAttention]))
    (decodes, encodes), (checkpointed_decodes, checkpointed_encodes) = found
    assert decodes == checkpointed_decodes == 4  # a prompt, a correction, two rounds without one
    assert encodes > 0
    # The mode "decoder" encodes once for all, without gradients.
    assert checkpointed_encodes == encodes * (1 if mode == "decoder" else 2)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_accumulated_batches_are_one_batch(tmp_path, mode, monkeypatch):
    """Two images one after the other move the weights as both at once do."""
    folder = write_folder(tmp_path / "data", count=2)
    draw_the_same(monkeypatch)
    options = {"mode": mode, "max_steps": 1, "optim": "sgd", "learning_rate": 0.1}
    start, results = weights(random_model(small_config())), []
    for batch_size in (1, 2):
        sizes = {
            "per_device_train_batch_size": batch_size,
            "gradient_accumulation_steps": 2 // batch_size,
        }
        output = tmp_path / str(batch_size)
        tuned = tune(random_model(small_config()), folder, output, **options, **sizes)
        results.append(weights(tuned.model))
    moved = {name for name, tensor in results[0].items() if not tensor.equal(start[name])}
    assert any(name.startswith("mask_decoder") for name in moved)
    for name, tensor in results[0].items():
        assert_close(results[1][name] - start[name], tensor - start[name], rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_bfloat16_learns_alike(model, folder, tmp_path):
    logs = [
        tune(random_model(small_config()), folder, tmp_path / str(bf16), mode="all", bf16=bf16).log
        for bf16 in (False, True)
    ]
    losses = [logged(log, "loss") for log in logs]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.05)
    assert losses[0] != losses[1]


ONE_STEP = {"max_steps": 1, "optim": "sgd", "learning_rate": 0.1}


@pytest.fixture
def two_processes(tmp_path_factory):
    """What two processes learnt, each mode in a folder of its own: started once for all modes."""

    def make(folder):
        folder.mkdir()
        data = write_folder(folder / "data", count=2)
        script = folder / "train.py"
        script.write_text(f"""
import json, os, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.training import test_finetuning as tests
for mode in tests.MODES:
    with tests.pytest.MonkeyPatch.context() as patch:
        tests.draw_the_same(patch)
        output = Path({str(folder)!r}, mode)
        options = dict(mode=mode, eval_data=tests.uneven_samples(), **{ONE_STEP})
        model = tests.random_model(tests.small_config())
        result = tests.tune(model, {str(data)!r}, str(output), **options)
    weight = result.model.mask_decoder.iou_token.weight.double().sum().item()
    output.with_suffix("." + os.environ["RANK"]).write_text(json.dumps([weight, result.log]))
""")
        run_python(f"""
import subprocess, sys
command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
done = subprocess.run([*command, {str(script)!r}], capture_output=True, text=True)
assert done.returncode == 0, done.stderr
""")

    return made_once(tmp_path_factory, "two_processes", make)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_two_processes_learn_and_measure_as_one(two_processes, tmp_path, mode, monkeypatch):
    """A picture each moves the weights as both at once do; three are measured once each."""
    said = [json.loads((two_processes / f"{mode}.{rank}").read_text()) for rank in (0, 1)]
    (weight, log), (other_weight, _) = said
    assert weight == other_weight
    draw_the_same(monkeypatch)
    options = {**ONE_STEP, "mode": mode, "eval_data": uneven_samples()}
    start = weights(random_model(small_config()))
    one = tune(
        random_model(small_config()),
        two_processes / "data",
        tmp_path / "one",
        per_device_train_batch_size=2,
        **options,
    )
    two = weights(SegmentAnythingModel.from_pretrained(two_processes / mode))
    for name, tensor in weights(one.model).items():
        assert_close(two[name] - start[name], tensor - start[name], rtol=1e-3, atol=1e-6)
    assert two["mask_decoder.iou_token.weight"].double().sum().item() == pytest.approx(weight)
    for name in ("loss", "eval_loss", "eval_iou_box", "eval_iou_click"):
        assert len(logged(log, name)) == (1 if name == "loss" else 2)
        assert logged(log, name) == pytest.approx(logged(one.log, name), rel=1e-4), name


@pytest.mark.tf
def test_keras_loads_the_result(model, folder, tmp_path):
    from segment_anything_transformers import TFSegmentAnythingModel

    tuned = tune(model, folder, tmp_path / "tuned", max_steps=1).model
    theirs = TFSegmentAnythingModel.from_pretrained(tmp_path / "tuned").state_dict()
    for name, tensor in tuned.state_dict().items():
        np.testing.assert_array_equal(theirs[name], tensor.numpy())
