import inspect
import json
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from segment_anything_transformers import (
    SAMAutomaticMaskGenerator,
    SAMPredictor,
    SegmentAnythingModel,
)
from segment_anything_transformers.cli.arguments import build_parser
from segment_anything_transformers.cli.main import main
from segment_anything_transformers.cli.models import load_model
from segment_anything_transformers.model.configuration_segment_anything import GENERATOR_THRESHOLDS
from segment_anything_transformers.model.mask_ops import rle_to_mask
from segment_anything_transformers.prediction.generator_options import GENERATOR_OPTIONS
from segment_anything_transformers.prediction.object_masks import Look, segment_closely
from segment_anything_transformers.prediction.prompts import sure_logits
from segment_anything_transformers.prediction.whole_files import whole_file
from tests.fake_backend import small_config
from tests.tiny import random_model

WIDTH, HEIGHT = 90, 60


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    random_model(small_config()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(model_folder):
    return SegmentAnythingModel.from_pretrained(model_folder).eval()


@pytest.fixture
def image():
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT // 6, WIDTH // 6, 3), np.uint8)
    return Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


@pytest.fixture
def photo(image, tmp_path, monkeypatch):
    """A picture in the folder that the command is run in."""
    monkeypatch.chdir(tmp_path)
    image.save("photo.png")
    return "photo.png"


@pytest.fixture
def run(capsys, model_folder):
    """Runs a command line with the tiny model, unless it names another."""

    def run_command(line):
        words = shlex.split(line)
        if words[0] in ("predict", "generate", "demo") and "--model" not in words:
            words += ["--model", str(model_folder)]
        try:
            code = main(words)
        except SystemExit as stop:  # argparse's way
            code = stop.code
        output = capsys.readouterr()
        return code, output.out, output.err

    return run_command


def mask_in(path):
    pixels = np.asarray(Image.open(path))
    assert pixels.dtype == np.uint8
    assert set(np.unique(pixels)) <= {0, 255}
    return pixels == 255


def results(folder, stem):
    """The JSON's content; each mask's picture holds what its run lengths say."""
    content = json.loads((folder / f"{stem}.json").read_text())
    for mask in content["masks"]:
        np.testing.assert_array_equal(
            mask_in(folder / mask["file"]), rle_to_mask(mask["segmentation"])
        )
    return content


def test_predict_writes_what_the_predictor_says(run, photo, tmp_path, model, image):
    code, out, err = run("predict photo.png --point 30,20 --negative 80,50 --box 10,5,70,55 -o out")
    assert (code, err) == (0, "")
    assert "written to out/" in out
    predictor = SAMPredictor(model)
    predictor.set_image(image)
    masks, scores, _ = predictor(
        points=np.array([[30, 20], [80, 50]]),
        labels=np.array([1, 0]),
        boxes=np.array([[10, 5, 70, 55]]),
        multimask_output=False,
    )
    content = results(tmp_path / "out", "photo")
    [mask] = content.pop("masks")
    np.testing.assert_array_equal(rle_to_mask(mask["segmentation"]), masks[0])
    assert mask["predicted_iou"] == pytest.approx(scores[0], abs=1e-6)
    assert mask["area"] == masks[0].sum()
    rows, columns = np.nonzero(masks[0])
    left, top = columns.min(), rows.min()
    assert mask["bbox"] == [left, top, columns.max() - left, rows.max() - top]
    assert content.pop("model").startswith("/")
    assert content == {
        "image": "photo.png",
        "width": WIDTH,
        "height": HEIGHT,
        "prompts": {
            "points": [[30, 20], [80, 50]],
            "labels": [1, 0],
            "boxes": [[10, 5, 70, 55]],
        },
    }
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "photo.json",
        "photo_mask_00.png",
        "photo_overlay.png",
    ]
    with Image.open(tmp_path / "out" / "photo_overlay.png") as overlay:
        assert (overlay.size, overlay.mode) == ((WIDTH, HEIGHT), "RGB")


def test_a_lone_click_gives_the_best_of_several(run, photo, tmp_path, model, image):
    assert run("predict photo.png --point 30,20 -o one")[0] == 0
    assert run("predict photo.png --point 30,20 --multimask -o all")[0] == 0
    predictor = SAMPredictor(model)
    predictor.set_image(image)
    masks, scores, _ = predictor(points=np.array([[30, 20]]))
    order = np.argsort(-scores)
    everything = results(tmp_path / "all", "photo")["masks"]
    assert len(everything) == len(masks)
    for mask, index in zip(everything, order, strict=True):
        np.testing.assert_array_equal(rle_to_mask(mask["segmentation"]), masks[index])
    assert results(tmp_path / "one", "photo")["masks"] == everything[:1]


