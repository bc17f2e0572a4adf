"""A Ray cluster and fronts of pools for the tests, in processes of their own; as a program it runs
one of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
import secrets
import shutil
import subprocess
import sys
import tempfile
from typing import Any

from servers import InstantOptions, ServerProcess

from mirage_model.serving.command import read_status
from mirage_model.serving.config import Certificates, PoolConfig, ServerConfig

OBJECT_STORE = 75 * 2**20
"""Size of Ray's object store, the least that it takes [bytes]."""


class Cluster:
    """A Ray cluster of this machine, which ends with the process that made it."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix='ray', dir='/tmp')  # paths of sockets are short
        folders = [str(folder) for folder in Path(__file__).resolve().parents[:3]]
        path = [*folders, *filter(None, [os.environ.get('PYTHONPATH')])]
        self.environment = {
            **os.environ,
            'PYTHONPATH': os.pathsep.join(path),  # of the actors
            'RAY_AUTH_MODE': 'token',
            'RAY_AUTH_TOKEN': secrets.token_hex(32),
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__, 'cluster', self._folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.environment,
        )
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        assert self.address, 'Ray did not start'

    def close(self) -> None:
        self._process.communicate()
        shutil.rmtree(self._folder, ignore_errors=True)


def front_words(
    cluster: Cluster,
    *,
    pool: dict[str, Any],
    engine: dict[str, Any] | None = None,
    address: str = 'grpc://127.0.0.1',
    certificates: Certificates | None = None,
    **server: Any,
) -> list[str]:
    """Return the words after python that run a front; the port to serve follows them."""
    files = {name: str(file) for name, file in vars(certificates).items()} if certificates else {}
    options = {
        'pool': {'gpus': 0, 'ray_address': cluster.address, **pool},
        'engine': engine or {},
        'server': {**files, **server},
    }
    return [__file__, 'front', address, json.dumps(options)]


class FrontProcess(ServerProcess):
    """A front, and the engines of its pool; the engines stay when it ends."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        address: str = 'grpc://127.0.0.1',
        certificates: Certificates | None = None,
        **options: Any,
    ) -> None:
        self._arguments = front_words(
            cluster, address=address, certificates=certificates, **options
        )
        self._environment = cluster.environment
        self._address, self._certificates = address, certificates
        self.port = 0
        self.start()

    def engines(self) -> dict[str, dict[str, Any]]:
        """Return what the engines do, by name."""
        files = vars(self._certificates) if self._certificates else {}
        config = ServerConfig(address=f'{self._address}:{self.port}', **files)
        return read_status(config)['engines']


def hold_cluster(folder: str) -> None:
    """Run a cluster until standard input ends."""
    import ray

    context = ray.init(
        num_cpus=8,  # places for engines
        num_gpus=0,
        object_store_memory=OBJECT_STORE,
        include_dashboard=False,
        _temp_dir=folder,
        _node_ip_address='127.0.0.1',
        log_to_driver=False,
    )
    print(context.address_info['address'], flush=True)
    sys.stdin.read()
    ray.shutdown()


def run_front(address: str, options: dict[str, Any], port: str) -> int:
    from mirage_model.serving.pool import serve_pool

    server = {
        name: Path(value) if name in ('authority', 'certificate', 'key', 'folder') else value
        for name, value in options['server'].items()
    }
    return serve_pool(
        InstantOptions(**options['engine']),
        ServerConfig(address=f'{address}:{port}', **server),
        PoolConfig(**options['pool']),
    )


if __name__ == '__main__':
    if sys.argv[1] == 'cluster':
        hold_cluster(sys.argv[2])
    else:
        sys.exit(run_front(sys.argv[2], json.loads(sys.argv[3]), sys.argv[4]))
