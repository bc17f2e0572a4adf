"""A link that can be cut: a TCP proxy on loopback that stops passing bytes, or closes."""

from __future__ import annotations

import selectors
import socket
import threading


class CuttableLink:
    """Passes bytes between clients and a port until it is cut.

    A cut link passes nothing and closes nothing, as a radio that is out of reach.
    """

    def __init__(self, port: int):
        self._target = port
        self._listener = socket.create_server(('127.0.0.1', 0))
        self.port = self._listener.getsockname()[1]
        self._open = threading.Event()
        self._open.set()
        self._closed = False
        self._sockets: list[socket.socket] = [self._listener]
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def cut(self) -> None:
        self._open.clear()

    def mend(self) -> None:
        self._open.set()

    def reset(self) -> None:
        """Close all connections."""
        for each in self._sockets[1:]:
            each.close()

    def close(self) -> None:
        self._closed = True
        self._open.set()
        for each in self._sockets:
            each.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._open.wait()
            try:
                server = socket.create_connection(('127.0.0.1', self._target))
            except OSError:
                client.close()
                continue
            self._sockets += [client, server]
            threading.Thread(target=self._pass, args=(client, server), daemon=True).start()

    def _pass(self, client: socket.socket, server: socket.socket) -> None:
        other = {client: server, server: client}
        with client, server, selectors.DefaultSelector() as ready:
            try:
                for each in other:
                    ready.register(each, selectors.EVENT_READ)
                while not self._closed:
                    for key, _ in ready.select(timeout=0.2):
                        self._open.wait()
                        data = key.fileobj.recv(2**16)
                        self._open.wait()
                        if not data:
                            return
                        other[key.fileobj].sendall(data)
            except (OSError, ValueError):
                return