def test_a_rough_mask_is_a_prompt(run, photo, tmp_path, model, image):
    rough = np.zeros((HEIGHT, WIDTH), bool)
    rough[10:40, 20:60] = True
    Image.fromarray(rough).save("rough.png")
    assert run("predict photo.png --mask rough.png")[0] == 0
    predictor = SAMPredictor(model)
    predictor.set_image(image)
    logits = predictor.preprocess_masks(np.where(rough, 8.0, -8.0).astype(np.float32)[None])
    expected = predictor(masks=logits, multimask_output=False)[0][0]
    content = results(tmp_path / "segmented", "photo")
    np.testing.assert_array_equal(rle_to_mask(content["masks"][0]["segmentation"]), expected)
    assert content["prompts"] == {"mask": "rough.png"}


@pytest.mark.parametrize("prompt", ["box", "point", "mask"])
def test_zoom_looks_at_the_object_once_more(run, photo, tmp_path, model, image, prompt):
    rough = np.zeros((HEIGHT, WIDTH), bool)
    rough[10:30, 20:40] = True
    Image.fromarray(rough).save("rough.png")
    predictor = SAMPredictor(model)
    predictor.set_image(image)
    option, ask = {
        "box": ("--box 20,10,40,30", lambda: {"boxes": np.array([[20, 10, 40, 30]])}),
        "point": ("--point 30,20", lambda: {"points": np.array([[30, 20]])}),
        "mask": (
            "--mask rough.png",
            lambda: {"masks": predictor.preprocess_masks(sure_logits(rough)[None])},
        ),
    }[prompt]
    code, _, err = run(f"predict photo.png {option} --zoom --multimask")
    assert code == 0
    expected, _, look = segment_closely(predictor, ask, keep_all=True)
    found = results(tmp_path / "segmented", "photo")["masks"]
    for record, mask in zip(found, expected, strict=True):
        np.testing.assert_array_equal(rle_to_mask(record["segmentation"]), mask)
    assert (look is Look.CLOSE) == ("--zoom keeps" not in err)


def test_generate_writes_what_the_generator_finds(run, photo, tmp_path, model, image):
    options = "--points-per-side 2 --pred-iou-thresh -9 --stability-score-thresh 0"
    options += " --crop-n-layers 1 --box-nms-thresh 1 --crop-nms-thresh 1"
    assert run(f"generate photo.png {options}")[0] == 0
    generator = SAMAutomaticMaskGenerator(
        model,
        points_per_side=2,
        pred_iou_thresh=-9,
        stability_score_thresh=0,
        crop_n_layers=1,
        box_nms_thresh=1,
        crop_nms_thresh=1,
        output_mode="coco_rle",
    )
    content = results(tmp_path / "segmented", "photo")
    names = [mask.pop("file") for mask in content["masks"]]
    assert len(names) > 10
    assert names == sorted(path.name for path in (tmp_path / "segmented").glob("*_mask_*.png"))
    assert content["masks"] == generator.generate(image)
    assert content["options"]["points_per_side"] == 2


def test_switches_of_the_generator(run, photo, tmp_path, model, image, monkeypatch):
    compiled = []
    monkeypatch.setattr(type(model.image_encoder), "compile", lambda self: compiled.append(self))
    lenient = {"points_per_side": 6, "pred_iou_thresh": -9, "stability_score_thresh": 0}
    lenient |= {"skip_covered_points": True, "crop_n_layers": 1, "merge_crop_seams": True}
    options = "--points-per-side 6 --pred-iou-thresh -9 --stability-score-thresh 0"
    options += " --skip-covered-points --crop-n-layers 1 --merge-crop-seams"
    assert run(f"generate photo.png {options} --compile")[0] == 0
    assert len(compiled) == 1
    content = results(tmp_path / "segmented", "photo")
    for mask in content["masks"]:
        del mask["file"]
    generator = SAMAutomaticMaskGenerator(model, **lenient, output_mode="coco_rle")
    assert content["masks"] == generator.generate(image)
    assert lenient.items() <= content["options"].items()


def test_generator_options_have_the_generators_names_and_defaults():
    parameters = inspect.signature(SAMAutomaticMaskGenerator).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    not_for_a_command = ("model", "point_grids", "output_mode", "preprocessing")
    not_for_a_command += ("dtype",)  # an option of every command
    expected = {name: defaults[name] for name in defaults if name not in not_for_a_command}
    assert {option.name: option.default for option in GENERATOR_OPTIONS} == expected


