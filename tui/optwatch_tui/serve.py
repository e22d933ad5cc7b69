"""The terminal UI in a browser: on loopback, read-only, behind a token and a check of Host and Origin.

textual-serve runs the UI as a child process and draws it in the page. By itself it asks nobody who he is,
and a page from anywhere could open its WebSocket, read the runs and type. Therefore, around it:

- the Host has to be a name of loopback (a name that an attacker lets point to 127.0.0.1 is refused),
- an Origin, and each WebSocket has one, has to be the page's own,
- the token of the printed link has to be in the link or in the cookie that the link sets. Cookies know no
  ports: another program on this machine that listens on loopback and that the user visits may see it,
- the child is started read-only: its feed refuses to send whatever could change something, so that it does
  not matter what is typed.
"""

import hmac
import secrets
import shlex
import socket
import sys
from collections.abc import Callable
from urllib.parse import urlsplit

import aiohttp_jinja2
import jinja2
from aiohttp import web
from aiohttp.typedefs import Handler
from textual_serve.server import Server

COOKIE = "optwatch_token"
HOST = "127.0.0.1"
_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>optwatch: not allowed</title>
<body style="font:1.1rem/1.5 sans-serif;max-width:36rem;margin:4rem auto;padding:0 1rem">
<h1>Not allowed</h1><p>{reason}</p>"""
_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self'; connect-src 'self' ws://{host}; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


class Gate:
    """Lets in who has the token, from a page of its own, under a name of loopback."""

    def __init__(self, token: str) -> None:
        self._token = token

    def refusal(self, request: web.Request) -> str:
        """Why a request is not let in, as a sentence; empty where it is."""
        if not _loopback(request.headers.get("Host", "")):
            return "This server answers only as 127.0.0.1 or localhost."
        origin = request.headers.get("Origin")
        if origin is not None and origin != f"http://{request.headers['Host']}":
            return "A page from elsewhere may not read this one."
        if request.path == "/ws" and origin is None:
            return "A WebSocket without an Origin is not let in."
        if not self._known(request):
            return "Open the link that `optwatch serve` has printed: it holds the token that lets you in."
        return ""

    def _known(self, request: web.Request) -> bool:
        given = (request.cookies.get(COOKIE, ""), self.token_in_link(request))
        return any(hmac.compare_digest(each.encode(errors="replace"), self._token.encode()) for each in given)

    @staticmethod
    def token_in_link(request: web.Request) -> str:
        """Only the page itself takes the token from its address."""
        return request.query.get("token", "") if request.path == "/" else ""

    async def answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let a request through to its handler, or refuse it."""
        if reason := self.refusal(request):
            page = _PAGE.format(reason=reason)
            return web.Response(status=403, text=page, content_type="text/html", headers=_headers(""))
        if self.token_in_link(request):  # out of the address bar and the history, into a cookie
            response = web.Response(status=303, headers={"Location": "/", **_headers("")})
            response.set_cookie(COOKIE, self._token, httponly=True, samesite="Strict", path="/")
            return response
        return await handler(request)


def _loopback(host: str) -> bool:
    """Whether a Host header names loopback, with any port: it may be forwarded."""
    try:
        parts = urlsplit(f"//{host}")
        return parts.hostname in _NAMES and parts.username is None and (parts.port or 80) > 0
    except ValueError:
        return False


def _headers(host: str) -> dict[str, str]:
    return {
        "Content-Security-Policy": _POLICY.format(host=host)
        if host
        else "default-src 'none'; style-src 'unsafe-inline'",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
    }


def application(address: str | None, token: str) -> web.Application:
    """The web application: one page, its static files, and the WebSocket of the UI; nothing else."""
    command = [sys.executable, "-m", "optwatch_tui", *([address] if address else [])]
    server = Server(shlex.join(command), host=HOST, title="optwatch")

    async def page(request: web.Request) -> web.StreamResponse:
        host = request.headers["Host"]
        context = {
            "font_size": 14,
            "app_websocket_url": f"ws://{host}/ws",
            "config": {"static": {"url": "/static/"}},
            "application": {"name": "optwatch, read-only"},
        }
        response = aiohttp_jinja2.render_template("app_index.html", request, context)
        response.headers.update(_headers(host))
        return response

    gate = Gate(token)

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        return await gate.answer(request, handler)

    app = web.Application(middlewares=[guard])
    aiohttp_jinja2.setup(app, loader=jinja2.FileSystemLoader(server.templates_path), autoescape=True)
    app.add_routes(
        [
            web.get("/", page),
            web.get("/ws", server.handle_websocket),
            web.static("/static", server.statics_path, show_index=False),
        ]
    )
    return app


def listen(port: int) -> socket.socket:
    """A socket on loopback; port 0 takes a free one.

    Raises:
        OSError: the port is taken, or may not be used.
    """
    return socket.create_server((HOST, port), backlog=16)


def new_token() -> str:
    return secrets.token_urlsafe(24)


def serve(address: str | None, listening: socket.socket, token: str, ready: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM; `ready` is called once it does."""
    app = application(address, token)

    async def started(_app: web.Application) -> None:
        ready()

    app.on_startup.append(started)
    web.run_app(app, sock=listening, print=None, access_log=None, shutdown_timeout=2.0)
