"""The HTTP listener: health checks, metrics and the status page; off unless `http.listen` is set.

It reads from the bridge and, with `http.send`, hands it commands as the broker does. It has no login: what it shows is
made by bridge/http/status.py, without texts and whole numbers. Nothing that a client does, or fails to do, may cost the
lines more than a moment: connections, streams, bodies and times are limited, and what is expensive to make is made
once a second at most. The only module that knows aiohttp; imported by the application when it is needed.
"""

import asyncio
import base64
import contextlib
import hashlib
import ipaddress
import logging
import re
import secrets
import socket
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from urllib.parse import urlsplit

import orjson
from aiohttp import web

from ..app.bridge import Bridge
from ..app.election import Role
from ..contract.commands import Code
from ..contract.numbers import mask
from ..contract.payloads import stamped
from ..mqtt.link import Incoming
from ..retained.recent import Recent, public_fact
from . import metrics, status

log = logging.getLogger(__name__)
_silence = logging.getLogger(f"{__name__}.aiohttp")
_silence.setLevel(logging.CRITICAL + 1)
"aiohttp logs whatever a client does wrong, with a traceback: strangers could fill the disk."

PAGE = Path(__file__).parent / "web" / "index.html"
MAX_CONNECTIONS = 64
"At a time, for the page and all else. Each takes one of the files that the process may open."
MAX_AT_DOOR = 256
"""More of them are let in for health checks alone, and the one that has been there longest makes room: whoever holds
connections open can't keep a health check out. More than the kernel lets wait (`BACKLOG`), so that one that sends its
request at once is answered before those that came with it could push it out."""
BACKLOG = 128
DOOR_S = 3.0
"Within this time the request has to be there."
MAX_STREAMS = 20
MAX_BODY = 64 << 10
MAX_LINE = 8190
"Bytes of a request's first line, and of each header."
IDLE_S = 15.0
"A connection without a request is closed after this long."
ANSWER_S = 30.0
"An answer that the client has not taken in this time ends with its connection."
HEARTBEAT_S = 15.0
POLL_S = 0.25
"How often a stream looks for new facts."
FRESH_S = 1.0
"What was made this long ago is given out again."
SEND_S = 10.0
"How long to wait for the result of a command."
MAX_SENDING = 20
"Commands that wait for their result."
CHUNK = 64 << 10
SEND_BUFFER = 128 << 10
"Bytes asked of the kernel for each connection: what a client that does not read can make wait."
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FAMILIAR = ("localhost", "local", "internal", "home.arpa")
"Domains that nobody can register, so that no stranger's page can be of them."
_STATUS: dict[Code, int] = {
    "ok": 200,
    "unknown_line": 404,
    "forbidden_number": 403,
    "quota_exceeded": 429,
    "rate_limited": 429,
    "too_large": 413,
    "busy": 409,
    "not_supported": 501,
    "line_offline": 503,
    "line_disabled": 503,
    "storage": 503,
    "shutting_down": 503,
    "internal": 500,
}
"Of the codes that `cmd/sms` can answer; others are 400."

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HttpListener:
    """Serves one bridge on a socket that is bound already."""

    def __init__(self, bridge: Bridge, recent: Recent, sock: socket.socket) -> None:
        self._bridge = bridge
        self._recent = recent
        self._hosts = bridge.settings.http.hosts
        self._socket = sock
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)  # its connections inherit it
        self._page = PAGE.read_bytes() if PAGE.exists() else b""
        self._policy = _policy(self._page.decode())
        self._status = _Fresh(lambda: status.document(bridge, recent))
        self._metrics = _Fresh(lambda: metrics.render(bridge))
        self._streams = 0
        self._at_door: dict[_Door, None] = {}
        self._coming = 0
        "Connections that aiohttp's server will know of in a moment."
        app = web.Application(middlewares=[self._limits], client_max_size=MAX_BODY)
        app.router.add_get("/", self._index)
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._give_metrics)
        app.router.add_get("/status.json", self._give_status)
        app.router.add_get("/events", self._events, allow_head=False)
        if bridge.settings.http.send:
            app.router.add_post("/send", self._send)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            logger=_silence,
            keepalive_timeout=IDLE_S,
            shutdown_timeout=0.1,
            max_line_size=MAX_LINE,
            max_field_size=MAX_LINE,
        )
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begin to serve."""
        await self._runner.setup()
        self._server = await asyncio.get_running_loop().create_server(
            self._protocol, sock=self._socket, backlog=BACKLOG
        )
        host, port = self._socket.getsockname()[:2]
        log.info("status page and metrics on http://%s:%d", f"[{host}]" if ":" in host else host, port)

    async def close(self) -> None:
        """Stop; whoever still listens is cut off."""
        if self._server is not None:
            self._server.close()
        for door in list(self._at_door):
            door.close()
        await self._runner.cleanup()

    def _protocol(self) -> asyncio.Protocol:
        """Who takes a connection. Many are accepted at once, and only then made known to aiohttp's server."""
        server = self._runner.server
        assert server is not None
        if len(server.connections) + self._coming >= MAX_CONNECTIONS:
            return _Door(self._bridge, self._at_door)
        self._coming += 1
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, self._has_come)  # behind the call that makes it known
        return server()

    def _has_come(self) -> None:
        self._coming -= 1

    @web.middleware
    async def _limits(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        host = _host(request).encode(errors="replace").decode()
        if request.path in ("/", "/status.json", "/events", "/send") and not _is_familiar(host, self._hosts):
            return _problem(
                403,
                f"{host} is not a name of this machine that is known here: use its IP address or host name, or add the "
                "name to http.hosts in the configuration",
            )
        try:
            async with asyncio.timeout(None if request.path == "/events" else ANSWER_S):
                return await handler(request)
        except (TimeoutError, ConnectionError):  # it does not read, or is gone
            if request.transport is not None:
                request.transport.abort()
            raise
        except web.HTTPException:
            raise
        except web.RequestPayloadError:
            return _problem(400, "the body is not what its headers say")
        except Exception:
            log.exception("%s could not be answered; this is a fault of the bridge, please report it", request.path)
            return _problem(500, "a fault in the bridge; its log says more", "internal")

    # -- what is there to read

    async def _index(self, request: web.Request) -> web.StreamResponse:
        if not self._page:
            return _problem(404, "this installation has no status page")
        return await _give(request, self._page, "text/html", {"Content-Security-Policy": self._policy})

    async def _livez(self, request: web.Request) -> web.StreamResponse:
        return await _give_checks(request, status.alive(self._bridge))

    async def _readyz(self, request: web.Request) -> web.StreamResponse:
        return await _give_checks(request, status.ready(self._bridge))

    async def _give_metrics(self, request: web.Request) -> web.StreamResponse:
        return await _give(request, await self._metrics.get(), metrics.CONTENT_TYPE)

    async def _give_status(self, request: web.Request) -> web.StreamResponse:
        return await _give(request, await self._status.get(), "application/json")

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """Facts as they come. A stream has no queue: one that is slow skips what is no longer kept."""
        if self._streams >= MAX_STREAMS:
            return _problem(503, f"{MAX_STREAMS} event streams are open already")
        self._streams += 1
        try:
            return await self._stream(request)
        finally:
            self._streams -= 1

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        recent, base, loop = self._recent, self._bridge.settings.base_topic, asyncio.get_running_loop()
        seen = request.headers.get("Last-Event-ID")
        told = recent.count if seen is None else recent.position(seen)
        response = web.StreamResponse(headers=_headers("text/event-stream") | {"X-Accel-Buffering": "no"})
        await response.prepare(request)
        pending, due = b": the bridge\n\n", 0.0
        while request.transport is not None:  # until the client is gone
            for row in recent.facts(told):
                fact = public_fact(base, row.topic, row.schema, row.body)
                pending += b"id: %b\nevent: fact\ndata: %b\n\n" % (orjson.loads(fact)["id"].encode(), fact)
            told = recent.count
            if not pending and loop.time() >= due:
                pending = b": still here\n\n"
            if pending:
                async with asyncio.timeout(ANSWER_S):
                    await response.write(pending)
                pending, due = b"", loop.time() + HEARTBEAT_S
            await asyncio.sleep(POLL_S)
        return response

    # -- sending

    async def _send(self, request: web.Request) -> web.StreamResponse:
        """The command `cmd/sms`, taken as if the broker had brought it."""
        if reason := _foreign(request, self._hosts):
            return _problem(403, reason)
        if request.content_type != "application/json":
            return _problem(415, "the content type should be application/json")
        try:
            asked = orjson.loads(await request.read())
            orjson.dumps(asked)  # what is nested too deep can be read, but not written
        except (orjson.JSONDecodeError, TypeError):
            return _problem(400, "the body is not JSON", "invalid_json")
        if not isinstance(asked, dict) or set(asked) - {"id"} != {"line", "to", "text"}:
            return _problem(400, "the body should be an object with line, to and text", "invalid_payload")
        id = asked.pop("id", f"http-{secrets.token_hex(8)}")  # one of the client's own makes repeating safe
        if not isinstance(id, str) or not _ID.fullmatch(id):
            return _problem(400, "id: should be 1 to 64 letters, digits, - and _", "invalid_payload")
        line = asked.pop("line")
        if not isinstance(line, str) or line not in self._bridge.settings.lines:
            # Not by the command: its result would be published, on a topic of anybody's choice.
            return _problem(404, "line: there is no such line in the configuration", "unknown_line")
        topics = self._bridge.topics
        topic = topics.command(line, "sms")
        key = topics.result(line, "sms"), id
        if key in self._recent.awaited:
            return _problem(409, "a command with this id waits for its result", "busy")
        if self._bridge.stopping:
            return _problem(503, "the bridge stops", "shutting_down")
        if self._bridge.election.role is Role.STANDING_BY:
            return _problem(
                503, f"another bridge, {self._bridge.election.rival!r}, is active; this one is on standby", "busy"
            )
        if len(self._recent.awaited) >= MAX_SENDING:
            return _problem(503, f"{MAX_SENDING} commands wait already", "busy")
        body = await self._result(key, topic, orjson.dumps(asked | {"id": id}))
        if body is None:
            return _problem(503, "the command could not be stored in time, and was not carried out", "storage")
        result = orjson.loads(body)
        for message in result["data"].get("msgs", []):
            message["to"] = mask(message["to"])  # a contact's number is not for those who know its name
        answer = stamped(orjson.dumps(result), self._bridge.clock.time())
        return web.Response(body=answer, status=_STATUS.get(result["code"], 400), headers=_headers("application/json"))

    async def _result(self, key: tuple[str, str], topic: str, payload: bytes) -> bytes | None:
        """What a command was answered; None, and it is withdrawn, when it was not taken in time."""
        # No connection has this number, so acknowledging does nothing.
        message = Incoming(topic, payload, False, False, None, None, mid=0, connection=-1)
        result = self._recent.awaited[key] = asyncio.get_running_loop().create_future()
        try:
            self._bridge.hand_in(message)
            async with asyncio.timeout(SEND_S):
                body: bytes = await result
                return body
        except TimeoutError:
            if result.done() and not result.cancelled():
                return bytes(result.result())
            self._bridge.withdraw(message)
            return None
        finally:
            self._recent.awaited.pop(key, None)


class _Fresh:
    """Something that takes a while to make: once a second at most, and for one client at a time."""

    def __init__(self, make: Callable[[], Awaitable[bytes]]) -> None:
        self._make = make
        self._lock = asyncio.Lock()
        self._made = b""
        self._until = 0.0

    async def get(self) -> bytes:
        async with self._lock:
            now = asyncio.get_running_loop().time()
            if now >= self._until:
                self._made = await self._make()
                self._until = asyncio.get_running_loop().time() + FRESH_S
            return self._made


class _Door(asyncio.Protocol):
    """A connection beyond `MAX_CONNECTIONS`: a health check is answered, at once, and everything else refused."""

    def __init__(self, bridge: Bridge, others: "dict[_Door, None]") -> None:
        self._bridge = bridge
        self._others = others
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if len(self._others) >= MAX_AT_DOOR:
            next(iter(self._others)).close()
        self._others[self] = None
        self._end = asyncio.get_running_loop().call_later(DOOR_S, self.close)

    def data_received(self, data: bytes) -> None:
        self._head += data
        if b"\r\n\r\n" in self._head:
            self._transport.write(_answer_at_door(self._bridge, self._head))
            self._transport.close()
        elif len(self._head) > MAX_LINE:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end.cancel()
        self._others.pop(self, None)

    def close(self) -> None:
        """Without a word."""
        self._others.pop(self, None)
        self._transport.abort()


def _answer_at_door(bridge: Bridge, head: bytes) -> bytes:
    method, _, rest = head.partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0]
    if method in (b"GET", b"HEAD") and path in (b"/livez", b"/readyz"):
        code, body = _checks(status.alive(bridge) if path == b"/livez" else status.ready(bridge))
    else:
        message = f"{MAX_CONNECTIONS} connections are open already: only health checks are answered"
        code, body = 503, orjson.dumps({"status": "error", "code": None, "message": message})
    reason = {200: "OK", 503: "Service Unavailable"}[code]
    headers = _headers("application/json") | {"Content-Length": str(len(body)), "Connection": "close"}
    lines = [f"HTTP/1.1 {code} {reason}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + (body if method != b"HEAD" else b"")


# -- answers ---------------------------------------------------------------------------------------------------------


async def _give(
    request: web.Request, body: bytes, content_type: str, more: dict[str, str] | None = None, code: int = 200
) -> web.StreamResponse:
    """In pieces: what a slow client has not taken is not copied as a whole."""
    response = web.StreamResponse(status=code, headers=_headers(content_type) | (more or {}))
    response.content_length = len(body)
    await response.prepare(request)
    if request.method != "HEAD":
        for first in range(0, len(body), CHUNK):
            await response.write(body[first : first + CHUNK])
    await response.write_eof()
    return response


async def _give_checks(request: web.Request, checks: dict[str, status.Check]) -> web.StreamResponse:
    code, body = _checks(checks)
    return await _give(request, body, "application/json", code=code)


def _checks(checks: dict[str, status.Check]) -> tuple[int, bytes]:
    ok = all(check["ok"] for check in checks.values())
    return 200 if ok else 503, orjson.dumps({"ok": ok, "checks": checks})


def _problem(code: int, message: str, word: Code | None = None) -> web.Response:
    """An answer in the form of a result."""
    body = orjson.dumps({"status": "error", "code": word, "message": message})
    return web.Response(body=body, status=code, headers=_headers("application/json"))


def _headers(content_type: str) -> dict[str, str]:
    if content_type in ("text/html", "text/event-stream"):
        content_type += "; charset=utf-8"
    return {
        "Content-Type": content_type,
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "Server": "goip-bridge",
        "X-Content-Type-Options": "nosniff",
    }


def _policy(page: str) -> str:
    """Nothing but what is in the page itself may run, and it may talk to nobody but us."""
    allowed = {
        element: " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(found.encode()).digest()).decode()}'"
            for found in re.findall(rf"<{element}\b[^>]*>(.*?)</{element}>", page, re.DOTALL)
        )
        or "'none'"
        for element in ("script", "style")
    }
    return (
        f"default-src 'none'; script-src {allowed['script']}; style-src {allowed['style']}; connect-src 'self'; "
        "img-src 'self' data:; manifest-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


# -- who asks --------------------------------------------------------------------------------------------------------


def _host(request: web.Request) -> str:
    """What the client calls us. aiohttp's own `host` asks the name server when there is none, and everybody waits."""
    return request.headers.get("Host", "")


def _is_familiar(host: str, hosts: Collection[str]) -> bool:
    """Whether this name can only mean this machine, or is one of `hosts`. A page of a stranger's domain could have its
    name lead here, and read what browsers would otherwise not let it read (DNS rebinding).
    """
    name = _name(f"//{host}")
    if not name:
        return False
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(name)
        return True
    if "." not in name or name == socket.gethostname().lower() or name in hosts:
        return True
    return any(name.endswith(f".{domain}") for domain in _FAMILIAR)


def _foreign(request: web.Request, hosts: Collection[str]) -> str | None:
    """Why a request may come from another site's page; None if not. Browsers say where it comes from. A proxy may put
    its own name for us into `Host`, but leaves the `Origin`.
    """
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is not None:
        return None if site in ("same-origin", "none") else "this request comes from a page of another site"
    if origin is None or _name(origin) in hosts:
        return None
    with contextlib.suppress(ValueError):
        if urlsplit(origin).netloc == _host(request):
            return None
    return "this request comes from a page of another site"


def _name(url: str) -> str | None:
    """The host name in it, in lower case and without a dot at its end."""
    with contextlib.suppress(ValueError):
        return (urlsplit(url).hostname or "").removesuffix(".") or None
    return None
