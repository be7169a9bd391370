import inspect
import json
import os
import shlex
import subprocess
from sysconfig import get_path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from segment_anything_transformers import SegmentAnythingModel, load_samples
from segment_anything_transformers.cli.arguments import build_parser
from segment_anything_transformers.cli.main import main
from segment_anything_transformers.training.finetuning import LEARNING_RATES, finetune
from tests.sample_folders import hide_rows, rectangles, write_coco


def assert_same_weights(*folders):
    ours, expected = (
        SegmentAnythingModel.from_pretrained(folder).state_dict() for folder in folders
    )
    for name, tensor in expected.items():
        assert torch.equal(ours[name], tensor), name


@pytest.mark.slow
def test_finetune_saves_a_model_that_the_other_commands_take(run_on_data, tmp_path):
    code, out, err = run_on_data(
        "finetune data --eval-data data --steps 2 --clicks 1 --output tuned"
    )
    assert code == 0, err
    assert "mean IoU with a box: 0." in out
    assert out.endswith("written to tuned/\n")
    tuned = SegmentAnythingModel.from_pretrained("tuned").state_dict()
    start = SegmentAnythingModel.from_pretrained("tiny").state_dict()
    assert any(not tuned[name].equal(tensor) for name, tensor in start.items())
    assert main(["evaluate", "data", "--model", "tuned", "--clicks", "1", "-q"]) == 0
    code, _, err = run_on_data("finetune data --steps 3 --clicks 1 -q --output tuned")
    assert code == 2
    assert "checkpoints of an earlier run" in err
    code, out, err = run_on_data("finetune data --steps 3 --clicks 1 -q --output tuned --resume")
    assert (code, out) == (0, ""), err
    assert (tmp_path / "tuned" / "checkpoints" / "checkpoint-3").is_dir()


@pytest.mark.slow
def test_coco_annotations_are_learnt_from(run_on_data, tmp_path):
    write_coco(tmp_path / "coco.json")
    data = "coco.json --images data/images --eval-data coco.json --eval-images data/images"
    options = "--steps 1 --clicks 1 -q"
    code, _, err = run_on_data(f"finetune {data} {options} --output tuned")
    assert code == 0, err
    assert run_on_data(f"finetune data --eval-data data {options} --output same")[0] == 0
    assert_same_weights("tuned", "same")


@pytest.mark.slow
def test_an_ignore_value_is_that_of_load_samples(run_on_data, tmp_path):
    """For the data to learn from and the data to measure: the same weights and figures."""
    hide_rows(tmp_path / "data", rows=20)
    line = "finetune data --eval-data data --steps 1 --clicks 1 --ignore-value 255 -q"
    code, _, err = run_on_data(f"{line} --output tuned")
    assert code == 0, err
    options = {"max_steps": 1, "clicks": 1, "use_cpu": True, "disable_tqdm": True}
    samples = load_samples("data", ignore_value=255)
    expected = finetune("tiny", samples, "expected", samples, **options)
    assert_same_weights("tuned", "expected")
    state = tmp_path / "tuned" / "checkpoints" / "checkpoint-1" / "trainer_state.json"
    log = json.loads(state.read_text())["log_history"]
    for name in ("loss", "eval_iou_box", "eval_iou_click"):
        figures, wanted = (
            [entry[name] for entry in entries if name in entry] for entries in (log, expected.log)
        )
        assert figures == wanted != []


