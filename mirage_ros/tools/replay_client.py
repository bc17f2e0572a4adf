"""A running node in place of an engine: the replay plays to it over ROS 2 and waits for each
answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import time

from diagnostic_msgs.msg import DiagnosticArray
from mirage.action import Imagine as ImagineAction
from mirage.msg import ImaginedChunk, PlannedTrajectory
from mirage.srv import ResetMemory
import numpy as np
from tf2_msgs.msg import TFMessage

from mirage_model.interface import (
    Chunk,
    DepthSource,
    ImagineRequest,
    InvalidRequest,
    ModelInfo,
    Observation,
)
from mirage_ros import convert
from mirage_ros.tools.fake_robot import CAMERA, FakeRobot, planned_trajectory

TOPICS = {'/tf': TFMessage, **CAMERA}
RESEND = 1.0
"""Time after which an image that the node has not counted is sent again [s]."""


def node_counts(robot: FakeRobot) -> dict[str, int] | None:
    """Return the counters of the node's last diagnostics; None before an active node sent any."""
    for message in reversed(robot.received['/diagnostics']):
        for status in message.status:
            values = {value.key: value.value for value in status.values}
            if status.name.endswith(': imagination') and values['state'] == 'active':
                prefixes = ('images ', 'messages ', 'requests ')
                return {k: int(v) for k, v in values.items() if k.startswith(prefixes)}
    return None


def trajectory_of(request: ImagineRequest) -> PlannedTrajectory:
    """Make a request's trajectory without a seed: the node starts from its observed memory."""
    return planned_trajectory(
        request.world_from_camera, request.times, request_id=request.request_id
    )


class NodeEngine:
    """The verbs of `ReplayEngine` by a node that observes each image that it is sent.

    Waiting raises TimeoutError after ``patience`` seconds, ChildProcessError when the node has
    ended.

    Args:
        about: The model that the node serves.
        depth: Whether images have depth.
        alive: Whether the node runs.
    """

    def __init__(
        self,
        about: ModelInfo,
        *,
        depth: bool,
        patience: float = 600.0,
        alive: Callable[[], bool] = lambda: True,
    ):
        self._about = about
        topics = {name: kind for name, kind in TOPICS.items() if depth or name != 'depth'}
        self._robot = FakeRobot('mirage_replay', topics=topics, patience=patience, alive=alive)
        self._robot.receive('/diagnostics', DiagnosticArray)
        self._robot.connect()
        self._robot.until(
            lambda: node_counts(self._robot) is not None,
            complaint='the node did not become active',
        )

    def close(self) -> None:
        self._robot.__exit__()

    def describe(self) -> ModelInfo:
        return self._about

    def seed(self, view: Observation, *, memory: str = 'default') -> DepthSource:
        """Reset the observed memory, unless it is empty, and write the view to it."""
        if self._counts().get('images observed'):
            self._robot.call(ResetMemory, 'reset_memory')
        return self.observe(view, memory=memory)

    def observe(self, view: Observation, *, memory: str = 'default') -> DepthSource:
        """Send a view and wait until the node has counted it.

        Raises InvalidRequest where it is rejected.
        """
        before = self._counts()
        sent = -np.inf

        def counted() -> bool:
            nonlocal sent
            counts = self._counts()
            new = {name for name, count in counts.items() if count > before.get(name, 0)}
            if new & {'messages rejected', 'messages failed', 'images dropped: no pose'}:
                raise InvalidRequest(
                    f'the node did not observe the view at {view.time:.6f}, see its log'
                )
            if time.monotonic() > sent + RESEND:
                self._robot.send_view(view)
                sent = time.monotonic()
            return 'images observed' in new

        self._robot.until(counted, complaint=f'the view at {view.time:.6f} was not observed')
        return 'sensor' if view.depth is not None else 'perception'

    def imagine(self, request: ImagineRequest) -> Iterator[Chunk]:
        """Yield chunks.

        Raises InvalidRequest with the node's reason, ValueError for another model.
        """
        self._robot.chunks.clear()
        goal = self._robot.goal(
            ImagineAction.Goal(
                trajectory=trajectory_of(request),
                seed=request.seed,
                steps=request.steps or 0,
                prompt=request.prompt,
                negative_prompt=request.negative_prompt,
                guidance=request.guidance,
            )
        )
        if not goal.handle.accepted:
            raise InvalidRequest('the node has its largest number of goals')
        _, result = goal.result()
        if not result.complete:
            raise InvalidRequest(result.message)
        self._robot.until(
            lambda: len(self._answers(request)) == result.chunks, complaint='chunks are missing'
        )
        for message in self._answers(request):
            if message.model_sha256 != self._about.sha256:
                raise ValueError(
                    f'the node serves {message.model} ({message.model_sha256[:12]}), '
                    f'the replay is of {self._about.model} ({self._about.sha256[:12]})'
                )
            yield convert.chunk_from_message(message)

    def _counts(self) -> dict[str, int]:
        return node_counts(self._robot) or {}

    def _answers(self, request: ImagineRequest) -> list[ImaginedChunk]:
        chunks = [c for c in self._robot.chunks if c.request_id == request.request_id]
        return sorted(chunks, key=lambda chunk: chunk.index)
