"""`optwatch serve` as it is typed: who gets in, and what he can do there."""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

aiohttp = pytest.importorskip("aiohttp", reason="the extra `serve` is not installed")

from tests.daemons import GUARD, DaemonProcess  # noqa: E402
from tests.integration.test_tui_live import Training  # noqa: E402


class Served:
    """A real `optwatch serve` on a free port."""

    def __init__(self, directory: Path) -> None:
        self.cwd = directory / "served"
        self.cwd.mkdir()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "optwatch", "serve", "--port", "0"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.cwd,
            env=os.environ.copy(),
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        found = re.fullmatch(r"open (http://127\.0\.0\.1:(\d+)/\?token=(\S+))\n", line)
        assert found, (line, self.process.stderr.read() if self.process.stderr else "")
        self.link, self.port, self.token = found[1], int(found[2]), found[3]
        self.origin = f"http://127.0.0.1:{self.port}"

    def stop(self) -> int:
        self.process.terminate()
        status = self.process.wait(GUARD)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return status


@pytest.fixture
async def browser() -> "AsyncIterator[aiohttp.ClientSession]":
    jar = aiohttp.CookieJar(unsafe=True)  # cookies of an address without a name
    async with aiohttp.ClientSession(cookie_jar=jar) as session:
        yield session


async def enter(browser: "aiohttp.ClientSession", served: Served) -> str:
    """Open the printed link; the page."""
    async with browser.get(served.link) as response:
        assert response.status == 200
        assert "token" not in str(response.url)
        return await response.text()


async def screen(socket: "aiohttp.ClientWebSocketResponse", *wanted: str) -> str:
    """What was drawn, once all of the wanted is in it."""
    drawn = ""
    end = time.monotonic() + 2 * GUARD
    while not all(words in drawn for words in wanted):
        assert time.monotonic() < end, f"{wanted} did not come: {drawn[-2000:]}"
        message = await asyncio.wait_for(socket.receive(), 2 * GUARD)
        assert message.type == aiohttp.WSMsgType.BINARY, (message, drawn[-2000:])
        drawn += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", message.data.decode(errors="replace"))
    return drawn


@pytest.mark.parametrize("path", ["/", "/ws", "/static/js/textual.js", "/static/", "/download/1"])
async def test_nothing_is_shown_without_the_token(
    served: Served, browser: "aiohttp.ClientSession", path: str
) -> None:
    for query in ("", "?token=", "?token=wrong", f"?token={served.token[:-1]}", "?token=%ff"):
        async with browser.get(served.origin + path + query, headers={"Origin": served.origin}) as response:
            assert response.status == 403
            text = await response.text()
            assert "the link that `optwatch serve` has printed" in text
            assert "optwatch_token" not in str(response.headers)


async def test_a_wrong_cookie_is_not_let_in(served: Served, browser: "aiohttp.ClientSession") -> None:
    async with browser.get(served.origin, headers={"Cookie": "optwatch_token=wrong"}) as response:
        assert response.status == 403


async def test_the_link_lets_in_and_takes_the_token_out_of_the_address(
    served: Served, browser: "aiohttp.ClientSession"
) -> None:
    async with browser.get(served.link, allow_redirects=False) as response:
        assert (response.status, response.headers["Location"]) == (303, "/")
        cookie = response.headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
    page = await enter(browser, served)
    assert f"ws://127.0.0.1:{served.port}/ws" in page
    async with browser.get(f"{served.origin}/static/js/textual.js") as response:
        assert response.status == 200
    for path in ("/static/", "/static/../server.py", "/static/%2e%2e/server.py", "/download/1", "/other"):
        async with browser.get(served.origin + path) as response:
            assert response.status in (403, 404), path


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "a@127.0.0.1"]
)
async def test_another_host_is_refused(served: Served, browser: "aiohttp.ClientSession", host: str) -> None:
    await enter(browser, served)
    async with browser.get(served.origin, headers={"Host": host}) as response:
        assert response.status in (400, 403)
        assert "optwatch, read-only" not in await response.text()


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1", None])
async def test_a_websocket_from_elsewhere_is_refused(
    served: Served, browser: "aiohttp.ClientSession", origin: str | None
) -> None:
    await enter(browser, served)  # even with the cookie
    headers = {} if origin is None else {"Origin": origin}
    with pytest.raises(aiohttp.WSServerHandshakeError) as error:
        await browser.ws_connect(f"{served.origin}/ws", headers=headers)
    assert error.value.status == 403


async def test_a_websocket_from_another_port_is_refused(
    served: Served, browser: "aiohttp.ClientSession"
) -> None:
    await enter(browser, served)
    with pytest.raises(aiohttp.WSServerHandshakeError):
        await browser.ws_connect(f"{served.origin}/ws", headers={"Origin": "http://127.0.0.1:1"})


async def test_the_run_is_shown_and_nothing_that_is_typed_changes_it(
    served: Served, browser: "aiohttp.ClientSession", training: Training, daemon: DaemonProcess
) -> None:
    await enter(browser, served)
    socket = await browser.ws_connect(
        f"{served.origin}/ws?width=120&height=40", headers={"Origin": served.origin}
    )
    async with socket:
        await screen(socket, "toy", "grad norm", "off: read-only")
        for key in ("r", "y", "l", "y", "c", "y", "m", "y", "u", "y", "M", "x", "v"):
            await socket.send_str(json.dumps(["stdin", key]))
        await socket.send_str(json.dumps(["stdin", "?"]))
        await screen(socket, "its step (off: read-only)")
    with daemon.client() as client:
        assert [c for c in client.commands(training.peer.run) if c.asked_by != "policy"] == []
        assert client.status(training.peer.run).mode == "advise"
    assert list(served.cwd.iterdir()) == []


def test_it_ends_clean(daemon: DaemonProcess, home: Path) -> None:
    assert Served(home).stop() == 0


@pytest.mark.parametrize(
    ("args", "words"), [(("--port", "99999"), "not a port"), (("nonsense",), "cannot parse the address")]
)
def test_wrong_use(home: Path, args: tuple[str, ...], words: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "optwatch", "serve", *args], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2
    assert words in result.stderr


def test_a_taken_port_is_said(served: Served) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "optwatch", "serve", "--port", str(served.port)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 2
    assert f"cannot listen on 127.0.0.1:{served.port}" in result.stderr


def test_without_its_extra_it_names_it(home: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['textual_serve'] = None\n")
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    result = subprocess.run(
        [sys.executable, "-m", "optwatch", "serve"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert result.returncode == 2
    assert "pip install 'optwatch[serve]'" in result.stderr
