"""The command that converts, in every direction, and what it leaves behind when it fails."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
import torch
from safetensors.torch import load_file
from transformers import SamModel

from conversion import comparison
from conversion.__main__ import main, parse_arguments
from conversion.formats import WRITERS
from conversion.report import Comparison
from segment_anything_transformers import SegmentAnythingModel
from segment_anything_transformers.model.configuration_segment_anything import (
    SegmentAnythingModelConfig,
)
from segment_anything_transformers.model.weight_names import to_tfimm
from tests.parity.peers import huggingface_model, meta_modeling
from tests.tiny import random_images, random_model, random_prompts, shallow_config, square_config

ROOT = Path(__file__).parents[2]
README = ROOT / "conversion" / "README.md"
# The decoder's heads leave no trace in the shapes; a file without a configuration means 8.
EIGHT_HEADS = {"decoder_nb_heads": 8, "embed_dim": 48}
COMPARED = {"embeddings"} | {
    f"{what} of {prompts}"
    for what in ("logits", "scores")
    for prompts in ("points", "boxes", "points and boxes")
}


@pytest.fixture(scope="module", autouse=True)
def meta():
    """Meta's code, importable without torchvision."""
    return meta_modeling()


@pytest.fixture(scope="module")
def model():
    return random_model(square_config(**EIGHT_HEADS))


def sources(model, folder):
    """The same weights as every origin saves them."""
    model.save_pretrained(folder / "ours")
    huggingface_model(model).save_pretrained(folder / "huggingface")
    torch.save(model.state_dict(), folder / "meta.pth")
    with h5py.File(folder / "tfimm.h5", "w") as file:
        for name, tensor in to_tfimm(model.state_dict()).items():
            file[name] = tensor.numpy()
    return {name: str(folder / name) for name in ("ours", "huggingface", "meta.pth", "tfimm.h5")}


def convert(source, folder, to):
    """Converts, and returns the names of the implementations that agree."""
    assert main([str(source), str(folder), "--to", to]) == 0
    report = json.loads((folder / "report.json").read_text())
    assert report["format"] == to
    for found in report["comparisons"]:
        assert found["agrees"]
        assert found["differences"].keys() == COMPARED
        assert max(found["differences"].values()) < 1e-4
    assert f"as {to}" in (folder / "report.md").read_text()
    for name, file in report["files"].items():
        assert (folder / name).stat().st_size == file["bytes"]
    return [found["against"].split()[0].rstrip(",") for found in report["comparisons"]]


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "origin"),
    [
        ("ours", []),
        ("huggingface", ["transformers"]),
        ("meta.pth", ["segment_anything"]),
        ("tfimm.h5", []),
    ],
)
def test_every_origin_becomes_ours(model, tmp_path, source, origin):
    places = sources(model, tmp_path)
    against = convert(places[source], tmp_path / "made", "segment_anything")
    assert against == [*origin, "segment-anything-transformers"]
    loaded = SegmentAnythingModel.from_pretrained(tmp_path / "made")
    assert_same_weights(loaded.state_dict(), model.state_dict())
    assert {path.name for path in (tmp_path / "made").iterdir()} >= {
        "config.json",
        "model.safetensors",
        "modeling_segment_anything.py",
        "processor_config.json",
    }


