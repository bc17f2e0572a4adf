"""A pool of engines on a Ray cluster, and its front: ``mirage serve --pool``.

Ray places an actor for each engine and starts it again when it dies. The actors are detached:
they stay when the front ends, and a front that is started again finds them by their names.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
import logging
import os
import signal
import socket
import sys

import grpc
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mirage_model.serving.command import ready_line
from mirage_model.serving.config import EngineLoader, PoolConfig, ServerConfig, scheme_of
from mirage_model.serving.front import SILENCE, Engines, Front, PoolEngine, connect
from mirage_model.serving.server import EngineServer

PERIOD = 1.0
"""Time between two looks at an engine [s]."""
PATIENCE = 20.0
"""Time between two lines that say what the pool waits for [s]."""

POLL = 0.1
"""Time between two looks for the first engine that is ready [s]."""

logger = logging.getLogger(__name__)


class EngineActor:
    """An engine and its server, in a process that Ray starts."""

    def __init__(self, name: str, loader: EngineLoader, config: ServerConfig) -> None:
        self._options = options_of(loader, config)
        engine, open_engine = loader.load(config.limits)
        host = ray.util.get_node_ip_address() if _is_secure(config) else '127.0.0.1'
        host = f'[{host}]' if ':' in host else host
        config = replace(config, address=f'{scheme_of(config.address)}://{host}:0')
        self._server = EngineServer(engine, open_engine, config, member=name)
        self._target = f'{host}:{self._server.port}'

    def about(self) -> tuple[str, str]:
        """Return HOST:PORT of the server, and the options that it was started with."""
        return self._target, self._options


def options_of(loader: EngineLoader, config: ServerConfig) -> str:
    """Return all options in which engines of a pool must be equal."""
    shared = replace(config, address=scheme_of(config.address))  # fronts differ in HOST:PORT
    return f'{loader!r} {shared!r}'


def _is_secure(config: ServerConfig) -> bool:
    return scheme_of(config.address) == 'grpcs'


class Pool:
    """Has Ray run the engines, and follows where they are and what they do.

    Raises:
        OSError: There is no Ray cluster.
    """

    def __init__(self, loader: EngineLoader, config: ServerConfig, cluster: PoolConfig) -> None:
        self.engines = Engines()
        self.failed: dict[str, str] = {}
        """Why engines could not be started, by name."""
        self._loader = loader
        self._config = config
        self._cluster = cluster
        os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
        try:
            if cluster.ray_address != 'auto':  # Ray itself tries for minutes
                host, _, port = cluster.ray_address.rpartition(':')
                socket.create_connection((host.strip('[]'), int(port)), SILENCE).close()
            ray.init(
                address=cluster.ray_address,
                namespace=cluster.pool_name,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
        except (OSError, ray.exceptions.AuthenticationError) as error:
            raise OSError(
                f"ray_address: no Ray cluster at '{cluster.ray_address}' takes this machine: "
                f'{_reason(error)}; start one as docs/reference/serving.md says'
            ) from None
        self._node = ray.get_runtime_context().get_node_id()

    async def keep(self) -> None:
        """Have as many engines as are wanted, for good."""
        async with asyncio.TaskGroup() as group:
            while True:
                for number in range(await asyncio.to_thread(self._wanted)):
                    if (name := str(number)) not in self.engines.engines:
                        engine = self.engines.engines[name] = PoolEngine(name)
                        group.create_task(self._follow(engine))
                await asyncio.sleep(PERIOD)

    def _wanted(self) -> int:
        if self._cluster.engines:
            return self._cluster.engines
        return sum(
            int(node['Resources'].get('GPU', 0) / self._cluster.gpus)
            for node in ray.nodes()
            if node['Alive'] and (_is_secure(self._config) or node['NodeID'] == self._node)
        )

    def _actor(self, name: str) -> ray.actor.ActorHandle:
        """Return the actor of an engine, which is started if there is none."""
        here = NodeAffinitySchedulingStrategy(self._node, soft=False)
        return (
            ray.remote(EngineActor)
            .options(
                name=f'engine {name}',
                lifetime='detached',
                get_if_exists=True,
                max_restarts=-1,
                num_cpus=1,
                num_gpus=self._cluster.gpus,
                # without certificates nothing may leave this machine
                scheduling_strategy='DEFAULT' if _is_secure(self._config) else here,
            )
            .remote(name, self._loader, self._config)
        )

    async def _follow(self, engine: PoolEngine) -> None:
        """Keep the connection to an engine, and its status, up to date."""
        while True:
            try:
                await self._connect(engine)
                self.failed.pop(engine.name, None)
                while True:
                    await engine.refresh(SILENCE)
                    await asyncio.sleep(PERIOD)
            except (ray.exceptions.ActorDiedError, ValueError) as error:
                engine.problem = self.failed[engine.name] = _reason(error)
            except (ray.exceptions.RayError, OSError) as error:
                engine.problem = _reason(error)
            except grpc.RpcError as error:
                engine.problem = f'{error.code().name.lower()}: {error.details()}'
            engine.status = None
            logger.warning('engine %s: %s', engine.name, engine.problem)
            await asyncio.sleep(SILENCE if engine.name in self.failed else PERIOD)

    async def _connect(self, engine: PoolEngine) -> None:
        """Wait for Ray to have started an engine; connect unless the connection is the same."""
        actor = await asyncio.to_thread(self._actor, engine.name)
        target, options = await actor.about.remote()
        if options != options_of(self._loader, self._config):
            raise ValueError(
                f"an engine of pool '{self._cluster.pool_name}' runs with other options: "
                f'{options}; end it with: ray stop, or give another --pool-name'
            )
        before = engine.connection
        if before is not None and before.target == target:
            return
        engine.connection = await connect(target, self._config.certificates)
        if before is not None:
            await before.channel.close()


def _reason(error: Exception) -> str:
    """Return the last line of an error's text; Ray puts the engine's own error there."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def serve_pool(loader: EngineLoader, config: ServerConfig, cluster: PoolConfig) -> int:
    """Serve by a pool until SIGINT or SIGTERM; the engines stay.

    Raises:
        ValueError: The address or the certificates cannot be used.
        OSError: The port is in use, there is no Ray cluster, or no engine can be started.
    """
    return asyncio.run(_serve(Pool(loader, config, cluster), config))


async def _serve(pool: Pool, config: ServerConfig) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    front = Front(pool.engines, config)
    await front.start()
    tasks = [
        asyncio.create_task(task)
        for task in (stop.wait(), pool.keep(), _announce(pool, config, front.port))
    ]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await front.close()
    return 0


async def _announce(pool: Pool, config: ServerConfig, port: int) -> None:
    """Print that the pool is ready once an engine is; until then, what it waits for.

    Raises OSError if no engine can be started.
    """
    engines, waited = pool.engines.engines, 0.0
    while not (ready := [engine.status for engine in engines.values() if engine.status]):
        if engines and len(pool.failed) == len(engines):
            raise OSError(f'pool: no engine can be started: {next(iter(pool.failed.values()))}')
        await asyncio.sleep(POLL)
        waited += POLL
        if waited % PATIENCE < POLL:
            problems = {engine.problem for engine in engines.values()}
            print(
                f'{len(engines)} engines, none is ready: {"; ".join(sorted(problems))}; '
                'ray status says which resources are missing',
                file=sys.stderr,
            )
    print(ready_line(ready[0]['model'], ready[0]['sha256'], config, port), flush=True)
    await asyncio.Event().wait()
