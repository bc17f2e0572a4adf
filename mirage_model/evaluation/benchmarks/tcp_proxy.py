"""A link on loopback that is late, stalls, or breaks, for programs that must bear it."""

from __future__ import annotations

from collections.abc import Iterator
import queue
import random
import socket
import threading
import time

STALL = 0.2
"""Time that TCP waits at least until it sends what was lost again [s]."""


class TcpProxy:
    """Passes bytes between clients and a port of loopback.

    A cut proxy passes nothing and closes nothing, as a radio that is out of reach.
    """

    def __init__(self, port: int, *, delay: float = 0.0, loss: float = 0.0, seed: int = 0):
        """Listen on a free port.

        Args:
            delay: Time that bytes are on the way in each direction [s].
            loss: Share of the pieces of up to 64 KiB that come later by `STALL`, in 0..1.
            seed: Random seed of the losses.
        """
        self._target = port
        self._delay, self._loss, self._random = delay, loss, random.Random(seed)
        self._listener = socket.create_server(('127.0.0.1', 0))
        self.port = self._listener.getsockname()[1]
        self._open = threading.Event()
        self._open.set()
        self._upward_left: int | None = None
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._open.clear()

    def mend(self) -> None:
        self._open.set()

    def reset(self) -> None:
        """Close all connections."""
        for each in self._sockets:
            _close(each)

    def reset_after(self, nbytes: int) -> None:
        """Close all connections once so many more bytes have come from clients."""
        self._upward_left = nbytes

    def close(self) -> None:
        self._open.set()
        _close(self._listener)
        self.reset()

    def _accept(self) -> None:
        while True:
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
            for source, sink, upward in ((client, server, True), (server, client, False)):
                way: queue.Queue[tuple[float, bytes]] = queue.Queue(maxsize=256)
                threading.Thread(
                    target=self._receive, args=(source, way, upward), daemon=True
                ).start()
                threading.Thread(target=self._send, args=(way, sink), daemon=True).start()

    def _receive(self, source: socket.socket, way: queue.Queue, upward: bool) -> None:
        arrival = 0.0
        for data in self._pieces(source):
            if upward and self._upward_left is not None:
                data = data[: self._upward_left]
                self._upward_left -= len(data)
            late = STALL if self._random.random() < self._loss else 0.0
            arrival = max(arrival, time.monotonic() + self._delay + late)
            way.put((arrival, data))
            if upward and self._upward_left == 0:
                self._upward_left = None
                way.put((arrival, b''))
                return
        way.put((arrival, b''))

    def _pieces(self, source: socket.socket) -> Iterator[bytes]:
        try:
            while data := source.recv(2**16):
                self._open.wait()
                yield data
        except OSError:
            return

    def _send(self, way: queue.Queue, sink: socket.socket) -> None:
        arrival, data = way.get()
        while data:
            time.sleep(max(0.0, arrival - time.monotonic()))
            self._open.wait()
            try:
                sink.sendall(data)
            except OSError:
                pass  # the rest is thrown away
            arrival, data = way.get()
        self._open.wait()
        _close(sink)


def _close(each: socket.socket) -> None:
    """Close a socket, and wake the thread that waits for it."""
    try:
        each.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it is closed on the other side
    each.close()
