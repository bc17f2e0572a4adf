"""Configurations of the server, and addresses and certificates of both sides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import ipaddress
from pathlib import Path
import socket
import ssl
from typing import Literal, Protocol

import grpc
from tyro.conf import OmitArgPrefixes

from mirage_model.engine.config import EngineOptions
from mirage_model.interface import EngineProtocol
from mirage_model.options import (
    Checked,
    Count,
    InputFile,
    Name,
    NotNegative,
    Positive,
    Whole,
)

PROTOCOL = 2
"""Version of engine.proto and of what its messages mean."""
TRANSPORT = (
    ('grpc.http2.max_frame_size', 2**20),
    ('grpc.http2.lookahead_bytes', 2**23),
    ('grpc.http2.bdp_probe', 0),
)
"""Options of both sides: large frames, and room on the way for several images."""


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """Files in PEM that prove who each side is."""

    authority: Path
    """Certificate of the authority that signed both sides' certificates."""
    certificate: Path
    """Certificate of this side."""
    key: Path
    """Private key of ``certificate``."""

    def read(self) -> tuple[bytes, bytes, bytes]:
        """Return authority, certificate and key. Raises ValueError for a file that is missing."""
        try:
            return (
                self.authority.read_bytes(),
                self.certificate.read_bytes(),
                self.key.read_bytes(),
            )
        except OSError as error:
            raise ValueError(f'certificates: {error.filename}: {error.strerror}') from None


@dataclass(frozen=True, kw_only=True)
class SessionLimits(Checked):
    """Limits of each session; a session is one client's memories and requests."""

    max_memories: Count = 16
    """Memories at a time."""
    max_points: Count = 4_000_000
    """Latent points of a memory; a full memory evicts the oldest."""
    max_bytes: Count = 4 * 2**30
    """Bytes of all memories together; observations are rejected above it."""
    queue_size: Count = 8
    """Requests that wait."""


@dataclass(frozen=True, kw_only=True)
class ServerConfig(Checked):
    """Address and limits of a server."""

    address: Name = 'grpcs://0.0.0.0:50051'
    """grpcs://HOST:PORT with certificates; grpc://HOST:PORT without, on loopback only."""
    authority: InputFile | None = None
    """Certificate that signed the clients' certificates, PEM."""
    certificate: InputFile | None = None
    """Certificate of the server, PEM."""
    key: InputFile | None = None
    """Private key of the server, PEM."""
    lease: Positive = 30.0
    """Time after which the memories of a client that is silent are deleted [s]."""
    max_sessions: Count = 64
    """Sessions at a time."""
    max_message_bytes: Count = 64 * 2**20
    """Largest message from a client, and its arrays decompressed [bytes]."""
    folder: Path | None = None
    """Folder of saved memories, one below it for each client; without it nothing is saved."""
    limits: OmitArgPrefixes[SessionLimits] = SessionLimits()

    @property
    def certificates(self) -> Certificates | None:
        return certificates_of(self.authority, self.certificate, self.key)


class EngineLoader(Protocol):
    """Loads an engine in the process that serves it; its ``repr`` states all its options."""

    def load(self, limits: SessionLimits) -> tuple[EngineProtocol, Callable[[], EngineProtocol]]:
        """Return a warm engine, and a function that returns an engine without memories on the
        same model, for a new session."""
        ...


@dataclass(frozen=True, kw_only=True)
class ServedModel(EngineOptions):
    """Model that a server loads."""

    device: Name = 'cpu'
    """cpu, cuda or cuda:N."""

    def load(self, limits: SessionLimits) -> tuple[EngineProtocol, Callable[[], EngineProtocol]]:
        from mirage_model.engine.engine import Engine
        from mirage_model.memory.eviction import MemoryLimits

        engine = Engine.from_options(self, device=self.device)
        engine.warm()
        memory = MemoryLimits(capacity=limits.max_points)
        return engine, lambda: engine.for_session(memory)


