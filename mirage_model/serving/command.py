"""The command ``mirage serve``."""

from __future__ import annotations

from collections.abc import Callable
import json
import signal
import threading

import grpc

from mirage_model.allocator import keep_freed_pages
from mirage_model.interface import EngineProtocol
from mirage_model.serving.config import (
    ServeCommand,
    ServerConfig,
    channel_credentials,
    scheme_of,
    target_of,
)
from mirage_model.serving.engine_pb2 import Empty
from mirage_model.serving.engine_pb2_grpc import EngineStub

STATUS_TIMEOUT = 5.0
"""Time that ``--status`` waits for the server [s]."""


def main(command: ServeCommand) -> int:
    """Serve until SIGINT or SIGTERM, or print the status of a server; return the exit status."""
    if command.status:
        print(json.dumps(read_status(command.server), indent=2))
        return 0
    if command.pool:
        from mirage_model.serving.pool import serve_pool

        return serve_pool(command.engine, command.server, command.cluster)
    return serve(*command.engine.load(command.server.limits), command.server)


def serve(
    engine: EngineProtocol, open_engine: Callable[[], EngineProtocol], config: ServerConfig
) -> int:
    """Serve a warm engine until SIGINT or SIGTERM."""
    from mirage_model.serving.server import EngineServer

    keep_freed_pages()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    server = EngineServer(engine, open_engine, config)
    about = engine.describe()
    print(ready_line(about.model, about.sha256, config, server.port), flush=True)
    while not stop.wait(1.0):  # a signal may reach another thread, which wakes nobody
        pass
    server.close()
    return 0


def ready_line(model: str, sha256: str, config: ServerConfig, port: int) -> str:
    address = f'{config.address.rpartition(":")[0]}:{port}'
    return f'{model} ({sha256[:12]}) is ready at {address}'


def read_status(config: ServerConfig) -> dict[str, object]:
    """Return what the server at an address does.

    Raises:
        ValueError: The address or the certificates cannot be used.
        OSError: The server does not answer.
    """
    target, certificates = target_of(config.address, config.certificates), config.certificates
    if scheme_of(config.address) == 'grpc':
        channel = grpc.insecure_channel(target)
    else:
        assert certificates is not None
        channel = grpc.secure_channel(target, channel_credentials(certificates))
    with channel:
        try:
            reply = EngineStub(channel).Status(Empty(), timeout=STATUS_TIMEOUT)
        except grpc.RpcError as error:
            raise OSError(f'{config.address}: {error.details()}') from None
    return json.loads(reply.text)
