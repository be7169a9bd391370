import shutil

import pytest
import torch
from torch.testing import assert_close
from transformers import SamModel

from segment_anything_transformers.model import layers
from segment_anything_transformers.model.configuration_segment_anything import ENCODER_ACTIVATIONS
from segment_anything_transformers.model.modeling_segment_anything import SegmentAnythingModel
from segment_anything_transformers.model.weight_arrays import adapt_weights
from tests.fake_backend import small_config
from tests.rounding import assert_within_rounding
from tests.tiny import IMAGES, SETS, random_images, random_model, random_prompts

TOLERANCE = {"rtol": 0.0, "atol": 1e-5}
PADDING_OF = {
    "input_points": -10,
    "input_labels": -10,
    "input_boxes": -10,
    "input_masks": float("nan"),
}


@pytest.fixture(scope="module")
def model():
    return random_model(small_config())


@pytest.fixture(scope="module")
def pixels(model):
    return random_images(model.config)


@pytest.fixture(scope="module")
def prompts(model):
    return random_prompts(model.config)


@pytest.mark.parametrize(("multimask_output", "masks"), [(True, 3), (False, 1)])
@torch.no_grad()
def test_shapes_are_those_of_the_contract(model, pixels, prompts, multimask_output, masks):
    output = model(pixels, **prompts, multimask_output=multimask_output)
    mask_h, mask_w = model.mask_size()
    assert model.grid_size() == (12, 8)
    assert (mask_h, mask_w) == (48, 32)
    assert output.pred_masks.shape == (IMAGES, SETS, masks, mask_h, mask_w)
    assert output.iou_scores.shape == (IMAGES, SETS, masks)
    assert output.image_embeddings.shape == (IMAGES, 32, 12, 8)
    assert output.loss is None


@torch.no_grad()
def test_number_of_masks_follows_the_configuration():
    model = random_model(small_config(nb_multimask_outputs=5))
    assert model(**model.dummy_inputs).pred_masks.shape[2] == 5
    assert model(**model.dummy_inputs, multimask_output=False).pred_masks.shape[2] == 1


@torch.no_grad()
def test_dummy_inputs_run_and_a_tuple_has_the_same_values(model):
    output = model(**model.dummy_inputs)
    as_tuple = model(**model.dummy_inputs, return_dict=False)
    assert output.pred_masks.shape == (1, 1, 3, 48, 32)
    for named, positional in zip(output.to_tuple(), as_tuple, strict=True):
        assert_close(named, positional)


@torch.no_grad()
def test_embeddings_serve_instead_of_pixels(model, pixels, prompts):
    embeddings = model.get_image_embeddings(pixels)
    direct = model(pixels, **prompts)
    reused = model(image_embeddings=embeddings, **prompts)
    assert_close(reused.pred_masks, direct.pred_masks)
    assert_close(reused.iou_scores, direct.iou_scores)


@torch.no_grad()
def test_labels_default_to_foreground(model, pixels, prompts):
    points = prompts["input_points"]
    default = model(pixels, input_points=points)
    explicit = model(pixels, input_points=points, input_labels=torch.ones(points.shape[:3]))
    background = model(pixels, input_points=points, input_labels=torch.zeros(points.shape[:3]))
    assert_close(default.pred_masks, explicit.pred_masks)
    assert not torch.allclose(default.pred_masks, background.pred_masks)


# ------------------------------------------------------------------------- prompts and padding


@torch.no_grad()
def test_padding_is_invisible(model, pixels, prompts):
    """A batch of unequal prompts gives what one call for each prompt set gives."""
    points, labels = prompts["input_points"].clone(), prompts["input_labels"].clone()
    boxes, masks = prompts["input_boxes"].clone(), prompts["input_masks"].clone()
    nan = float("nan")
    # what each prompt set has, of 4 points, 2 boxes and 2 masks
    counts = [[(4, 0, 0), (1, 2, 1), (0, 1, 2)], [(2, 1, 0), (0, 0, 1), (3, 0, 2)]]
    for image, sets in enumerate(counts):
        for index, (some_points, some_boxes, some_masks) in enumerate(sets):
            points[image, index, some_points:] = -10
            labels[image, index, some_points:] = -10
            boxes[image, index, some_boxes:] = -10
            masks[image, index, some_masks:] = nan
    together = model(
        pixels, input_points=points, input_labels=labels, input_boxes=boxes, input_masks=masks
    )
    for image, sets in enumerate(counts):
        for index, (some_points, some_boxes, some_masks) in enumerate(sets):
            one = (slice(image, image + 1), slice(index, index + 1))
            alone = model(
                pixels[image : image + 1],
                input_points=points[one][:, :, :some_points],
                input_labels=labels[one][:, :, :some_points],
                input_boxes=boxes[one][:, :, :some_boxes],
                input_masks=masks[one][:, :, :some_masks],
            )
            assert_close(together.pred_masks[one], alone.pred_masks, **TOLERANCE)
            assert_close(together.iou_scores[one], alone.iou_scores, **TOLERANCE)


