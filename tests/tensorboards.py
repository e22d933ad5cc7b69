"""A real TensorBoard server on a directory, for tests and pictures."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

GUARD = 60
"""Seconds after which it does not come up."""
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRAWN = ".line-plot path.line"
"""A curve of a chart."""


@contextmanager
def tensorboard(logs: Path, home: Path) -> Iterator[str]:
    """Serve a directory of event files, with a home that is nobody's; the server's address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", logs.name, "--host", "127.0.0.1"]
    environment = os.environ | {"HOME": str(home)}
    with (home / "tensorboard.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port)], stdout=log, stderr=log, env=environment, cwd=logs.parent
        )
    address = f"http://127.0.0.1:{port}"
    names = {path.parent.relative_to(logs).as_posix() for path in logs.rglob("events*")}
    end = time.monotonic() + GUARD
    try:
        while True:
            assert process.poll() is None, (home / "tensorboard.log").read_text()
            assert time.monotonic() < end, "TensorBoard does not come up"
            try:
                with urllib.request.urlopen(f"{address}/data/runs", timeout=GUARD) as answer:
                    if names <= set(json.load(answer)):
                        break
            except (urllib.error.URLError, ConnectionError):
                pass
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(GUARD)


@asynccontextmanager
async def page_of(address: str, size: tuple[int, int] = (1_280, 900)) -> AsyncIterator[Any]:
    """A page of headless Chromium, for a TensorBoard at an address."""
    from playwright.async_api import async_playwright

    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield await browser.new_page(viewport={"width": size[0], "height": size[1]}, base_url=address)
        await browser.close()


async def show_charts(page: Any) -> None:
    """Open the custom scalars and wait until the curves of the first chart are drawn."""
    await page.goto("/#custom_scalars")
    await page.locator(DRAWN).first.wait_for(state="attached", timeout=1_000 * GUARD)
