"""The demo as a visitor finds it: real clicks on the picture, and the files that come of them."""

import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from segment_anything_transformers import SAMPredictor, SegmentAnythingModel
from segment_anything_transformers.model.configuration_segment_anything import GENERATOR_THRESHOLDS
from segment_anything_transformers.model.mask_ops import rle_to_mask
from segment_anything_transformers.prediction.mask_generator import SAMAutomaticMaskGenerator
from tests.environments import SOURCE

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def scene(size, discs):
    """A plain picture with discs (x, y, radius, colour)."""
    width, height = size
    y, x = np.ogrid[:height, :width]
    pixels = np.full((height, width, 3), (60, 110, 70), np.uint8)
    for at_x, at_y, radius, colour in discs:
        pixels[(x - at_x) ** 2 + (y - at_y) ** 2 <= radius**2] = colour
    return Image.fromarray(pixels)


PICTURE = scene((480, 320), [(130, 110, 70, (216, 194, 60)), (350, 210, 70, (200, 55, 60))])
PORTRAIT = scene((300, 900), [(150, 200, 80, (216, 194, 60)), (150, 640, 90, (230, 230, 240))])


@pytest.fixture(scope="module")
def model():
    return SegmentAnythingModel.from_pretrained("sam_vit_t").eval()


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """Where the command serves the page, as a user starts it."""
    path = tmp_path_factory.mktemp("demo") / "picture.png"
    PICTURE.save(path)
    # A test run in the background of a shell ignores Ctrl-C, and so would what it starts.
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from segment_anything_transformers.cli.main import main; sys.exit(main())"
    arguments = ["demo", "--serve", "--port", "0", "--image", str(path)]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            found = re.match(
                r"open (http://127.0.0.1:\d+)/? in a browser", server.stdout.readline()
            )
            assert found, "the server did not start"
            yield found[1]
        finally:
            server.send_signal(signal.SIGINT)
            try:
                server.communicate(timeout=30)
            finally:
                server.kill()  # changes nothing, if it has ended
    assert server.returncode == 0


@pytest.fixture
def page(visit, url):
    return open_demo(visit, url)


def open_demo(visit, url):
    page = visit(url)
    says(page, "Click on something in the picture.")
    return page


def says(page, text):
    expect(page.locator("#caption")).to_contain_text(text)


def wait_for_picture(page):
    """Waits until the picture is there: one that is only being loaded has no place and no size."""
    page.wait_for_function(
        "(image => image.complete && image.naturalWidth)(document.querySelector('#canvas img'))"
    )


def click(page, x, y, size=PICTURE.size):
    """Clicks on a pixel of the picture, wherever the page shows it, and however large."""
    wait_for_picture(page)
    frame = page.locator("#canvas img").bounding_box()
    scale = min(frame["width"] / size[0], frame["height"] / size[1])
    left = frame["x"] + (frame["width"] - scale * size[0]) / 2
    top = frame["y"] + (frame["height"] - scale * size[1]) / 2
    page.mouse.click(left + scale * (x + 0.5), top + scale * (y + 0.5))


def choose(page, meaning):
    page.locator("#meaning label", has_text=meaning).click()


def download(page, name, folder):
    with page.expect_download() as waiting:
        page.locator(f"#{name}").click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def description(page, folder):
    """The JSON among the files, and its masks, each the same as its picture."""
    with zipfile.ZipFile(download(page, "archive", folder)) as archive:
        content = json.loads(archive.read("masks.json"))
        masks = [rle_to_mask(record["segmentation"]) for record in content["masks"]]
        for index, mask in enumerate(masks):
            with archive.open(f"mask_{index:03d}.png") as file:
                np.testing.assert_array_equal(Image.open(file), mask)
    return content, masks


def predicted(model, image, zoom=False, **prompts):
    """The best mask for the prompts that the page says it was given, maybe zoomed to their box."""
    predictor = SAMPredictor(model)
    predictor.set_image(image)
    predictor.zoom(prompts["boxes"][0] if zoom else None)
    arrays = {name: np.array(rows) for name, rows in prompts.items()}
    alone = set(prompts) == {"points", "labels"} and len(prompts["points"]) == 1
    masks, scores, _ = predictor(**arrays, multimask_output=alone)
    return masks[scores.argmax()]


def shown(page):
    """The pixels of the picture (H, W, 3) as the visitor sees it, once it has been loaded."""
    wait_for_picture(page)
    screenshot = BytesIO(page.locator("#canvas img").screenshot())
    return np.asarray(Image.open(screenshot).convert("RGB")).astype(np.int16)


def differ(one, other):
    """Whether a person would see it; Chromium draws the same picture with slight differences."""
    return np.abs(one - other).max() > 30


def test_a_click_changes_the_mask(page, model, tmp_path):
    before = shown(page)
    click(page, 130, 110)
    says(page, "Guess 1 of 3.")
    assert differ(shown(page), before)
    content, [mask] = description(page, tmp_path)
    [[x, y]] = content["prompts"]["points"]
    assert abs(x - 130) <= 1
    assert abs(y - 110) <= 1
    np.testing.assert_array_equal(mask, predicted(model, PICTURE, points=[[x, y]], labels=[1]))
    assert mask[110, 130]
    assert not mask[210, 350]
    np.testing.assert_array_equal(Image.open(download(page, "mask", tmp_path)), mask)
    cut_out = np.asarray(Image.open(download(page, "cut-out", tmp_path)))
    np.testing.assert_array_equal(cut_out[..., 3] == 255, mask)