@torch.no_grad()
def test_transformers_attends_to_padding_and_ours_does_not(model, pixels, prompts):
    """What the previous test guards against happens in transformers' SamModel."""
    from tests.parity.peers import huggingface_model
    from tests.tiny import square_config

    ours = random_model(square_config())
    theirs = huggingface_model(ours)
    images = random_images(ours.config, count=1)
    points = random_prompts(ours.config, images=1)["input_points"]
    labels = torch.tensor([[[1, 0, -10, -10]] * SETS])
    padded = {"input_points": points, "input_labels": labels}
    short = {"input_points": points[:, :, :2], "input_labels": labels[:, :, :2]}
    assert isinstance(theirs, SamModel)
    assert_close(ours(images, **padded).pred_masks, ours(images, **short).pred_masks, **TOLERANCE)
    difference = theirs(images, **padded).pred_masks - theirs(images, **short).pred_masks
    assert difference.abs().max() > 1e-3


@torch.no_grad()
def test_size_zero_prompts_are_no_prompts(model, pixels, prompts):
    points, labels = prompts["input_points"], prompts["input_labels"]
    plain = model(pixels, input_points=points, input_labels=labels)
    empty = model(
        pixels,
        input_points=points,
        input_labels=labels,
        input_boxes=torch.zeros(IMAGES, SETS, 0, 4),
        input_masks=torch.zeros(IMAGES, SETS, 0, *model.mask_size()),
    )
    assert_close(empty.pred_masks, plain.pred_masks)


@torch.no_grad()
def test_not_a_point_stands_exactly_where_there_are_points_and_no_boxes(model, prompts):
    points, labels = prompts["input_points"], prompts["input_labels"].abs()
    only_points, _ = model.get_prompt_embeddings(points, labels)
    nothing = model.prompt_encoder.not_a_point_embed.weight[0]
    assert only_points.shape[2] == 5
    assert_close(only_points[:, :, 4], nothing.expand(IMAGES, SETS, -1))
    _, _, exists = model.prompt_encoder(
        points, labels, prompts["input_boxes"], None, model.config.input_size
    )
    assert exists[0, 0].tolist() == [True] * 4 + [False] + [True] * 4
    only_boxes, _ = model.get_prompt_embeddings(input_boxes=prompts["input_boxes"])
    assert only_boxes.shape[2] == 4
    both, _ = model.get_prompt_embeddings(points, labels, prompts["input_boxes"])
    assert_close(both, torch.cat([only_points[:, :, :4], only_boxes], dim=2))


@torch.no_grad()
def test_several_boxes_describe_one_mask(model, pixels, prompts):
    boxes = prompts["input_boxes"]
    both, _ = model.get_prompt_embeddings(input_boxes=boxes)
    first, _ = model.get_prompt_embeddings(input_boxes=boxes[:, :, 0])
    second, _ = model.get_prompt_embeddings(input_boxes=boxes[:, :, 1:])
    assert_close(both, torch.cat([first, second], dim=2))
    assert model(pixels, input_boxes=boxes).pred_masks.shape[:2] == (IMAGES, SETS)
    swapped = model(pixels, input_boxes=boxes.flip(2)).pred_masks
    assert_close(model(pixels, input_boxes=boxes).pred_masks, swapped, **TOLERANCE)


@torch.no_grad()
def test_embeddings_of_several_masks_are_summed(model, prompts):
    masks = prompts["input_masks"]
    _, both = model.get_prompt_embeddings(input_masks=masks)
    _, first = model.get_prompt_embeddings(input_masks=masks[:, :, :1])
    _, second = model.get_prompt_embeddings(input_masks=masks[:, :, 1:])
    assert_close(both, first + second, **TOLERANCE)


