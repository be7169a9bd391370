"""ONNX files run by ONNX Runtime, against the PyTorch model: whole tensors, free axes."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import SamModel

from segment_anything_transformers import export_onnx
from segment_anything_transformers.export import onnx as exporter
from tests.fake_backend import small_config
from tests.made_once import made_once
from tests.parity.peers import huggingface_model
from tests.tiny import random_images, random_model, random_prompts, square_config

pytestmark = [pytest.mark.onnx, pytest.mark.slow]
TOLERANCE = {"rtol": 0, "atol": 1e-4}
SHAPES = [(1, 1, 1), (1, 1, 5), (1, 4, 2), (3, 1, 1), (2, 3, 4)]  # N, P, M1
N, P, M1 = "batch_size", "point_batch_size", "nb_points_per_image"


class Export:
    """An exported folder, its model, and what runs its files."""

    def __init__(self, model, folder):
        self.model, self.folder = model, folder

    def session(self, name):
        return onnxruntime.InferenceSession(self.folder / "onnx" / f"{name}.onnx")

    def run(self, name, **inputs):
        session = self.session(name)
        values = session.run(None, {n: tensor.numpy() for n, tensor in inputs.items()})
        return dict(zip([output.name for output in session.get_outputs()], values, strict=True))


@pytest.fixture(scope="module")
def oblong(tmp_path_factory):
    model = random_model(small_config())
    folder = made_once(tmp_path_factory, "onnx_oblong", lambda path: export_onnx(model, path))
    return Export(model, folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    model = random_model(square_config())

    def make(folder):
        export_onnx(model, folder, variant="monolith", box_input=True, mask_input=True)

    return Export(model, made_once(tmp_path_factory, "onnx_whole", make))


def no_masks(config, images, sets):
    """What a call without masks gives to a graph that takes them."""
    return {
        "mask_input": torch.zeros(images, sets, *config.mask_size()),
        "has_mask_input": torch.zeros(images, sets),
    }


def signature(session):
    def shapes(values):
        return {value.name: (value.shape, value.type) for value in values}

    return shapes(session.get_inputs()), shapes(session.get_outputs())


def points_of(config, images, sets, points):
    generator = torch.Generator().manual_seed(sets)
    shape = (images, sets, points)
    size_wh = torch.tensor(config.input_size[::-1])
    labels = torch.randint(-1, 2, shape, generator=generator)
    return torch.rand(*shape, 2, generator=generator) * size_wh, labels


def as_corners(boxes):
    """Boxes (N, P, M2, 4) as points (N, P, 2 M2, 2) and their labels."""
    corners = boxes.unflatten(-1, (2, 2)).flatten(2, 3)
    return corners, torch.tensor([2, 3]).repeat(*boxes.shape[:3]).contiguous()


def assert_masks(made, expected):
    np.testing.assert_allclose(made["pred_masks"], expected.pred_masks, **TOLERANCE)
    np.testing.assert_allclose(made["iou_scores"], expected.iou_scores, **TOLERANCE)


def test_files_and_names_are_those_of_transformers_js_and_optimum(oblong):
    files = {str(p.relative_to(oblong.folder)) for p in oblong.folder.rglob("*") if p.is_file()}
    graphs = {f"onnx/{name}.onnx" for name in ("vision_encoder", "prompt_encoder_mask_decoder")}
    assert files == {"config.json", "preprocessor_config.json", *graphs}
    embeddings, real, whole_number = [N, 32, 12, 8], "tensor(float)", "tensor(int64)"
    assert signature(oblong.session("vision_encoder")) == (
        {"pixel_values": ([N, 3, 96, 64], real)},
        {
            "image_embeddings": (embeddings, real),
            "image_positional_embeddings": (embeddings, real),
        },
    )
    assert signature(oblong.session("prompt_encoder_mask_decoder")) == (
        {
            "image_embeddings": (embeddings, real),
            "image_positional_embeddings": (embeddings, real),
            "input_points": ([N, P, M1, 2], real),
            "input_labels": ([N, P, M1], whole_number),
        },
        {"iou_scores": ([N, P, 3], real), "pred_masks": ([N, P, 3, 48, 32], real)},
    )
    config = json.loads((oblong.folder / "config.json").read_text())
    assert config["model_type"] == "sam"
    assert "transformers.js_config" not in config
    processor = json.loads((oblong.folder / "preprocessor_config.json").read_text())
    assert processor["processor_class"] == "SamProcessor"
    assert processor["pad_size"] == {"height": 96, "width": 64}


@pytest.mark.parametrize("images", [1, 2, 3])
@torch.no_grad()
def test_image_embeddings_equal_pytorch(oblong, images):
    pixels = random_images(oblong.model.config, images)
    made = oblong.run("vision_encoder", pixel_values=pixels)
    expected = oblong.model.get_image_embeddings(pixels)
    np.testing.assert_allclose(made["image_embeddings"], expected, **TOLERANCE)
    positions = oblong.model.prompt_encoder.pe_layer.of_grid(12, 8).permute(2, 0, 1)
    np.testing.assert_allclose(
        made["image_positional_embeddings"], positions.expand_as(expected), **TOLERANCE
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["points", "boxes", "both"])
@torch.no_grad()
def test_masks_equal_pytorch(oblong, shape, kind):
    config = oblong.model.config
    images, sets, _ = shape
    embeddings = torch.randn(images, config.embed_dim, *config.grid_size())
    points, labels = points_of(config, *shape)
    boxes = random_prompts(config, images=images)["input_boxes"][:, :1].repeat(1, sets, 1, 1)
    corners, kinds = as_corners(boxes)
    prompts = {"input_points": points, "input_labels": labels, "input_boxes": boxes}
    if kind == "points":
        del prompts["input_boxes"]
    elif kind == "boxes":
        points, labels = corners, kinds
        prompts = {"input_boxes": boxes}
    else:
        points = torch.cat([points[:, :, :1], corners, points[:, :, 1:]], dim=2)
        labels = torch.cat([labels[:, :, :1], kinds, labels[:, :, 1:]], dim=2)
    made = oblong.run(
        "prompt_encoder_mask_decoder",
        image_embeddings=embeddings,
        image_positional_embeddings=torch.randn_like(embeddings),  # has no influence
        input_points=points,
        input_labels=labels,
    )
    assert made["pred_masks"].shape[:3] == (images, sets, 3)
    assert_masks(made, oblong.model(image_embeddings=embeddings, **prompts))


@torch.no_grad()
def test_padded_points_change_nothing(oblong):
    config = oblong.model.config
    embeddings = torch.randn(1, config.embed_dim, *config.grid_size())
    points, labels = points_of(config, 1, 2, 3)
    labels[:, 1, 1:] = -10
    made = oblong.run(
        "prompt_encoder_mask_decoder",
        image_embeddings=embeddings,
        image_positional_embeddings=embeddings,
        input_points=points,
        input_labels=labels,
    )
    for index, count in enumerate((3, 1)):
        alone = oblong.model(
            image_embeddings=embeddings,
            input_points=points[:, index : index + 1, :count],
            input_labels=labels[:, index : index + 1, :count],
        )
        made_alone = {name: array[:, index : index + 1] for name, array in made.items()}
        assert_masks(made_alone, alone)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 4)])
@torch.no_grad()
def test_one_file_with_boxes_equals_pytorch_and_transformers(whole, shape):
    config = whole.model.config
    pixels = random_images(config, shape[0])
    points, labels = points_of(config, *shape)
    boxes = random_prompts(config, shape[0])["input_boxes"][:, : shape[1], 0]
    prompts = {"input_points": points, "input_labels": labels}
    absent = no_masks(config, *shape[:2])
    made = whole.run("model", pixel_values=pixels, **prompts, input_boxes=boxes, **absent)
    assert_masks(made, whole.model(pixel_values=pixels, **prompts, input_boxes=boxes))
    peer = huggingface_model(whole.model)
    assert_masks(made, peer(pixel_values=pixels, **prompts, input_boxes=boxes))
    no_boxes = torch.full_like(boxes, -10)
    made = whole.run("model", pixel_values=pixels, **prompts, input_boxes=no_boxes, **absent)
    assert_masks(made, whole.model(pixel_values=pixels, **prompts))


@pytest.mark.parametrize("kinds", [("points",), ("boxes",), ("masks",), ("points", "masks"), ()])
@torch.no_grad()
def test_what_is_not_asked_with_has_length_zero(whole, kinds):
    """No points (N, P, 0, 2), no boxes (N, 0, 4), and no mask where its flag is 0."""
    config, (images, sets) = whole.model.config, (2, 3)
    prompts = random_prompts(config, images)
    masks = prompts["input_masks"][:, :, 0]
    given = {
        "pixel_values": random_images(config, images),
        "input_points": torch.zeros(images, sets, 0, 2),
        "input_labels": torch.zeros(images, sets, 0, dtype=torch.long),
        "input_boxes": torch.zeros(images, 0, 4),
        **no_masks(config, images, sets),
    }
    expected = {"pixel_values": given["pixel_values"]}
    if "points" in kinds:
        expected |= {name: prompts[name] for name in ("input_points", "input_labels")}
        given |= expected
    if "boxes" in kinds:  # the last prompt set has none
        given["input_boxes"] = prompts["input_boxes"][:, :-1, 0]
        boxes = torch.cat([given["input_boxes"], torch.full((images, 1, 4), -10.0)], dim=1)
        expected["input_boxes"] = boxes
    if "masks" in kinds:
        flags = torch.tensor([[1.0, 0.0, 1.0]]).repeat(images, 1)
        given |= {"mask_input": masks, "has_mask_input": flags}
        shown = masks.masked_fill((flags == 0)[..., None, None], torch.nan)
        expected["input_masks"] = shown[:, :, None]
    output = whole.model(**expected)
    made = whole.run("model", **given)
    assert made["pred_masks"].shape[:3] == (images, sets, 3)
    if not kinds:  # one answer, which the model gives once and the graph to each prompt set
        output.pred_masks = output.pred_masks.expand(-1, sets, -1, -1, -1)
        output.iou_scores = output.iou_scores.expand(-1, sets, -1)
    assert_masks(made, output)


def test_the_configuration_is_one_of_transformers(whole):
    config = SamModel.config_class.from_pretrained(whole.folder)
    assert config.to_dict() == huggingface_model(whole.model).config.to_dict() | {
        "architectures": ["SamModel"]
    }


@torch.no_grad()
def test_another_size_a_single_mask_and_weights_in_a_file_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(exporter, "_PROTOBUF_LIMIT", 0)
    model = random_model(small_config(fixed_input_size=False)).train()
    options = {"variant": "monolith", "multimask_output": False, "input_size": (64, 80)}
    export_onnx(model, tmp_path / "made", **options)
    made = Export(model, tmp_path / "made")
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    model.eval()
    assert (made.folder / "onnx" / "model.onnx_data").stat().st_size > 50_000
    config = json.loads((made.folder / "config.json").read_text())
    assert config["transformers.js_config"] == {"use_external_data_format": True}
    assert config["vision_config"]["image_size"] == [64, 80]
    pixels = torch.randn(2, 3, 64, 80)
    points, labels = points_of(model.config, 2, 2, 3)
    prompts = {"input_points": points, "input_labels": labels}
    expected = model(pixel_values=pixels, **prompts, multimask_output=False)
    assert_masks(made.run("model", pixel_values=pixels, **prompts), expected)


def test_what_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    model = random_model(small_config())
    with pytest.raises(ValueError, match="variant must be one of split, monolith, got 'both'"):
        export_onnx(model, tmp_path / "made", variant="both")
    with pytest.raises(ValueError, match=r"takes images of \(96, 64\) pixels, got \(64, 64\)"):
        export_onnx(model, tmp_path / "made", input_size=(64, 64))
    with pytest.raises(TypeError, match=r"Only float32 weights.*bfloat16: model\.float\(\)"):
        export_onnx(random_model(small_config()).bfloat16(), tmp_path / "made")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "made").mkdir()
    with pytest.raises(FileExistsError, match="made exists"):
        export_onnx(model, tmp_path / "made")
