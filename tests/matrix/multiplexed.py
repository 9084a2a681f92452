"""One HTTP/2 connection that carries the requests and WebSockets of several users at once."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
from typing import Any, NamedTuple
from urllib.parse import urlsplit

with contextlib.suppress(ModuleNotFoundError):  # the quick run collects this without its extra
    import h2.config
    import h2.connection
    import h2.events
    import h2.settings
    from wsproto.connection import Connection as Frames
    from wsproto.connection import ConnectionType
    from wsproto.events import TextMessage

_TIMEOUT = 20.0  # seconds without a byte


class Response(NamedTuple):
    """A response as it arrived."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Multiplexed:
    """The connection of a proxy that asks for several users: HTTP/2 (RFC 9113).

    Args:
        origin: of the site; http means with prior knowledge, https by ALPN.
        tls: trusts the site's certificate.
    """

    def __init__(self, origin: str, tls: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(origin)
        self._scheme, self._authority = parts.scheme, parts.netloc
        assert parts.port
        self._socket = socket.create_connection(("127.0.0.1", parts.port), _TIMEOUT)
        self.port: int = self._socket.getsockname()[1]
        if parts.scheme == "https":
            assert tls is not None
            tls.set_alpn_protocols(["h2"])
            wrapped = tls.wrap_socket(self._socket, server_hostname="127.0.0.1")
            assert wrapped.selected_alpn_protocol() == "h2"
            self._socket = wrapped
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self._h2 = h2.connection.H2Connection(config)
        self._h2.initiate_connection()
        self._heads: dict[int, list[tuple[str, str]]] = {}
        self._bodies: dict[int, bytes] = {}
        self._frames: dict[int, Frames] = {}
        self._texts: dict[int, list[str]] = {}
        self._settled = False
        self._ended: set[int] = set()
        self._flush()

    def ask(self, path: str, cookie: str = "", accept: str = "application/json") -> int:
        """Send a GET; see `answer` for what comes of it."""
        return self._open([(":method", "GET"), *self._common(path, cookie, accept)], end=True)

    def answer(self, stream: int) -> Response:
        """Wait for the whole response of a request."""
        while stream not in self._ended:
            self._receive()
        head = self._heads[stream]
        return Response(int(dict(head)[":status"]), head, self._bodies.get(stream, b""))

    def open_websocket(self, path: str, cookie: str) -> int:
        """Begin a WebSocket as a stream of this connection (RFC 8441)."""
        while not self._settled:
            self._receive()  # the server says first that it may be asked for
        assert self._h2.remote_settings.enable_connect_protocol
        origin = f"{self._scheme}://{self._authority}"
        stream = self._open(
            [
                (":method", "CONNECT"),
                (":protocol", "websocket"),
                *self._common(path, cookie),
                ("sec-websocket-version", "13"),
                ("origin", origin),
            ],
            end=False,
        )
        self._frames[stream] = Frames(ConnectionType.CLIENT)
        self._texts[stream] = []
        while stream not in self._heads:
            self._receive()
        assert dict(self._heads[stream])[":status"] == "200", self._heads[stream]
        return stream

    def say(self, stream: int, text: str) -> None:
        """Send a text over a WebSocket."""
        self._h2.send_data(stream, self._frames[stream].send(TextMessage(text)))
        self._flush()

    def hear(self, stream: int) -> str:
        """Wait for a text from a WebSocket."""
        while not self._texts[stream]:
            assert stream not in self._ended, "the WebSocket ended"
            self._receive()
        return self._texts[stream].pop(0)

    def close(self) -> None:
        """Close the connection, and all streams with it."""
        self._h2.close_connection()
        self._flush()
        self._socket.close()

    def __enter__(self) -> Multiplexed:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _common(
        self, path: str, cookie: str, accept: str = "application/json"
    ) -> list[tuple[str, str]]:
        headers = [(":scheme", self._scheme), (":authority", self._authority), (":path", path)]
        headers += [("accept", accept)]
        return [*headers, ("cookie", cookie)] if cookie else headers

    def _open(self, headers: list[tuple[str, str]], *, end: bool) -> int:
        stream = self._h2.get_next_available_stream_id()
        self._h2.send_headers(stream, headers, end_stream=end)
        self._flush()
        return stream

    def _flush(self) -> None:
        self._socket.sendall(self._h2.data_to_send())

    def _receive(self) -> None:
        data = self._socket.recv(65536)
        assert data, "the server closed the connection"
        for event in self._h2.receive_data(data):
            if isinstance(event, h2.events.RemoteSettingsChanged):
                self._settled = True
            elif isinstance(event, h2.events.ResponseReceived):
                self._heads[event.stream_id] = [(str(k), str(v)) for k, v in event.headers]
            elif isinstance(event, h2.events.DataReceived):
                self._take(event.stream_id, event.data)
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                self._ended.add(event.stream_id)
            else:
                assert not isinstance(event, h2.events.ConnectionTerminated), event
        self._flush()

    def _take(self, stream: int, data: bytes) -> None:
        if stream not in self._frames:
            self._bodies[stream] = self._bodies.get(stream, b"") + data
            return
        self._frames[stream].receive_data(data)
        for event in self._frames[stream].events():
            if isinstance(event, TextMessage):
                self._texts[stream].append(event.data)
