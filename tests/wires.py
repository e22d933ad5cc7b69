"""A TCP wire between peers and a daemon that can be listened in on, and that can fall silent."""

import selectors
import socket
import threading


class Wire(threading.Thread):
    """Forwards what comes to `address` to a daemon. `heard` is all that went over it, in both directions, and
    `said` what went to the daemon."""

    def __init__(self, daemon: str) -> None:
        super().__init__(daemon=True)
        self.heard, self.said = bytearray(), bytearray()
        self.connections = 0
        self._daemon = _place(daemon)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._server.getsockname()[1]}"
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ, None)
        self._near: set[socket.socket] = set()
        self._frozen: list[socket.socket] = []
        self._freezing = threading.Event()
        self._ended = threading.Event()

    def freeze(self) -> None:
        """Forward nothing of the present connections any more, and close none of them: half-open to both."""
        self._freezing.set()
        while self._freezing.is_set() and self.is_alive():
            self._ended.wait(0.01)

    def close(self) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        while not self._ended.is_set():
            if self._freezing.is_set():
                for key in list(self._selector.get_map().values()):
                    if key.data is not None:
                        self._selector.unregister(key.fileobj)
                        self._frozen.append(key.fileobj)  # type: ignore[arg-type]
                self._freezing.clear()
            for key, _ in self._selector.select(0.02):
                if key.data is None:
                    self._accept()
                else:
                    self._forward(key.fileobj, key.data)  # type: ignore[arg-type]
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        for end in self._frozen:
            end.close()
        self._selector.close()

    def _accept(self) -> None:
        near, _ = self._server.accept()
        far = socket.create_connection(self._daemon)
        self.connections += 1
        self._near.add(near)
        self._selector.register(near, selectors.EVENT_READ, far)
        self._selector.register(far, selectors.EVENT_READ, near)

    def _forward(self, source: socket.socket, to: socket.socket) -> None:
        try:
            if data := source.recv(1 << 16):
                self.heard += data
                if source in self._near:
                    self.said += data
                to.sendall(data)
                return
        except OSError:
            pass
        for end in (source, to):
            if end.fileno() >= 0:
                self._selector.unregister(end)
                end.close()


def _place(address: str) -> tuple[str, int]:
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return host, int(port)