@pytest.mark.slow
def test_accelerate_launches_the_command(run_on_data, monkeypatch):
    """To the weights that the command gives by itself."""
    options = "data --eval-data data --steps 1 --clicks 1"
    assert run_on_data(f"finetune {options} --output alone")[0] == 0
    monkeypatch.setenv("PATH", get_path("scripts"), prepend=os.pathsep)
    launch = "accelerate launch --cpu --num_processes 1 --no_python segment-anything finetune"
    line = f"{launch} {options} --output launched --model tiny --device cpu"
    done = subprocess.run(shlex.split(line), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "mean IoU with a box: 0." in done.stdout
    assert_same_weights("launched", "alone")


def test_a_split_to_learn_from_and_one_to_measure(run_on_data, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    image, masks = rectangles(0)
    mask = masks[0].astype(np.uint8)
    rows = {"image": [Image.fromarray(image)], "mask": [Image.fromarray(mask)]}
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    empty = {**rows, "mask": [Image.fromarray(np.zeros_like(mask))]}
    (tmp_path / "hub").mkdir()
    for name, content in (("train", rows), ("test", empty)):
        made = datasets.Dataset.from_dict(content, features=features)
        made.to_parquet(tmp_path / "hub" / f"{name}-00000-of-00001.parquet")
    line = "finetune hub --eval-data hub --steps 1 --clicks 1 -q --output tuned"
    code, _, err = run_on_data(f"{line} --eval-split test")
    assert code == 2
    assert "1 of 1 samples are faulty: row 0: there is no object" in err
    code, _, err = run_on_data(line)
    assert code == 0, err


def test_every_option_of_the_training(run_on_data, tmp_path):
    options = "--mode lora --lora-rank 2 --objects-per-image 1 --clicks 1 --steps 1 --batch-size 2 "
    options += "--accumulate 2 --workers 1 --seed 7 --learning-rate 1e-3 --bf16 --checkpointing"
    code, _, err = run_on_data(f"finetune data {options} -q --output tuned")
    assert code == 0, err
    file = tmp_path / "tuned" / "checkpoints" / "checkpoint-1" / "training_args.bin"
    arguments = torch.load(file, weights_only=False)  # written by this test
    assert arguments.per_device_train_batch_size == 2
    assert arguments.gradient_accumulation_steps == 2
    assert arguments.dataloader_num_workers == 1
    assert arguments.learning_rate == 1e-3
    assert arguments.seed == 7
    assert arguments.bf16
    tuned = SegmentAnythingModel.from_pretrained("tuned").state_dict()
    start = SegmentAnythingModel.from_pretrained("tiny").state_dict()
    changed = {name for name, tensor in start.items() if not tuned[name].equal(tensor)}
    assert any(name.startswith("image_encoder") for name in changed)


def test_faulty_images_are_named(run_on_data, tmp_path):
    (tmp_path / "data" / "masks" / "0.png").unlink()
    code, out, err = run_on_data("finetune data --steps 1 --clicks 1 -q --output tuned")
    assert (code, out) == (2, "")
    assert err.startswith("segment-anything: 1 of 3 samples are faulty: 0.png: it has no mask")
    assert err.count("\n") == 1
    code, _, err = run_on_data("finetune data --steps 1 --clicks 1 -q --output tuned --skip-faulty")
    assert code == 1
    assert "segment-anything: skipped 0.png: it has no mask" in err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("finetune nowhere --output tuned", "nowhere"),
        ("finetune data --eval-data nowhere --output tuned", "nowhere"),
        ("finetune a.json --ignore-value 255 --output tuned", "have no pixels of an ignore_value"),
        ("finetune data --output tuned --framework tf", "Keras models learn with their fit"),
        ("finetune data --output tuned --dtype bfloat16", "--bf16 computes in bfloat16"),
    ],
)
def test_mistakes_get_one_line(run_on_data, line, message):
    code, _, err = run_on_data(f"{line} -q")
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_defaults_are_those_of_the_function():
    args = build_parser().parse_args(["finetune", "data", "--output", "tuned"])
    parameters = inspect.signature(finetune).parameters
    for ours, theirs in {"steps": "max_steps", "mode": "mode", "clicks": "clicks"}.items():
        assert getattr(args, ours) == parameters[theirs].default
    for name in ("objects_per_image", "lora_rank", "learning_rate", "resume"):
        assert getattr(args, name) == parameters[name].default
    assert LEARNING_RATES == {"all": 5e-5, "decoder": 2e-4, "lora": 2e-4}  # as --help says