@dataclass(frozen=True, kw_only=True)
class PoolConfig(Checked):
    """Engines of a pool and the Ray cluster that they run on."""

    engines: Whole = 0
    """Engines of the pool; 0 for one for each GPU of the cluster, those that join later too."""
    gpus: NotNegative = 1.0
    """GPUs of each engine of the pool; a fraction shares a GPU, 0 runs on the CPU."""
    pool_name: Name = 'mirage'
    """Name of the pool; several can share a cluster."""
    ray_address: Name = 'auto'
    """HOST:PORT of the Ray cluster; auto for the one that this machine belongs to."""

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not allowed."""
        super().__post_init__()
        if self.ray_address != 'auto' and not self.ray_address.rpartition(':')[2].isdigit():
            raise ValueError(f"ray_address: '{self.ray_address}', must be auto or HOST:PORT")
        if not self.engines and not self.gpus:
            raise ValueError('engines: 0 with gpus: 0, give the number of engines')


@dataclass(frozen=True, kw_only=True)
class ServeCommand:
    """Serve a model to robots over gRPC."""

    engine: OmitArgPrefixes[ServedModel] = ServedModel()
    server: OmitArgPrefixes[ServerConfig] = ServerConfig()
    pool: bool = False
    """Serve by many engines, each in an actor of a Ray cluster; this process is their front."""
    cluster: OmitArgPrefixes[PoolConfig] = PoolConfig()
    status: bool = False
    """Print what the server at ``address`` does, and end."""

    def __post_init__(self) -> None:
        """Raise ValueError for a pool that would leave its GPUs unused."""
        if self.pool and self.cluster.gpus and self.engine.device == 'cpu':
            raise ValueError(
                "device: 'cpu' would leave the GPUs of the pool unused, give --device cuda, "
                'or --gpus 0'
            )


def certificates_of(
    authority: Path | None, certificate: Path | None, key: Path | None
) -> Certificates | None:
    """Return the certificates, or None where no file is given. Raises ValueError for some only."""
    given = {'authority': authority, 'certificate': certificate, 'key': key}
    missing = [name for name, file in given.items() if file is None]
    if len(missing) == len(given):
        return None
    if authority is None or certificate is None or key is None:
        raise ValueError(f'certificates: {", ".join(missing)} is missing, all three are needed')
    return Certificates(authority=authority, certificate=certificate, key=key)


def target_of(address: str, certificates: Certificates | None) -> str:
    """Return HOST:PORT of an address.

    Raises:
        ValueError: The address is malformed, names no certificates for grpcs, or would send
            images and memories in plain text over a network.
    """
    scheme, separator, target = address.partition('://')
    host, colon, port = target.rpartition(':')
    if scheme not in ('grpc', 'grpcs') or not separator or not host or not port.isdigit():
        raise ValueError(f"address: is '{address}', must be grpcs://HOST:PORT")
    if scheme == 'grpcs' and certificates is None:
        raise ValueError(
            f"address: '{address}' needs certificates, give authority, certificate and key"
        )
    if scheme == 'grpc' and not _is_loopback(host):
        raise ValueError(
            f"address: '{address}' would send camera images in plain text over the network, "
            'use grpcs:// with certificates (grpc:// is for loopback)'
        )
    return target


def scheme_of(address: str) -> Literal['grpc', 'grpcs']:
    return 'grpcs' if address.startswith('grpcs://') else 'grpc'


def _is_loopback(host: str) -> bool:
    try:
        found = socket.getaddrinfo(host.strip('[]'), None)
    except OSError:
        return False
    return all(ipaddress.ip_address(each[4][0]).is_loopback for each in found)


def channel_credentials(certificates: Certificates) -> grpc.ChannelCredentials:
    authority, certificate, key = certificates.read()
    return grpc.ssl_channel_credentials(authority, key, certificate)


def server_credentials(certificates: Certificates) -> grpc.ServerCredentials:
    authority, certificate, key = certificates.read()
    return grpc.ssl_server_credentials(
        [(key, certificate)], root_certificates=authority, require_client_auth=True
    )


def leaf_of(pem: bytes) -> bytes:
    """Return the first certificate of a file in PEM, as DER."""
    _, begin, rest = pem.decode().partition(ssl.PEM_HEADER)
    return ssl.PEM_cert_to_DER_cert(begin + rest.partition(ssl.PEM_FOOTER)[0] + ssl.PEM_FOOTER)
