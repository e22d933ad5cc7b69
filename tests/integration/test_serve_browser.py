"""`optwatch serve` in a real browser: what it draws, and what a page from elsewhere gets of it."""

import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="the extra `serve` is not installed")
playwright = pytest.importorskip("playwright.async_api", reason="needs playwright: pip install playwright")

from tests.daemons import GUARD  # noqa: E402
from tests.integration.test_serve import Served  # noqa: E402
from tests.integration.test_tui_live import Training  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]

EVIL = """<!doctype html><title>evil</title><p id=said>waiting</p><script>
const said = document.getElementById("said");
const socket = new WebSocket("ws://127.0.0.1:%d/ws?width=80&height=24");
socket.onopen = () => { said.textContent = "opened"; };
socket.onmessage = () => { said.textContent = "read"; };
socket.onerror = () => { said.textContent = "refused"; };
</script>"""


@pytest.fixture
async def context() -> AsyncIterator[Any]:
    """A profile of its own in headless Chromium."""
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield await browser.new_context(viewport={"width": 1280, "height": 800})
        await browser.close()


async def drawn(page: Any) -> None:
    """Wait until the UI has drawn its first screen."""
    await page.wait_for_selector("body.-first-byte", state="attached", timeout=2_000 * GUARD)


async def test_the_run_is_drawn_without_asking_anybody_else(
    served: Served, training: Training, context: Any, tmp_path: Path
) -> None:
    page = await context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda socket: asked.append(socket.url))
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    await page.goto(served.link)
    await drawn(page)
    assert "token" not in page.url
    frames: list[bytes] = []
    page.on("websocket", lambda socket: socket.on("framereceived", lambda f: frames.append(f)))
    await page.reload()  # the cookie lets in
    await drawn(page)
    while b"grad norm" not in b"".join(f if isinstance(f, bytes) else f.encode() for f in frames):
        await page.wait_for_timeout(100)
    await page.keyboard.press("r")
    await page.keyboard.press("y")
    await page.wait_for_timeout(1_000)
    picture = tmp_path / "served.png"
    await page.screenshot(path=str(picture))
    print("picture:", picture)
    own = (f"http://127.0.0.1:{served.port}/", f"ws://127.0.0.1:{served.port}/")
    answered = [url for url in asked if not url.startswith(own)]
    assert all("fonts.googleapis.com" in url for url in answered), answered
    assert not answered or any("Content Security Policy" in text for text in refused), refused
    assert training.peer.prepares == []


async def test_without_the_link_there_is_a_page_that_says_so(served: Served, context: Any) -> None:
    page = await context.new_page()
    response = await page.goto(served.origin)
    assert response.status == 403
    assert "Open the link that `optwatch serve` has printed" in await page.inner_text("body")


async def test_a_page_from_elsewhere_gets_nothing_even_with_the_cookie_there(
    served: Served, training: Training, context: Any, tmp_path: Path
) -> None:
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "index.html").write_text(EVIL % served.port)
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"],
        cwd=evil,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline().split("port ")[1].split()[0])
        page = await context.new_page()
        await page.goto(served.link)
        await drawn(page)
        for host in ("127.0.0.1", "localhost"):  # same site but another port, and another site
            other = await context.new_page()
            await other.goto(f"http://{host}:{port}/")
            await other.wait_for_function(
                "document.getElementById('said').textContent != 'waiting'", timeout=1_000 * GUARD
            )
            assert await other.inner_text("#said") == "refused"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
