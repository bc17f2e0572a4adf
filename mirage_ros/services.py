"""Services that score trajectories, predict times, and save, load and delete memories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
import time
import traceback
from typing import Any

from mirage.msg import TrajectoryScore
from mirage.srv import MemoryFile, PredictSeconds, ResetMemory, ScoreTrajectories
import numpy as np
from rclpy.callback_groups import ReentrantCallbackGroup

from mirage_model.interface import CandidatesRequest, EngineProtocol, ImagineRequest, Trajectory
from mirage_ros.candidates_server import RESOLUTIONS
from mirage_ros.context import NodeContext
from mirage_ros.initial_state import camera_path
from mirage_ros.memory_names import DRIVEN, MemoryRecord, check_name
from mirage_ros.trajectory import planned_from_trajectory


class Services:
    """Services that respond with success, or with the reason of the failure."""

    def __init__(self, node: NodeContext):
        self._node = node
        group = ReentrantCallbackGroup()
        for kind, name, answer in (
            (ScoreTrajectories, 'score_trajectories', self._score),
            (PredictSeconds, 'predict_seconds', self._predict),
            (MemoryFile, 'save_memory', self._save),
            (MemoryFile, 'load_memory', self._load),
            (ResetMemory, 'reset_memory', self._reset),
        ):
            node.create_service(kind, name, self._callback(name, answer), callback_group=group)

    def _callback(self, name: str, answer: Callable[[Any, Any], None]) -> Callable:
        """Return a callback that responds with errors instead of raising them, which would end the
        executor."""

        def callback(request: Any, response: Any) -> Any:
            try:
                answer(request, response)
                response.success = True
            except (ValueError, OSError) as error:
                response.message = (
                    f'{type(error).__name__}: {error}'
                    if isinstance(error, OSError)
                    else str(error)
                )
                self._node.log_error(f'{name} rejected: {response.message}')
            except Exception as error:
                response.message = f'{type(error).__name__}: {error}'
                self._node.log_error(f'{name} failed: {response.message}', traceback.format_exc())
            self._node.metrics.count(f'{name} {"done" if response.success else "rejected"}')
            return response

        return callback

    def _score(
        self, request: ScoreTrajectories.Request, response: ScoreTrajectories.Response
    ) -> None:
        node, parameters = self._node, self._node.parameters
        began = time.monotonic()
        count = len(request.trajectories)
        if not 1 <= count <= parameters.limits.max_candidates:
            raise ValueError(
                f'trajectories: {count} candidates, limits.max_candidates is '
                f'{parameters.limits.max_candidates}'
            )
        if not 0 <= request.threshold <= 1:
            raise ValueError(f'threshold: is {request.threshold}, must be in 0..1')
        memory = self._memory(request.memory)
        paths = [
            planned_from_trajectory(
                trajectory,
                max_poses=min(parameters.limits.max_poses, parameters.limits.max_frames),
            )
            for trajectory in request.trajectories
        ]
        camera_frame = node.memories.get(memory).camera_frame or node.sensors.camera_frame
        cameras = [
            Trajectory(world_from_camera=camera_path(node, path, camera_frame), times=path.times)
            for path in paths
        ]
        scores = node.worker.call(
            lambda engine: engine.score(
                cameras, memory=memory, threshold=request.threshold, coarse=request.coarse
            )
        ).result()
        response.scores = [
            TrajectoryScore(
                request_id=path.request_id,
                visible=np.float32(score.visible).tolist(),
                observed=np.float32(score.observed).tolist(),
                age=np.float32(score.age).tolist(),
                mean_age=float(score.mean_age),
                visible_ends=-1 if score.visible_ends is None else score.visible_ends,
                observed_ends=-1 if score.observed_ends is None else score.observed_ends,
            )
            for path, score in zip(paths, scores)
        ]
        response.seconds = time.monotonic() - began
        node.metrics.add_latency('score', response.seconds)

    def _predict(self, request: PredictSeconds.Request, response: PredictSeconds.Response) -> None:
        node, parameters = self._node, self._node.parameters
        if not 1 <= request.candidates <= parameters.limits.max_candidates:
            raise ValueError(
                f'candidates: {request.candidates}, limits.max_candidates is '
                f'{parameters.limits.max_candidates}'
            )
        if request.resolution not in RESOLUTIONS:
            raise ValueError(f'resolution: is {request.resolution}, use FULL or HALF')
        frames = request.path_seconds * node.engine.frame_rate
        if not 0.5 < frames < parameters.limits.max_frames + 0.5:
            raise ValueError(
                f'path_seconds: {request.path_seconds} is not 1 to {parameters.limits.max_frames} '
                'frames'
            )
        times = np.arange(round(frames)) / node.engine.frame_rate
        world_from_camera = np.tile(np.eye(4), (len(times), 1, 1))
        path = Trajectory(world_from_camera=world_from_camera, times=times)
        path = path.padded(node.engine)
        predicted = CandidatesRequest(
            request_id='prediction',
            trajectories=(path,) * request.candidates,
            seeds=(0,) * request.candidates,
            steps=request.steps or None,
            batch=min(request.batch or parameters.request.batch, request.candidates),
            resolution=RESOLUTIONS[request.resolution],
        )
        served: list[ImagineRequest | CandidatesRequest] = node.worker.served
        response.seconds, *before = node.worker.call(
            lambda engine: [engine.predicted_seconds(each) for each in [predicted, *served]]
        ).result()
        response.waiting = float(sum(before))

    def _save(self, request: MemoryFile.Request, response: MemoryFile.Response) -> None:
        path, memory = self._file(request.file), self._memory(request.memory)
        self._node.worker.call(lambda engine: engine.save(path, memory=memory)).result()
        self._node.get_logger().info(f"memory '{memory}' saved to {path}")

    def _load(self, request: MemoryFile.Request, response: MemoryFile.Response) -> None:
        node, path = self._node, self._file(request.file)
        memory = check_name(request.memory or DRIVEN, 'memory')
        if not node.parameters.engine.address and not path.is_file():
            raise ValueError(f'file: {path} does not exist')

        def task(engine: EngineProtocol) -> None:
            """Run in the worker's thread, between two observations."""
            engine.load(path, memory=memory)
            node.memories.add(memory, MemoryRecord(camera_frame='', loaded=True))

        node.memories.reserve(memory)
        try:
            node.worker.call(task).result()
        finally:
            node.memories.release(memory)
        node.get_logger().info(f"memory '{memory}' loaded from {path}")

    def _reset(self, request: ResetMemory.Request, response: ResetMemory.Response) -> None:
        node, memory = self._node, self._memory(request.memory)

        def task(engine: EngineProtocol) -> None:
            """Run in the worker's thread, between two observations."""
            engine.drop(memory=memory)
            node.memories.remove(memory)

        node.worker.call(task).result()
        node.get_logger().info(f"memory '{memory}' deleted")

    def _memory(self, name: str) -> str:
        name = name or DRIVEN
        self._node.memories.get(name)
        return name

    def _file(self, name: str) -> Path:
        """Return a path in memory.folder, or the name of a file on the engine's server.

        Raises ValueError for a name or a link that leads out of the folder.
        """
        if self._node.parameters.engine.address:
            return Path(check_name(name, 'file'))
        folder = self._node.parameters.memory.folder
        if not folder:
            raise ValueError('memory.folder: is empty, set it to save and load memories')
        path = (Path(folder) / check_name(name, 'file')).resolve()
        if path.parent != Path(folder).resolve():
            raise ValueError(f"file: '{name}' leads out of {folder}")
        return path
