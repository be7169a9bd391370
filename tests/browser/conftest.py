"""A headless Chromium: the machine's, or else the one that Playwright keeps."""

import pytest
from playwright.sync_api import Error, expect, sync_playwright

from tests.programs import find_chromium

FLAGS = (
    "--no-sandbox",  # Chromium has none for root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MS = 90_000  # a machine with other work to do must not make a test fail
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(FLAGS))
        except Error as error:
            pytest.fail(f"Chromium does not start; `make programs` installs it. {error}")
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Opens pages, each as another visitor; whatever they ask for has to come from this machine."""
    contexts, requests, complaints = [], [], []

    def open_page(url, **options):
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 900}, **options))
        contexts[-1].set_default_timeout(PATIENCE_MS)
        page = contexts[-1].new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    here = ("http://127.0.0.1:", "data:", "blob:", "file:")
    assert [url for url in requests if not url.startswith(here)] == []
    assert complaints == []