def test_less_is_asked_of_masks_of_the_small_model(run, photo, tmp_path):
    asked = "generate photo.png --points-per-side 2 --stability-score-thresh 0.5 --json-only"
    low = GENERATOR_THRESHOLDS["sam_vit_t"]["pred_iou_thresh"]
    for model, expected in (("", 0.88), ("--model sam_vit_t", low)):
        assert run(f"{asked} {model}")[0] == 0
        content = json.loads((tmp_path / "segmented" / "photo.json").read_text())
        options = content["options"]
        assert options["pred_iou_thresh"] == expected
        assert options["stability_score_thresh"] == 0.5


def test_nothing_found_is_a_result(run, photo, tmp_path):
    code, out, _ = run("generate photo.png --points-per-side 2 --pred-iou-thresh 99")
    assert code == 0
    assert results(tmp_path / "segmented", "photo")["masks"] == []
    assert re.search(r"photo\.png .* 0 .* - ", out)
    overlay = np.asarray(Image.open(tmp_path / "segmented" / "photo_overlay.png"))
    np.testing.assert_array_equal(overlay, np.asarray(Image.open(photo)))


def test_a_damaged_image_does_not_stop_the_others(run, photo, image, tmp_path):
    image.resize((800, 600)).save("cut.jpg", quality=95)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(cut.read_bytes()[:9000])
    image.save("last.bmp")
    (tmp_path / "words.jpg").write_text("no picture")
    code, out, err = run("predict photo.png cut.jpg words.jpg missing.png last.bmp --point 30,20")
    assert code == 1
    assert err.count("segment-anything: ") == 3
    assert "cut.jpg: the image is damaged (" in err
    assert "words.jpg: not an image that can be read" in err
    assert "missing.png: no such file" in err
    assert "Traceback" not in err
    assert "last.bmp" in out
    assert {path.name for path in (tmp_path / "segmented").glob("*.json")} == {
        "photo.json",
        "last.json",
    }


def test_json_only_and_quiet(run, photo, tmp_path):
    assert run("predict photo.png --point 30,20 --json-only --quiet -o out") == (0, "", "")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["photo.json"]
    [mask] = json.loads((tmp_path / "out" / "photo.json").read_text())["masks"]
    assert mask["file"] is None
    assert rle_to_mask(mask["segmentation"]).shape == (HEIGHT, WIDTH)


def test_quiet_still_says_what_went_wrong(run, photo):
    assert run("predict photo.png nix.png --point 3,2 -q") == (
        1,
        "",
        "segment-anything: nix.png: no such file\n",
    )


def test_clicks_are_in_the_upright_image(run, photo, image, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise for viewing
    image.transpose(Image.Transpose.ROTATE_90).save("turned.png", exif=exif)
    assert run(f"predict photo.png turned.png --point {WIDTH - 2},{HEIGHT - 2}")[0] == 0
    upright, turned = (results(tmp_path / "segmented", name) for name in ("photo", "turned"))
    assert turned["masks"][0]["segmentation"] == upright["masks"][0]["segmentation"]
    assert (turned["width"], turned["height"]) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "I;16", "CMYK"])
def test_pictures_of_every_mode(run, photo, image, mode, tmp_path):
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        picture = image.convert(mode)
    picture.save("other.tif")
    assert run("predict other.tif --point 30,20")[0] == 0
    assert results(tmp_path / "segmented", "other")["masks"][0]["segmentation"]["size"] == [
        HEIGHT,
        WIDTH,
    ]


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_other_precisions(run, photo, tmp_path, dtype):
    assert run(f"predict photo.png --point 30,20 --dtype {dtype}")[0] == 0
    assert len(results(tmp_path / "segmented", "photo")["masks"]) == 1


def test_the_decoder_keeps_its_precision():
    model = load_model("sam_vit_t", framework="torch", dtype="bfloat16")
    parts = (model.image_encoder, model.mask_decoder)
    encoder, decoder = ({weight.dtype for weight in part.parameters()} for part in parts)
    assert (encoder, decoder) == ({torch.bfloat16}, {torch.float32})


def test_demo_needs_no_image(run, photo, tmp_path):
    code, out, _ = run("demo -o demo_output")
    assert code == 0
    assert "coffee.jpg" in out
    content = results(tmp_path / "demo_output", "coffee")
    assert len(content["prompts"]["points"]) == 1