@torch.no_grad()
def test_a_mask_of_the_image_serves_every_prompt_set(model, pixels, prompts):
    points, labels = prompts["input_points"], prompts["input_labels"]
    mask = prompts["input_masks"][:, 0, :1]  # (N, 1, H', W')
    shared = model(pixels, points, labels, input_masks=mask)
    repeated = model(
        pixels, points, labels, input_masks=mask[:, :, None].expand(-1, SETS, -1, -1, -1)
    )
    assert_close(shared.pred_masks, repeated.pred_masks, **TOLERANCE)


@torch.no_grad()
def test_prompt_sets_do_not_see_each_other(model, pixels, prompts):
    together = model(pixels, prompts["input_points"], prompts["input_labels"]).pred_masks
    alone = model(pixels, prompts["input_points"][:, 1:2], prompts["input_labels"][:, 1:2])
    assert_close(together[:, 1:2], alone.pred_masks, **TOLERANCE)


# -------------------------------------------------------------------------------- input sizes


@pytest.mark.parametrize("patch", [4, 8, 16])
@pytest.mark.parametrize("size_in_patches", [(12, 8), (5, 13), (3, 3)])
@torch.no_grad()
def test_another_input_size_equals_a_model_made_for_it(patch, size_in_patches):
    """Resampling while running and resampling while loading (in numpy) agree."""
    shape = {"encoder_patch_size": patch, "input_size": (11 * patch, 7 * patch)}
    flexible = random_model(small_config(**shape, fixed_input_size=False))
    size = tuple(patch * side for side in size_in_patches)
    made = SegmentAnythingModel(small_config(encoder_patch_size=patch, input_size=size)).eval()
    made.load_state_dict(adapt_weights(flexible.state_dict(), made.config))
    pixels, prompts = random_images(made.config), random_prompts(made.config)
    ours, expected = flexible(pixels, **prompts), made(pixels, **prompts)
    assert ours.pred_masks.shape[3:] == made.mask_size() == flexible.mask_size(size)
    assert_close(ours.image_embeddings, expected.image_embeddings, **TOLERANCE)
    assert_close(ours.pred_masks, expected.pred_masks, **TOLERANCE)


def test_a_fixed_size_refuses_others(model):
    with pytest.raises(ValueError, match=r"\(96, 64\) pixels, got \(64, 96\).*fixed_input_size"):
        model(torch.zeros(1, 3, 64, 96))
    with pytest.raises(ValueError, match=r"grid of \(12, 8\), got \(8, 12\)"):
        model(image_embeddings=torch.zeros(1, 32, 8, 12))


def test_a_flexible_size_must_be_a_multiple_of_the_patch():
    model = random_model(small_config(fixed_input_size=False))
    with pytest.raises(ValueError, match=r"multiples of the patch size 8, got \(60, 64\)"):
        model(torch.zeros(1, 3, 60, 64))


# ------------------------------------------------------------------------------------ training


@pytest.mark.parametrize(
    "rate", ["encoder_drop_rate", "encoder_attn_drop_rate", "encoder_drop_path_rate"]
)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_drop_rates_act_in_training_only(rate, implementation):
    model = random_model(small_config(**{rate: 0.5}))
    model.set_attn_implementation(implementation)
    plain = random_model(small_config())
    pixels = random_images(model.config, count=4)
    expected = plain.get_image_embeddings(pixels)
    assert_close(model.get_image_embeddings(pixels), expected, **TOLERANCE)
    model.train()
    plain.train()
    first, second = model.get_image_embeddings(pixels), model.get_image_embeddings(pixels)
    assert not torch.allclose(first, second)
    assert_close(plain.get_image_embeddings(pixels), expected, **TOLERANCE)


