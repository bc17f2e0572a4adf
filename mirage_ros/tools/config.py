"""Configurations of the tools, importable without ROS and torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import OmitArgPrefixes

from mirage_model.evaluation.config import ReplayCommand

EnginePlace = Literal['node', 'server']


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The trajectory that is imagined, on a map that mirage-tiny was not trained on."""

    map_name: str = 'E2M6'
    """Map of Freedoom, E1M1 to E4M9 or MAP01 to MAP32."""
    kind: str = 'forward'
    """Trajectory: forward, turn, out_and_back or wander."""
    world_seed: int = 2
    """Random seed of the trajectory."""
    frames: int = 64
    """Frames to imagine."""
    patience: float = 240.0
    """Longest time to wait for an answer of the node [s]."""


@dataclass(frozen=True, kw_only=True)
class DemoCommand:
    """Imagine along a path in a simulated world, over ROS 2."""

    out: Path = Path('out/demo')
    """Folder of the results."""
    model_folder: str = ''
    """Folder of weights; empty for mirage-tiny."""
    device: str = 'cpu'
    """cpu, cuda or cuda:N."""
    engine: EnginePlace = 'node'
    """Where frames are generated: in the node, or by a server that is started too, with TLS."""
    recording: Path | None = None
    """File for Rerun, .rrd; needs the extra viewer."""
    world: OmitArgPrefixes[DemoConfig] = DemoConfig()


@dataclass(frozen=True, kw_only=True)
class ReplayNodeCommand(ReplayCommand):
    """Replay a recording through a node, which is started and ended."""

    out: Path = Path('out/replay/node')
    """Folder of the results; an interrupted replay continues from them."""
    engine: EnginePlace = 'node'
    """Where frames are generated: in the node, or by a server that is started too, with TLS."""
    free_running: bool = False
    """Play the bag at its pace, without waiting for answers."""
    pace: float = 1.0
    """Speed of a free run, as a multiple of real time."""


@dataclass(frozen=True, kw_only=True)
class SoakConfig:
    """Clients that send right and wrong requests to a node for minutes."""

    minutes: float = 10.0
    """Time of sending requests [min]."""
    clients: int = 3
    """Number of clients."""
    observe_rate: float = 10.0
    """Rate of the robot's images [Hz]."""
    pause: float = 0.3
    """Longest pause of a client between two requests [s]."""
    seed: int = 0
    """Random seed of the requests."""


@dataclass(frozen=True, kw_only=True)
class SoakCommand:
    """Send right and wrong requests to a node for minutes; check answers, memory and restart."""

    out: Path = Path('out/soak')
    """Folder of the results."""
    soak: OmitArgPrefixes[SoakConfig] = SoakConfig()


@dataclass(frozen=True, kw_only=True)
class NodeBenchConfig:
    """Measure what the node costs a frame and a score, and its first request."""

    out: Path = Path('out/bench/node.json')
    """File of the results."""
