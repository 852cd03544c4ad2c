"""Tests in a real browser: a headless Chromium, driven by Playwright.

``tox -e browser`` runs them. They need the Chromium of the system (Debian's package
``chromium``; ``CHROMIUM`` names another program), since it is in no wheel, and so they are in
no default run: mark each module with ``pytestmark = pytest.mark.browser``.

``open_page(path)``
    A fixture: opens a path of the test site, served by ``live_server``, in a new and empty
    profile, and returns Playwright's ``Page``. Options are those of a browser context, such as
    ``locale="de"`` or ``java_script_enabled=False``. A page that logs an error or throws one
    fails the test, and so does a request to anywhere else than the site.

``check_page(page, name)``
    A fixture: looks at a page as a phone and as a desktop show it, in light and in dark. It
    keeps the four screenshots as ``screenshots/<name>-phone-dark.png`` and so on, fails where
    the page is wider than the screen, and runs axe-core, where any violation fails. The page is
    left as it was. ``exclude`` has CSS selectors of what is not this project's to mend (parts
    of Django's own admin).
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SCREENSHOTS = Path(__file__).parents[2] / "screenshots"

PHONE = {"width": 375, "height": 740}
DESKTOP = {"width": 1280, "height": 800}

# What a page is held to: WCAG 2.2, level AA, and axe-core's own best practices.
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]

# A browser that asks nobody but the site; without a sandbox it also starts for root.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One browser for all tests; each page has a profile of its own."""
    from playwright.sync_api import sync_playwright

    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if path is None:
        pytest.fail("There is no Chromium: install it, or let CHROMIUM name the program.")
    # Playwright keeps an event loop in this thread, in which Django would allow no query.
    with pytest.MonkeyPatch.context() as patch, sync_playwright() as playwright:
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, live_server: Any) -> Iterator[Callable[..., Page]]:
    """Open a path of the site; see above."""
    contexts = []
    errors: list[str] = []

    def open_path(path: str, **options: Any) -> Page:
        options = {"locale": "en-GB", "viewport": DESKTOP, "reduced_motion": "reduce", **options}
        context = browser.new_context(base_url=live_server.url, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "console",
            lambda message: errors.append(message.text) if message.type == "error" else None,
        )
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((live_server.url, "data:"))
                else errors.append(f"It asked for {request.url}")
            ),
        )
        page.goto(path)
        return page

    yield open_path
    for context in contexts:
        context.close()
    # The server's threads give back their connections to the database after that.
    for thread in threading.enumerate():
        if "process_request_thread" in thread.name:
            thread.join(10)
    # A page that answers 404 on purpose is reported by Chromium like one that is missing.
    assert [error for error in errors if "status of 404" not in error] == []


@pytest.fixture
def check_page() -> Callable[..., None]:
    """Look at a page, and keep what is seen; see above."""
    from axe_playwright_python.sync_playwright import Axe

    def check(page: Page, name: str, *, exclude: tuple[str, ...] = ()) -> None:
        before = page.viewport_size
        problems = []
        for device, viewport in (("phone", PHONE), ("desktop", DESKTOP)):
            page.set_viewport_size(viewport)
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                page.evaluate("scrollTo(0, 0)")
                # The admin's links take their time to change their colours.
                page.evaluate("Promise.all(document.getAnimations().map(one => one.finished))")
                page.screenshot(path=SCREENSHOTS / f"{name}-{device}-{scheme}.png", full_page=True)
                results = Axe().run(
                    page,
                    context={"exclude": [[selector] for selector in exclude]},
                    options={"runOnly": RULES, "resultTypes": ["violations"]},
                )
                problems += [
                    f"{device}, {scheme}: {violation['id']}: {violation['help']}: {node['html']}: "
                    f"{node['failureSummary']}"
                    for violation in results.response["violations"]
                    for node in violation["nodes"]
                ]
                width = page.evaluate("document.documentElement.scrollWidth")
                if width > viewport["width"]:
                    problems.append(f"{device}: the page is {width} pixels wide")
        page.set_viewport_size(before)
        page.emulate_media(color_scheme="light")
        assert not problems, "\n".join(problems)

    return check