def test_demo_clicks_on_the_middle_of_your_own_image(run, photo, tmp_path):
    assert run("demo --image photo.png")[0] == 0
    content = results(tmp_path / "segmented", "photo")
    assert content["prompts"] == {"points": [[WIDTH // 2, HEIGHT // 2]], "labels": [1]}


def test_models_are_listed(run):
    code, out, err = run("models")
    assert (code, err) == (0, "")
    rows = [
        re.split(r"\s*│\s*", line.strip("│ ")) for line in out.splitlines() if "sam_vit" in line
    ]
    assert [row[0] for row in rows] == ["sam_vit_t", "sam_vit_b", "sam_vit_l", "sam_vit_h"]
    assert rows[1] == ["sam_vit_b", "93.7 M", "375 MB", "1024 x 1024", "facebook/sam-vit-base"]
    assert rows[0][-1] == "in the package"


def test_help_has_examples_that_work(run):
    code, out, _ = run("--help")
    assert code == 0
    assert all(command in out for command in ("predict", "generate", "models", "demo"))
    for command in ("predict", "generate", "demo"):
        _, out, _ = run(f"{command} --help")
        examples = re.findall(r"^  segment-anything (.*)$", out, re.MULTILINE)
        assert examples
        for example in examples:
            assert build_parser().parse_args(shlex.split(example)).command == command


USAGE_ERRORS = {
    "": "the following arguments are required: COMMAND",
    "segment photo.png": "argument COMMAND: invalid choice: 'segment'",
    "predict": "the following arguments are required: IMAGE",
    "predict photo.png": "predict needs to know which object: --point, --box or --mask",
    "predict photo.png --negative 3,4": "predict needs to know which object",
    "predict nix.png --point 3,4": "nix.png: no such file",
    "predict words.jpg --point 3,4": "words.jpg: not an image that can be read",
    "predict bare --point 3,4": "bare: no image in this folder; --recursive looks into its",
    "predict empty.png --point 3,4": "empty.png: not an image that can be read",
    "predict photo.png --point 99,4": "--point: (99, 4) lies outside the image of 90 x 60",
    "predict photo.png --point 3,70": "--point: (3, 70) lies outside the image of 90 x 60",
    "predict photo.png --point=-50,4": "--point: (-50, 4) lies outside the image",
    "predict photo.png --point 0.5,0.3": "these look like normalised coordinates, from 0 to 1",
    "predict photo.png --box 0.1,0.1,0.5,0.5": "Multiply x by 90 and y by 60",
    "predict photo.png --point 3": "argument --point: expected x,y as numbers, got '3'",
    "predict photo.png --point 3,4,5": "expected x,y as numbers, got '3,4,5'",
    "predict photo.png --point a,b": "expected x,y as numbers, got 'a,b'",
    "predict photo.png --point nan,4": "expected x,y as numbers, got 'nan,4'",
    "predict photo.png --box 9,9,3,20": "with left <= right and top <= bottom, got '9,9,3,20'",
    "predict photo.png --box 9,9,20,3": "with left <= right and top <= bottom, got '9,9,20,3'",
    "predict photo.png --box 1,2,3": "expected left,top,right,bottom as numbers, got '1,2,3'",
    "predict photo.png --box 1,2,191,9": "--box: (1, 2, 191, 9) reaches far outside the image",
    "predict photo.png --mask nix.png": "nix.png: no such file",
    "predict photo.png --mask small.png": "the mask has 20 x 10 pixels, the image 90 x 60",
    "predict photo.png --point 3,4 --model sam_vit_x": "unknown model 'sam_vit_x': expected sam_",
    "predict photo.png --point 3,4 --model ./nix.pth": "unknown model './nix.pth'",
    "predict photo.png --point 3,4 --model words.jpg": "cannot load the model words.jpg: ",
    "predict photo.png --point 3,4 --model folder": "cannot load the model folder: ",
    "predict photo.png --point 3,4 --dtype int4": "argument --dtype: invalid choice: 'int4'",
    "generate photo.png --framework tf --dtype int8": "--dtype int8 is PyTorch's",
    "predict photo.png --point 3,4 --device tpu": "the device 'tpu' cannot be used here: ",
    "predict photo.png --point 3,4 --device meta": "the device 'meta' cannot be used here: ",
    "predict photo.png --point 3,4 --device cpu:x": "the device 'cpu:x' cannot be used here: ",
    "predict photo.png --point 3,4 --colour red": "unrecognized arguments: --colour red",
    "predict photo.png --point 3,4 -o words.jpg": "--output words.jpg: File exists",
    "predict photo.png folder/photo.jpg --point 3,4": "would have the same names",
    "generate photo.png --points-per-side x": "argument --points-per-side: invalid int value: 'x'",
    "generate photo.png --points-per-side 0": "got 0",
    "generate photo.png --crop-overlap-ratio 2": "crop_overlap_ratio must lie in [0, 1), got 2.0",
    "demo --image nix.png": "nix.png: no such file",
    "demo --point 3000,4": "--point: (3000, 4) lies outside the image of 600 x 400",
}


@pytest.mark.parametrize("line", USAGE_ERRORS)
def test_what_the_user_got_wrong_is_one_line_and_code_2(line, run, photo, image, tmp_path):
    (tmp_path / "words.jpg").write_text("no picture")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "bare").mkdir()
    image.save("folder/photo.jpg")
    image.resize((20, 10)).save("small.png")
    code, out, err = run(line or "--quiet")
    assert code == 2
    assert USAGE_ERRORS[line] in err
    assert err.startswith("segment-anything")
    assert err.count("\n") == 1
    assert out == ""
    assert not (tmp_path / "segmented").is_dir() or not list((tmp_path / "segmented").iterdir())


def test_all_images_wrong_is_code_2_with_a_line_each(run, photo):
    code, out, err = run("predict nix.png photo.png --point 89,3 --point 3,59 --box 0,0,191,60")
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "segment-anything: nix.png: no such file",
        "segment-anything: photo.png: --box: (0, 0, 191, 60) reaches far outside the image of 90 x "
        "60 pixels (width x height). Coordinates are pixels of the image as it was given, before "
        "any resizing.",
    ]


def test_a_file_is_complete_or_as_it_was(tmp_path):
    path = tmp_path / "new" / "mask.png"
    with whole_file(path) as file:
        file.write(b"before")
        assert not path.exists()

    def write_half():
        with whole_file(path) as file:
            file.write(b"af")
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_half()
    assert path.read_bytes() == b"before"
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_is_said_in_a_line(run, photo, monkeypatch):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("segment_anything_transformers.cli.files.whole_file", no_space)
    assert run("predict photo.png --point 30,20") == (
        2,
        "",
        "segment-anything: photo.png: [Errno 28] No space left on device\n",
    )


def test_help_loads_no_framework():
    code = (
        "import sys\nfrom segment_anything_transformers.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print({'torch', 'tensorflow', 'transformers'} & set(sys.modules), file=sys.stderr)"
    )
    path = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=path, check=True
    )
    assert "outline one object" in done.stdout
    assert done.stderr == "set()\n"


