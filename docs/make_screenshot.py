"""Makes the picture of the demo's page: `python docs/make_screenshot.py`. Needs Chromium."""

import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

import segment_anything_transformers
from segment_anything_transformers import SegmentAnythingModel
from segment_anything_transformers.cli.main import DEMO_IMAGE, DEMO_POINT
from segment_anything_transformers.demo.app import build_app, start

FILE = Path(__file__).parent / "images" / "demo.png"


def click_on_photograph(page: Page, image: Image.Image) -> None:
    """Clicks where the other pictures are clicked too, and waits for the mask."""
    frame = page.locator("#canvas img").bounding_box()
    assert frame is not None
    scale = frame["width"] / image.width
    page.mouse.click(frame["x"] + scale * DEMO_POINT[0], frame["y"] + scale * DEMO_POINT[1])
    page.get_by_text("predicted quality").wait_for()
    page.wait_for_timeout(1000)  # the picture comes after the text


def main() -> None:
    """Serves the page, clicks, and takes the picture."""
    package = Path(segment_anything_transformers.__file__).parent
    image = Image.open(package / "demo" / DEMO_IMAGE)
    app = build_app(SegmentAnythingModel.from_pretrained("sam_vit_t").eval(), image)
    url = start(app, port=0)
    with sync_playwright() as playwright:
        path = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 760})
        page.goto(url)
        page.get_by_text("Click on something in the picture.").last.wait_for()
        page.locator("#canvas img").wait_for()
        click_on_photograph(page, image)
        page.screenshot(path=FILE)
        browser.close()
    app.close()


if __name__ == "__main__":
    main()
