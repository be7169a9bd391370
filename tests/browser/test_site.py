"""The documentation in a browser: diagrams are drawn, by a script of the site's own."""

import re

import pytest
from playwright.sync_api import expect

from tests.floors import arrows, read_imports
from tests.made_once import built_site

pytestmark = [pytest.mark.browser, pytest.mark.node, pytest.mark.slow]
# The theme draws into a shadow root that is closed to others.
OPEN_ROOTS = """
const attach = Element.prototype.attachShadow
Element.prototype.attachShadow = function () { return attach.call(this, { mode: "open" }) }
"""


def test_the_drawing_of_the_wings_is_drawn(visit, tmp_path_factory):
    site = built_site(tmp_path_factory)
    page = visit("about:blank")
    page.context.add_init_script(OPEN_ROOTS)
    page.goto((site / "design" / "index.html").as_uri())
    drawn = page.locator(".mermaid svg")
    expect(drawn).to_be_visible()
    rooms = arrows(read_imports())
    for room in rooms:
        expect(drawn.locator(".node").filter(has_text=re.compile(f"^{room}/?"))).to_have_count(1)
    assert drawn.bounding_box()["height"] > 300