def damaged(folder, change):
    """A saved model of which something was changed."""
    random_model(small_config()).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    change(weights, folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def drop_half(weights, folder):
    for name in sorted(weights)[::2]:
        del weights[name]


def spoil(weights, folder):
    weights["mask_decoder.iou_token.weight"][0, 0] = float("nan")


def write_text_as_depth(weights, folder):
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, "decoder_nb_blocks": "two"}))


DAMAGES = {
    drop_half: "weights are missing from my-sam",
    spoil: "1 weights of my-sam are NaN or infinite: mask_decoder.iou_token.weight",
    write_text_as_depth: "decoder_nb_blocks must be an integer, got 'two'",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_refused(run, photo, tmp_path, damage):
    damaged(tmp_path / "my-sam", damage)
    code, out, err = run("predict photo.png --point 3,4 --model my-sam")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "cannot load the model my-sam: " in err
    assert DAMAGES[damage] in err


@pytest.mark.parametrize("line", ["predict photo.png --point 3,4", "generate photo.png"])
def test_answers_that_are_no_numbers_are_not_written(run, photo, tmp_path, monkeypatch, line):
    """As of a model whose numbers overflow in half precision."""
    broken = random_model(small_config())
    with torch.no_grad():
        broken.mask_decoder.iou_token.weight.fill_(float("nan"))
    monkeypatch.setattr("segment_anything_transformers.cli.main.load_model", lambda *_: broken)
    code, _, err = run(line)
    assert code == 2
    assert "photo.png: The model's scores are NaN or infinite" in err
    assert not list((tmp_path / "segmented").iterdir())


def test_points_on_the_border_are_taken(run, photo):
    assert run("predict photo.png --point 90,60 --box 0,0,91,60.5")[0] == 0