@pytest.mark.slow
@torch.no_grad()
def test_round_through_all_of_them_every_bit_stays(model, tmp_path):
    """Meta, ours, Hugging Face, ours, Meta."""
    source = tmp_path / "meta.pth"
    torch.save(model.state_dict(), source)
    for to in ("segment_anything", "huggingface", "segment_anything", "meta"):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}-{to}"
        convert(source, folder, to)
        source = folder
    [last] = source.glob("*.pth")
    assert_same_weights(torch.load(last, weights_only=True), model.state_dict())
    peer, info = SamModel.from_pretrained(tmp_path / "2-huggingface", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    inputs = {
        "pixel_values": random_images(model.config),
        "input_boxes": random_prompts(model.config)["input_boxes"][:, :, 0],
    }
    torch.testing.assert_close(
        peer(**inputs).pred_masks, model(**inputs).pred_masks, rtol=0.0, atol=1e-4
    )


@pytest.mark.slow
def test_the_full_sam_vit_b_comes_back_bit_by_bit(tmp_path, monkeypatch):
    """The shapes of Meta's file, with random weights, which whoever reads a format has to load.

    That those compute the same is tested in tests/parity, and with small models above.
    """
    no_differences = dict.fromkeys(COMPARED, 0.0)
    monkeypatch.setattr(
        "conversion.convert.compare",
        lambda model, peers: [Comparison(peer.name, no_differences, 0.0, True) for peer in peers],
    )
    model = random_model(SegmentAnythingModelConfig.from_preset("sam_vit_b"))
    torch.save(model.state_dict(), tmp_path / "sam_vit_b.pth")
    source = tmp_path / "sam_vit_b.pth"
    against = []
    for to in ("segment_anything", "huggingface", "meta"):
        folder = tmp_path / f"{len(against)}-{to}"
        against.append(convert(source, folder, to))
        assert json.loads((folder / "report.json").read_text())["parameters"] == 93_735_472
        source = folder
    assert against == [
        ["segment_anything", "segment-anything-transformers"],
        ["transformers"],
        ["transformers", "segment_anything"],
    ]
    [last] = source.glob("*.pth")
    assert last.name == "sam_vit_b.pth"
    assert_same_weights(torch.load(last, weights_only=True), model.state_dict())
    first = load_file(tmp_path / "0-segment_anything" / "model.safetensors")
    assert_same_weights(first, model.state_dict())


@pytest.mark.slow
@pytest.mark.onnx
def test_sam_vit_b_in_onnx_runtime(tmp_path):
    model = random_model(shallow_config())
    model.save_pretrained(tmp_path / "ours")
    assert convert(tmp_path / "ours", tmp_path / "made", "onnx") == ["ONNX"]


@pytest.mark.slow
@pytest.mark.tf
@pytest.mark.parametrize(
    ("to", "against"), [("tf_saved_model", "TensorFlow"), ("litert", "TFLite")]
)
def test_exports_are_run_and_compared(model, tmp_path, to, against):
    model.save_pretrained(tmp_path / "ours")
    assert convert(tmp_path / "ours", tmp_path / "made", to) == [against]


def test_a_preset_is_compared_with_its_repository(model, tmp_path, monkeypatch):
    repository = sources(model, tmp_path)["huggingface"]
    monkeypatch.setattr(comparison, "preset_repository", {"sam_vit_b": repository}.get)
    assert comparison.peer_of_source("sam_vit_b", model).name.startswith("transformers")
    assert comparison.peer_of_source("sam_vit_t", model) is None


def test_every_format_has_what_runs_it():
    assert WRITERS.keys() == comparison._PEERS.keys()


def test_another_input_size(model, tmp_path):
    model.save_pretrained(tmp_path / "ours")
    size = ["--input-size", "64", "64"]
    assert main([str(tmp_path / "ours"), str(tmp_path / "made"), "--to", "huggingface", *size]) == 0
    assert SamModel.from_pretrained(tmp_path / "made").config.vision_config.image_size == 64


@pytest.mark.parametrize(
    ("name", "file"), [("", "sam.pth"), ("cells", "cells.pth"), ("../../cells", "cells.pth")]
)
def test_metas_file_has_the_models_name_and_stays_in_the_folder(tmp_path, name, file):
    random_model(square_config(name=name, **EIGHT_HEADS)).save_pretrained(tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "a" / "made", "meta")
    names = {path.name for path in (tmp_path / "a" / "made").iterdir()}
    assert names == {file, "report.json", "report.md"}
    assert {path.name for path in tmp_path.iterdir()} == {"ours", "a"}


def test_a_folder_that_appears_meanwhile_is_left_alone(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path / "ours")
    write = WRITERS["meta"]

    def write_late(*arguments):
        write(*arguments)
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "notes.txt").write_text("somebody else's")

    monkeypatch.setitem(WRITERS, "meta", write_late)
    assert main([str(tmp_path / "ours"), str(tmp_path / "made"), "--to", "meta"]) == 2
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["notes.txt"]


def test_what_fails_leaves_nothing_behind(model, tmp_path, capsys, monkeypatch):
    model.save_pretrained(tmp_path / "ours")
    before = sorted(tmp_path.iterdir())

    def refused(*arguments):
        assert main([str(tmp_path / "ours"), str(tmp_path / "made"), *arguments]) == 2
        assert sorted(tmp_path.iterdir()) == before
        return capsys.readouterr().err

    monkeypatch.setattr(comparison, "TOLERANCE", -1.0)
    assert "The masks are not those of transformers" in refused("--to", "huggingface")
    monkeypatch.undo()
    oblong = refused("--to", "meta", "--input-size", "64", "96")
    assert "square images only, this model (64, 96)" in oblong
    assert "--input-size 96 96" in oblong
    assert main([str(tmp_path / "gone.pth"), str(tmp_path / "made")]) == 2
    assert "gone.pth does not exist" in capsys.readouterr().err
    assert main([str(tmp_path / "ours"), str(tmp_path / "ours")]) == 2
    assert "ours exists" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_the_commands_in_the_readme_are_commands():
    [block] = re.findall(r"```console\n(.*?)```", README.read_text(), re.DOTALL)
    lines = [line.partition("#")[0] for line in block.splitlines()]
    asked = {parse_arguments(shlex.split(line)[3:]).to for line in lines}
    assert all(line.startswith("python -m conversion ") for line in lines)
    assert asked == WRITERS.keys()


@pytest.mark.slow
def test_the_module_is_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "conversion", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0
    for format in WRITERS:
        assert f"\n  {format} " in done.stdout