def test_points_are_added_and_removed(page, model, tmp_path):
    click(page, 130, 110)
    says(page, "Guess 1 of 3.")
    lone, one_point = description(page, tmp_path)[1], shown(page)
    choose(page, "Background")
    click(page, 350, 210)
    expect(page.locator("#guess")).to_be_disabled()
    content, [mask] = description(page, tmp_path)
    assert content["prompts"]["labels"] == [1, 0]
    np.testing.assert_array_equal(mask, predicted(model, PICTURE, **content["prompts"]))
    assert differ(shown(page), one_point)
    click(page, 352, 212)  # on the disc that was just drawn
    says(page, "Guess 1 of 3.")
    np.testing.assert_array_equal(description(page, tmp_path)[1], lone)
    page.locator("#guess").click()
    says(page, "Guess 2 of 3.")
    page.locator("#clear").click()
    says(page, "Click on something in the picture.")
    expect(page.locator("#mask")).to_be_disabled()
    page.locator("#undo").click()
    says(page, "Guess 1 of 3.")


def test_two_clicks_make_a_box(page, model, tmp_path):
    choose(page, "Box")
    click(page, 425, 285)
    says(page, "Now click the corner across.")
    click(page, 275, 135)
    says(page, "predicted quality")
    content, [mask] = description(page, tmp_path)
    [box] = content["prompts"]["boxes"]
    np.testing.assert_allclose(box, [275, 135, 425, 285], atol=1)
    np.testing.assert_array_equal(mask, predicted(model, PICTURE, boxes=[box]))
    assert mask[210, 350]
    assert not mask[110, 130]


def test_marks_are_answered_from_close_by(page, model, tmp_path):
    choose(page, "Box")
    click(page, 275, 135)
    click(page, 425, 285)
    says(page, "predicted quality")
    content, [mask] = description(page, tmp_path)
    whole = page.locator("#canvas img").get_attribute("src")
    page.locator("#closely input").click()
    expect(page.locator("#canvas img")).not_to_have_attribute("src", whole)
    [closer] = description(page, tmp_path)[1]
    assert (closer != mask).any()
    expected = predicted(model, PICTURE, zoom=True, boxes=content["prompts"]["boxes"])
    np.testing.assert_array_equal(closer, expected)


def test_clicks_in_quick_succession_all_count(page, tmp_path):
    choose(page, "Box")
    click(page, 425, 285)
    click(page, 275, 135)  # before the first is answered
    says(page, "predicted quality")
    [box] = description(page, tmp_path)[0]["prompts"]["boxes"]
    np.testing.assert_allclose(box, [275, 135, 425, 285], atol=1)


def test_everything_is_found(page, model, tmp_path):
    page.locator("#everything").click()
    generator = SAMAutomaticMaskGenerator(
        model, points_per_side=24, **GENERATOR_THRESHOLDS["sam_vit_t"]
    )
    records = generator.generate(PICTURE)
    assert records
    says(page, f"{len(records)} mask")
    content, masks = description(page, tmp_path)
    assert content["prompts"] == {}
    np.testing.assert_array_equal(masks, [record["segmentation"] for record in records])


def test_a_picture_of_the_visitors_own(page, model, tmp_path):
    path = tmp_path / "portrait.png"
    PORTRAIT.save(path)
    page.locator("#upload input[type=file]").set_input_files(path)
    page.wait_for_function("document.querySelector('#canvas img').naturalHeight === 900")
    click(page, 150, 640, PORTRAIT.size)
    says(page, "Guess 1 of 3.")
    content, [mask] = description(page, tmp_path)
    [[x, y]] = content["prompts"]["points"]
    assert (abs(x - 150), abs(y - 640)) <= (2, 2)
    np.testing.assert_array_equal(mask, predicted(model, PORTRAIT, points=[[x, y]], labels=[1]))


def test_what_is_no_picture_is_refused_and_the_other_stays(page, tmp_path):
    click(page, 130, 110)
    says(page, "Guess 1 of 3.")
    before, _ = description(page, tmp_path)
    path = tmp_path / "notes.png"
    path.write_text("no picture")
    page.locator("#upload input[type=file]").set_input_files(path)
    expect(page.get_by_text("no picture that can be read")).to_be_visible()
    assert description(page, tmp_path)[0] == before
    Image.new("1", (9000, 9000)).save(path)
    page.locator("#upload input[type=file]").set_input_files(path)
    expect(page.get_by_text("too large: of 9000 x 9000 pixels")).to_be_visible()
    assert description(page, tmp_path)[0] == before


def test_visitors_do_not_see_each_others_marks(visit, url, tmp_path):
    one, other = open_demo(visit, url), open_demo(visit, url)
    click(one, 130, 110)
    says(one, "Guess 1 of 3.")
    click(other, 350, 210)
    says(other, "Guess 1 of 3.")
    [[x, _]] = description(one, tmp_path)[0]["prompts"]["points"]
    assert abs(x - 130) <= 1
    [[x, _]] = description(other, tmp_path)[0]["prompts"]["points"]
    assert abs(x - 350) <= 1
