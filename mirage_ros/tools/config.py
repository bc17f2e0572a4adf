"""Configurations of the tools, importable without ROS and torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import OmitArgPrefixes

from mirage_model.engine.config import EngineOptions
from mirage_model.evaluation.config import ReplayCommand
from mirage_model.options import (
    Checked,
    Count,
    Name,
    NotNegative,
    Positive,
    Whole,
)

EnginePlace = Literal['node', 'server']
SceneName = Literal['doom', 'house']
SCENES: dict[SceneName, tuple[str, str]] = {
    'doom': ('E2M6', 'forward'),
    'house': ('room-0013', 'out_and_back'),
}
"""Map and trajectory of the demo's scenes; mirage-tiny was not trained on these maps."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Checked):
    """The trajectory that is imagined."""

    scene: SceneName = 'doom'
    """A map of Freedoom, or a generated house."""
    map_name: str = ''
    """Another map: E1M1 to E4M9, MAP01 to MAP32, or a house, room-0000 to room-9999."""
    kind: str = ''
    """Trajectory: forward, turn, out_and_back or wander; empty for the scene's."""
    world_seed: Whole = 2
    """Random seed of the trajectory."""
    frames: Count = 64
    """Frames to imagine."""
    patience: Positive = 240.0
    """Longest time to wait for an answer of the node [s]."""

    @property
    def path(self) -> tuple[str, str]:
        """Map and kind of the trajectory."""
        map_name, kind = SCENES[self.scene]
        return self.map_name or map_name, self.kind or kind


@dataclass(frozen=True, kw_only=True)
class DemoCommand(EngineOptions):
    """Imagine along a path in a simulated world, over ROS 2."""

    out: Path = Path('out/demo')
    """Folder of the results."""
    device: Name = 'cpu'
    """cpu, cuda or cuda:N."""
    engine: EnginePlace = 'node'
    """Place of generation: the node, or a server that is started too, with TLS."""
    recording: Path | None = None
    """File for Rerun, .rrd; needs the extra viewer."""
    world: OmitArgPrefixes[DemoConfig] = DemoConfig()


@dataclass(frozen=True, kw_only=True)
class ReplayNodeCommand(ReplayCommand):
    """Replay a recording through a node, which is started and ended."""

    out: Path = Path('out/replay/node')
    """Folder of the results; an interrupted replay continues from them."""
    engine: EnginePlace = 'node'
    """Place of generation: the node, or a server that is started too, with TLS."""
    free_running: bool = False
    """Play the bag at its pace, without waiting for answers."""
    pace: Positive = 1.0
    """Speed of a free run, as a multiple of real time."""


@dataclass(frozen=True, kw_only=True)
class SoakConfig(Checked):
    """Clients that send right and wrong requests to a node for minutes."""

    minutes: Positive = 10.0
    """Time of sending requests [min]."""
    clients: Count = 3
    """Number of clients."""
    observe_rate: Positive = 10.0
    """Rate of the robot's images [Hz]."""
    pause: NotNegative = 0.3
    """Longest pause of a client between two requests [s]."""
    seed: Whole = 0
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