def test_stochastic_depth_grows_linearly():
    model = random_model(small_config(encoder_drop_path_rate=0.3, encoder_nb_blocks=4))
    rates = [block.drop_path_rate for block in model.image_encoder.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


def gradients(model, pixels, prompts):
    model.zero_grad()
    output = model(pixels, **prompts)
    (output.pred_masks.square().mean() + output.iou_scores.square().mean()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradient_checkpointing_gives_the_same_gradients(pixels, prompts):
    model = random_model(small_config()).train()
    plain = gradients(model, pixels, prompts)
    model.activation_checkpointing_enable()
    calls = []
    block = model.image_encoder.blocks[0]
    block.norm1.register_forward_hook(lambda *_: calls.append(1))
    checkpointed = gradients(model, pixels, prompts)
    assert len(calls) == 2  # once forward, once again for the gradients
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        assert_close(checkpointed[name], gradient, **TOLERANCE)


def test_every_parameter_learns(pixels, prompts):
    model = random_model(small_config()).train()
    labels = torch.ones(IMAGES, SETS, 48, 32)
    learning = set()
    for has_masks in (True, False):
        for multimask_output in (True, False):
            model.zero_grad()
            given = {k: v for k, v in prompts.items() if has_masks or k != "input_masks"}
            if not has_masks:
                del given["input_boxes"]
            model(pixels, **given, labels=labels, multimask_output=multimask_output).loss.backward()
            for name, parameter in model.named_parameters():
                if parameter.grad is not None and parameter.grad.abs().sum() > 0:
                    learning.add(name)
    # best of three: a mask that is never the best learns nothing but its quality
    idle = {name for name, _ in model.named_parameters()} - learning
    multiple = tuple(f"mask_decoder.output_hypernetworks_mlps.{index}" for index in (1, 2, 3))
    assert all(name.startswith(multiple) for name in idle)


# ------------------------------------------------------------ precision, export, compilation


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_follows_float32(pixels, prompts, dtype):
    model = random_model(small_config())
    expected = model(pixels, **prompts)
    output = model.to(dtype)(pixels, **prompts)
    assert output.pred_masks.dtype == dtype
    assert_within_rounding(output.pred_masks.float(), expected.pred_masks, dtype)
    assert_within_rounding(output.iou_scores.float(), expected.iou_scores, dtype)


@torch.no_grad()
def test_autocast_reaches_the_products_of_inference(pixels, prompts):
    model = random_model(small_config())
    expected = model(pixels, **prompts).pred_masks
    layers._has_fused_product.cache_clear()  # it was asked outside of autocast
    layer = model.image_encoder.blocks[0].mlp
    tokens = torch.randn(1, 4, model.config.encoder_embed_dim)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(tokens).dtype == torch.bfloat16
        output = model(pixels, **prompts).pred_masks
    assert not torch.equal(output.float(), expected)
    assert_within_rounding(output.float(), expected, torch.bfloat16)


@torch.no_grad()
def test_positions_stay_float32_under_half_precision(tmp_path, prompts):
    model = random_model(small_config())
    model.save_pretrained(tmp_path)
    half = SegmentAnythingModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    layer = half.prompt_encoder.pe_layer
    assert layer.positional_encoding_gaussian_matrix.dtype == torch.float32
    points = prompts["input_points"] / 96
    assert_close(layer(points), model.prompt_encoder.pe_layer(points), rtol=0.0, atol=0.0)


@pytest.mark.parametrize(
    "names",
    [
        ("input_points", "input_labels"),
        pytest.param(("input_boxes", "input_masks"), marks=pytest.mark.slow),
        pytest.param(tuple(PADDING_OF), marks=pytest.mark.slow),
    ],
)
def test_torch_export_runs_with_other_numbers_of_images_and_prompts(model, pixels, prompts, names):
    images, sets = torch.export.Dim("images"), torch.export.Dim("sets", max=4096)
    counts = {name: torch.export.Dim(f"count_of_{name}", max=64) for name in names}
    if "input_labels" in names:
        counts["input_labels"] = counts["input_points"]
    program = torch.export.export(
        model,
        (),
        {"pixel_values": pixels, **{name: prompts[name] for name in names}},
        dynamic_shapes={
            "pixel_values": {0: images},
            **{name: {0: images, 1: sets, 2: counts[name]} for name in names},
        },
    )
    inputs = {"pixel_values": random_images(model.config, count=3)}
    others = random_prompts(model.config, images=3, seed=3)
    for name in names:
        # 6 sets of 12 points, 6 boxes and 6 masks; every second set has 2 of each
        inputs[name] = others[name].repeat_interleave(2, dim=1).repeat_interleave(3, dim=2)
        inputs[name][:, ::2, 2:] = PADDING_OF[name]
    with torch.no_grad():
        exported, expected = program.module()(**inputs), model(**inputs)
    assert_close(exported.pred_masks, expected.pred_masks, **TOLERANCE)
    assert_close(exported.iou_scores, expected.iou_scores, **TOLERANCE)


@pytest.mark.parametrize(
    ("backend", "names"),
    [
        ("aot_eager", tuple(PADDING_OF)),
        pytest.param(
            "inductor",  # the default; C++ takes a minute to compile
            ("input_points", "input_labels"),
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(not shutil.which("g++"), reason="inductor compiles C++"),
                # PyTorch's own, on the first import of inductor
                pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning"),
            ],
        ),
    ],
)
@torch.no_grad()
def test_compiles_as_one_graph(model, pixels, prompts, backend, names):
    given = {name: prompts[name] for name in names}
    # Without vectors C++ compiles in two thirds of the time.
    options = {"cpp.simdlen": 1} if backend == "inductor" else None
    compiled = torch.compile(model, fullgraph=True, backend=backend, options=options)
    output, expected = compiled(pixels, **given), model(pixels, **given)
    assert_close(output.pred_masks, expected.pred_masks, **TOLERANCE)
    assert_close(output.iou_scores, expected.iou_scores, **TOLERANCE)


@pytest.mark.parametrize("name", ENCODER_ACTIVATIONS)
@torch.no_grad()
def test_encoder_runs_with_every_activation(name, pixels):
    embeddings = random_model(small_config(encoder_act_layer=name)).get_image_embeddings(pixels)
    assert torch.isfinite(embeddings).all()


@torch.no_grad()
def test_norm_layer_sets_the_epsilon():
    model = random_model(small_config(encoder_norm_layer="layer_norm"))
    assert model.image_encoder.blocks[0].norm1.eps == 1e-5
    assert random_model(small_config()).image_encoder.blocks[0].norm1.eps == 1e-6
    assert model.mask_decoder.transformer.layers[0].norm1.eps == 1e-5
    assert model.image_encoder.neck[1].eps == 1e-6


# ----------------------------------------------------------------------------------- bad input


def bad_inputs(model):
    pixels = torch.zeros(2, 3, 96, 64)
    points, labels = torch.zeros(2, 3, 1, 2), torch.ones(2, 3, 1)
    boxes, masks = torch.zeros(2, 3, 4), torch.zeros(2, 1, 48, 32)
    return {
        "nothing": ({}, "either pixel_values or image_embeddings"),
        "both": (
            {"pixel_values": pixels, "image_embeddings": pixels},
            "either pixel_values or image_embeddings",
        ),
        "channels": ({"pixel_values": pixels[:, :1]}, r"\(N, 3, H, W\), got \(2, 1, 96, 64\)"),
        "one image, no batch": ({"pixel_values": pixels[0]}, r"\(N, 3, H, W\), got \(3, 96, 64\)"),
        "embedding width": (
            {"image_embeddings": torch.zeros(2, 31, 12, 8)},
            r"\(N, 32, H'', W''\), got \(2, 31, 12, 8\)",
        ),
        "labels alone": ({"pixel_values": pixels, "input_labels": labels}, "need input_points"),
        "points": (
            {"pixel_values": pixels, "input_points": points[:, 0]},
            r"\(N, P, M1, 2\), got \(2, 1, 2\)",
        ),
        "labels": (
            {"pixel_values": pixels, "input_points": points, "input_labels": labels[:, :2]},
            r"\(2, 3, 1\), one label a point, got \(2, 2, 1\)",
        ),
        "boxes": (
            {"pixel_values": pixels, "input_boxes": boxes[..., :3]},
            r"\(N, P, 4\) or \(N, P, M2, 4\), got \(2, 3, 3\)",
        ),
        "masks": (
            {"pixel_values": pixels, "input_masks": masks.expand(2, 3, 48, 32)},
            r"\(N, 1, H', W'\) or \(N, P, M3, H', W'\), got \(2, 3, 48, 32\)",
        ),
        "mask size": (
            {"pixel_values": pixels, "input_masks": masks[..., :16]},
            r"logits of size \(48, 32\), got \(48, 16\)",
        ),
        "images": (
            {"pixel_values": pixels, "input_points": points[:1], "input_labels": labels[:1]},
            "input_points has prompts of 1 images, but there are 2",
        ),
        "sets": (
            {"pixel_values": pixels, "input_points": points, "input_boxes": boxes[:, :2]},
            r"number of prompt sets P: .*'input_points': 3, 'input_boxes': 2",
        ),
        "true masks": (
            {"pixel_values": pixels, "input_points": points, "labels": torch.zeros(2, 2, 48, 32)},
            r"\('N', 3, 'h', 'w'\), one true mask a prompt set, .*, got \(2, 2, 48, 32\)",
        ),
    }


@pytest.mark.parametrize("case", bad_inputs(None))
@torch.no_grad()
def test_bad_input_says_what_was_expected(model, case):
    inputs, message = bad_inputs(model)[case]
    with pytest.raises(ValueError, match=message):
        model(**inputs)
