"""The endpoint's handler: right answers, reasons for refusals, and no request harms another."""

import base64
import gc
import json
import threading
import urllib.error
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from importlib.util import module_from_spec, spec_from_file_location
from io import BytesIO
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from hub_cards.handler import MAX_FILE_BYTES, MAX_PROMPTS, EndpointHandler
from hub_cards.serve import MAX_BODY_BYTES, make_server
from segment_anything_transformers import SAMAutomaticMaskGenerator, SAMPredictor
from segment_anything_transformers.model.configuration_segment_anything import GENERATOR_THRESHOLDS
from segment_anything_transformers.model.mask_ops import rle_to_mask
from tests.environments import run_python
from tests.fake_backend import small_config
from tests.tiny import random_model

WIDTH, HEIGHT = 90, 60
POINT, BOX = [30, 20], [10, 5, 70, 55]
EVERYTHING = {"points_per_side": 3, "pred_iou_thresh": 0, "stability_score_thresh": 0}


@pytest.fixture(scope="module")
def handler(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    random_model(small_config()).save_pretrained(folder)
    return EndpointHandler(str(folder))


def picture(seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (HEIGHT // 6, WIDTH // 6, 3), np.uint8)
    return Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def file_of(image, kind="PNG"):
    buffer = BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def encoded(content):
    return base64.b64encode(content).decode()


def request(image=None, **parameters):
    return {"inputs": encoded(file_of(image or picture())), "parameters": parameters}


def png_chunk(kind, data):
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def decompression_bomb(side=10_000):
    """A PNG of a few kilobytes that says, truly, that it holds `side` x `side` pixels."""
    size = side.to_bytes(4, "big")
    header = png_chunk(b"IHDR", size + size + b"\x01\x00\x00\x00\x00")
    rows = zlib.compress(bytes(side * (side // 8 + 1)), 9)
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")


def predicted(handler, image, box=None, **prompts):
    predictor = SAMPredictor(handler.model)
    predictor.set_image(image)
    predictor.zoom(box)
    arrays = {name: np.array(values) for name, values in prompts.items()}
    return predictor(**arrays)[:2]


def masks_in(answer):
    assert "error" not in answer, answer
    return np.stack([rle_to_mask(mask["segmentation"]) for mask in answer["masks"]])


def reason(answer, status, kind):
    assert set(answer) == {"error"}, answer
    assert (answer["error"]["status"], answer["error"]["type"]) == (status, kind), answer
    return answer["error"]["message"]


def test_each_object_gets_the_mask_of_its_own_prompts(handler):
    prompts = [
        {"points": [POINT, [80, 50]], "labels": [1, 0], "boxes": [BOX]},
        {"boxes": [BOX]},
        {"points": [POINT]},
    ]
    answer = json.loads(json.dumps(handler(request(prompts=prompts))))
    assert (answer["width"], answer["height"]) == (WIDTH, HEIGHT)
    assert [mask["prompt"] for mask in answer["masks"]] == [0, 1, 2]
    for prompt, mask, record in zip(prompts, masks_in(answer), answer["masks"], strict=True):
        masks, scores = predicted(
            handler, picture(), **prompt, multimask_output=prompt == prompts[2]
        )
        best = scores.argmax()
        np.testing.assert_array_equal(mask, masks[best])
        assert record["predicted_iou"] == pytest.approx(scores[best], abs=1e-6)
        assert record["area"] == masks[best].sum()


def test_all_masks_of_an_object_come_with_the_best_first(handler):
    answer = handler(request(prompts=[{"points": [POINT]}], multimask_output=True))
    masks, scores = predicted(handler, picture(), points=[POINT])
    order = np.argsort(-scores)
    np.testing.assert_array_equal(masks_in(answer), masks[order])
    assert [mask["predicted_iou"] for mask in answer["masks"]] == pytest.approx(scores[order])


def test_each_object_can_be_looked_at_closely(handler):
    boxes = [[[left, top, left + 12, top + 12]] for left in range(3, 75, 8) for top in (5, 25)]
    prompts = [{"boxes": boxes[0]}, {"points": [POINT]}, *({"boxes": box} for box in boxes[1:])]
    found = masks_in(handler(request(prompts=prompts, zoom=True)))
    kept_close = 0
    for mask, prompt in zip(found, prompts, strict=True):
        if "boxes" not in prompt:
            continue
        looks = [
            predicted(handler, picture(), box, **prompt, multimask_output=False)
            for box in (prompt["boxes"][0], None)
        ]
        (close, close_scores), (whole, whole_scores) = looks
        kept_close += close_scores[0] >= whole_scores[0]
        np.testing.assert_array_equal(
            mask, (close if close_scores[0] >= whole_scores[0] else whole)[0]
        )
    assert 0 < kept_close < len(boxes)
    alone = masks_in(handler(request(prompts=prompts[1:2], zoom=True)))
    np.testing.assert_array_equal(alone, found[1:2])  # whatever was zoomed to before


@pytest.mark.parametrize("parameters", [EVERYTHING, {"prompts": "everything", **EVERYTHING}])
def test_without_prompts_everything_is_found(handler, parameters):
    answer = handler(request(**parameters))
    generator = SAMAutomaticMaskGenerator(handler.model, **EVERYTHING, output_mode="coco_rle")
    assert answer["masks"] == generator.generate(picture())
    assert answer["masks"]


def test_thresholds_that_are_not_given_suit_the_model(handler, monkeypatch):
    thresholds = {name: EVERYTHING[name] for name in EVERYTHING if name != "points_per_side"}
    monkeypatch.setitem(GENERATOR_THRESHOLDS, handler.model.config.name, thresholds)
    parameters = {"points_per_side": EVERYTHING["points_per_side"]}
    assert handler(request(**parameters))["masks"] == handler(request(**EVERYTHING))["masks"]
    strict = handler(request(**parameters, pred_iou_thresh=1))
    assert strict["masks"] == []


def test_masks_can_come_as_pictures(handler):
    prompts = [{"points": [POINT]}]
    [mask] = handler(request(prompts=prompts, mask_format="png"))["masks"]
    pixels = np.asarray(Image.open(BytesIO(base64.b64decode(mask["segmentation"]))))
    np.testing.assert_array_equal(pixels, masks_in(handler(request(prompts=prompts)))[0])


def test_every_form_of_an_image_is_read(handler):
    content, parameters = file_of(picture()), {"prompts": [{"boxes": [BOX]}]}
    expected = handler({"inputs": content, "parameters": parameters})
    forms = [
        picture(),
        bytearray(content),
        "data:image/png;base64," + encoded(content),
        base64.encodebytes(content).decode(),
    ]
    assert masks_in(expected).shape == (1, HEIGHT, WIDTH)
    for form in forms:
        assert handler({"inputs": form, "parameters": parameters}) == expected
    text = json.dumps({"inputs": encoded(content), "parameters": parameters})
    assert handler(text) == handler(text.encode()) == expected


def test_a_photograph_is_turned_upright(handler):
    sideways = picture().transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = BytesIO()
    sideways.save(buffer, "PNG", exif=exif)
    prompts = {"prompts": [{"points": [POINT]}]}
    answer = handler({"inputs": buffer.getvalue(), "parameters": prompts})
    assert answer == handler({"inputs": picture(), "parameters": prompts})


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"prompts": []}, "list with a prompt in it, got \\[\\]"),
        ({"prompts": [{}]}, r"prompts\[0\] must be an object of points, labels and boxes"),
        ({"prompts": [{"points": [POINT]}, {"point": [POINT]}]}, r"prompts\[1\] must be an object"),
        ({"prompts": [{"points": POINT}]}, "points must be a list of 2 numbers each"),
        ({"prompts": [{"points": [[1, 2], [3]]}]}, "points must be a list of 2 numbers each"),
        ({"prompts": [{"points": [["1", "2"]]}]}, "points must be a list of 2 numbers each"),
        ({"prompts": [{"points": [[float("nan"), 1]]}]}, "must be finite numbers"),
        ({"prompts": [{"points": [[1e400, 1]]}]}, "must be finite numbers"),
        ({"prompts": [{"points": [[WIDTH + 9, 1]]}]}, r"\(99, 1\) lies outside .* of 90 x 60"),
        ({"prompts": [{"points": [[-50, 1]]}]}, r"points: \(-50, 1\) lies outside"),
        ({"prompts": [{"boxes": [[900, 5, 910, 9]]}]}, r"boxes: \(900, 5, 910, 9\) lies outside"),
        ({"prompts": [{"boxes": [[0.1, 0.1, 0.5, 0.5]]}]}, "normalised coordinates, from 0 to 1"),
        ({"prompts": [{"points": [[0.4, 0.6]]}]}, "Multiply x by 90 and y by 60"),
        ({"prompts": [{"boxes": [[70, 5, 10, 55]]}]}, "left, top, right, bottom in this order"),
        ({"prompts": [{"labels": [1]}]}, "labels must be as many as points, got \\[1\\]"),
        ({"prompts": [{"points": [POINT], "labels": [2]}]}, "labels must be 1 or 0"),
        ({"points": [POINT]}, "Unknown parameter 'points'. The parameters are prompts"),
        ({"multimask_output": 1}, "multimask_output must be true or false, got 1"),
        ({"zoom": "yes"}, "zoom must be true or false, got 'yes'"),
        ({"mask_format": "gif"}, "mask_format must be one of coco_rle, png, got 'gif'"),
        ({"points_per_side": 33}, "points_per_side must be a number from 1 to 32, got 33"),
        ({"points_per_side": 2.5}, "points_per_side must be a number from 1 to 32"),
        ({"pred_iou_thresh": "0"}, "pred_iou_thresh must be a number from 0 to 1"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(handler, parameters, message):
    said = reason(handler(request(**parameters)), 422, "invalid_parameters")
    with pytest.raises(ValueError, match=message):
        raise ValueError(said)


@pytest.mark.parametrize("data", ["{", b'{"inputs": ', "[" * 100_000, b"\xff\xfe"])
def test_what_is_not_json_is_refused(handler, data):
    assert "not JSON" in reason(handler(data), 400, "invalid_json")


@pytest.mark.parametrize("data", [[], None, {"image": "x"}, "[]", "3"])
def test_what_is_not_a_request_is_refused(handler, data):
    assert '"inputs"' in reason(handler(data), 400, "invalid_request")


def test_images_that_cannot_be_read_are_refused(handler):
    def refused(inputs, status, kind):
        return reason(handler({"inputs": inputs}), status, kind)

    assert "0 bytes" in refused(b"", 422, "invalid_image")
    assert "0 bytes" in refused("", 422, "invalid_image")
    assert "damaged" in refused(file_of(picture())[:500], 422, "invalid_image")
    assert "damaged" in refused(file_of(picture(), "GIF"), 422, "invalid_image")
    assert "too narrow: 900 x 2" in refused(Image.new("L", (900, 2)), 422, "invalid_image")
    assert "not fetched" in refused("https://host/a.png", 422, "invalid_parameters")
    assert "not base64" in refused("####", 422, "invalid_parameters")
    assert "got 'int'" in refused(7, 422, "invalid_parameters")
    assert "5000 x 5000, at most" in refused(decompression_bomb(5000), 413, "image_too_large")
    assert "at most 16777216 pixels" in refused(decompression_bomb(), 413, "image_too_large")
    assert "at most 16777216 pixels" in refused(decompression_bomb(16_000), 413, "image_too_large")
    assert "bytes" in refused(bytes(MAX_FILE_BYTES + 1), 413, "image_too_large")
    assert "bytes" in refused("A" * (2 * MAX_FILE_BYTES), 413, "image_too_large")


def test_a_bomb_is_refused_before_it_is_decoded(handler, monkeypatch):
    def decode(self):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", decode)
    reason(handler({"inputs": decompression_bomb()}), 413, "image_too_large")
    with pytest.raises(AssertionError, match="decoded"):
        handler({"inputs": file_of(picture())})


def test_too_many_prompts_are_refused(handler):
    points = [{"points": [POINT] * 10_000}]
    said = reason(handler(request(prompts=points)), 422, "too_many_prompts")
    assert said.startswith(f"Too many prompts: 10000 points and boxes, at most {MAX_PROMPTS}")
    objects = [{"points": [POINT]}] * 65
    said = reason(handler(request(prompts=objects)), 422, "too_many_prompts")
    assert "65 objects, at most 64" in said


@pytest.fixture
def address(handler):
    server = make_server(handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    thread.join()
    server.server_close()


def post(address, body, content_type="application/json"):
    """Status and answer."""
    headers = {"Content-Type": content_type}
    sent = urllib.request.Request(address, data=body, headers=headers)
    try:
        with urllib.request.urlopen(sent, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


BAD = {
    "wrong JSON": (b'{"inputs": "', 400, "invalid_json"),
    "bomb": (json.dumps({"inputs": encoded(decompression_bomb())}), 413, "image_too_large"),
    "0 bytes": (b'{"inputs": ""}', 422, "invalid_image"),
    "10,000 points": (
        json.dumps(request(prompts=[{"points": [POINT] * 10_000}])),
        422,
        "too_many_prompts",
    ),
}


@pytest.mark.slow
def test_fifty_requests_at_once_a_third_of_them_bad(handler, address):
    """Each with its own picture, so that an answer to another request would be noticed."""
    good = [
        request(picture(seed), prompts=[{"points": [POINT]}, {"boxes": [BOX]}])
        for seed in range(34)
    ]
    expected = [handler(sent) for sent in good]
    assert len({json.dumps(answer) for answer in expected}) == 34
    bad = [list(BAD.values())[index % 4] for index in range(16)]
    bodies = [json.dumps(sent).encode() for sent in good]
    for index, (body, _, _) in enumerate(bad):  # among the good ones
        bodies.insert(3 * index, body if isinstance(body, bytes) else body.encode())
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda body: post(address, body), bodies))
    for index, (_, status, kind) in enumerate(bad):
        assert answers[3 * index][0] == status
        reason(answers[3 * index][1], status, kind)
    refused = {3 * index for index in range(16)}
    assert [a for i, a in enumerate(answers) if i not in refused] == [(200, e) for e in expected]


def test_an_image_alone_can_be_posted(handler, address):
    status, answer = post(address, file_of(picture()), "image/png")
    assert status == 200
    assert answer == handler({"inputs": picture()})


def test_a_body_that_is_too_large_is_not_read(address):
    sent = urllib.request.Request(address, data=b"{}")
    sent.add_header("Content-Length", str(MAX_BODY_BYTES + 1))
    with pytest.raises(urllib.error.HTTPError, match="413") as refused:
        urllib.request.urlopen(sent, timeout=10)
    refused.value.close()


def memory_growth(folder):
    """Bytes that 450 requests add to what the first fifty needed, good and bad ones in turn."""
    handler, process = EndpointHandler(folder), psutil.Process()
    photo = picture().resize((800, 600))  # 1.4 MB: a leak of one an answer would be 120 MB
    requests = [
        request(photo, prompts=[{"points": [POINT]}]),
        *(body for body, _, _ in BAD.values()),
    ]

    def memory_after(count):
        for index in range(count):
            handler(requests[index % len(requests)])
        gc.collect()
        return process.memory_info().rss

    first = memory_after(50)
    return memory_after(450) - first


@pytest.mark.slow
def test_memory_stays_flat_over_five_hundred_requests(handler, tmp_path):
    """In a process of its own: what other tests leave behind moves as well."""
    handler.model.save_pretrained(tmp_path)
    code = "from tests.hub_cards.test_handler import memory_growth\n"
    assert run_python(f"{code}result = memory_growth({str(tmp_path)!r})") < 16e6


def test_the_folder_of_an_endpoint_holds_what_it_needs(handler, tmp_path):
    """Loaded as the endpoint's server does: the file alone, out of the model's repository."""
    source = Path(__file__).parents[2] / "hub_cards" / "handler.py"
    (tmp_path / "handler.py").write_text(source.read_text())
    handler.model.save_pretrained(tmp_path)
    spec = spec_from_file_location("handler", tmp_path / "handler.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    sent = request(prompts=[{"points": [POINT]}])
    assert module.EndpointHandler(path=str(tmp_path))(sent) == handler(sent)


def test_a_pil_image_that_is_cut_off_is_refused(handler):
    cut = Image.open(BytesIO(file_of(picture())[:500]))
    assert "damaged" in reason(handler({"inputs": cut}), 422, "invalid_image")


def test_prompts_a_little_outside_are_answered(handler):
    prompts = [{"points": [[WIDTH, HEIGHT]]}, {"boxes": [[-1, 0, WIDTH + 2, HEIGHT]]}]
    assert len(masks_in(handler(request(prompts=prompts)))) == 2


@pytest.mark.parametrize("prompts", [[{"points": [POINT]}], "everything"])
def test_answers_that_are_no_numbers_are_an_error(tmp_path, prompts):
    model = random_model(small_config())
    model.save_pretrained(tmp_path)
    broken = EndpointHandler(str(tmp_path))
    broken.model.mask_decoder.iou_token.weight.data.fill_(float("nan"))
    answer = broken(request(prompts=prompts))
    assert "NaN or infinite" in reason(answer, 500, "model_failed")
    json.dumps(answer, allow_nan=False)


def test_weights_that_give_nonsense_are_refused_at_the_start(tmp_path):
    model = random_model(small_config())
    model.mask_decoder.iou_token.weight.data.fill_(float("nan"))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="are NaN or infinite"):
        EndpointHandler(str(tmp_path))
