"""Trajectories and paths by topic, and the action imagine, as jobs for the worker."""

from __future__ import annotations

from itertools import count
from typing import cast

from mirage.action import Imagine as ImagineAction
from mirage.msg import PlannedTrajectory
from nav_msgs.msg import Path
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.qos import QoSProfile

from mirage_model.engine.worker import Job, Outcome
from mirage_model.interface import Chunk, ImagineRequest
from mirage_model.messages.path_orientation import Orientation
from mirage_ros import convert
from mirage_ros.action_server import Finish, Goals, message_of
from mirage_ros.context import NodeContext
from mirage_ros.initial_state import InitialState, attached_images, initial_state
from mirage_ros.memory_names import DRIVEN, MemoryRecord, check_name
from mirage_ros.publishers import Publishers
from mirage_ros.trajectory import PlannedPath, planned_from_path, planned_from_trajectory

REQUEST_QOS = QoSProfile(depth=10)


class ImagineServer:
    def __init__(self, node: NodeContext, publishers: Publishers, goals: Goals):
        self._node = node
        self._publishers = publishers
        self._ids = count(1)
        group = MutuallyExclusiveCallbackGroup()
        for kind, name, callback in (
            (PlannedTrajectory, 'trajectory', self._on_trajectory),
            (Path, 'path', self._on_path),
        ):
            node.create_subscription(kind, name, callback, REQUEST_QOS, callback_group=group)
        self.action = goals.serve(
            ImagineAction,
            'imagine',
            requested_id=lambda goal: goal.trajectory.request_id,
            make_job=self._goal_job,
            make_result=self._result,
        )

    def _on_trajectory(self, message: PlannedTrajectory) -> None:
        message.request_id = message.request_id or f'trajectory-{next(self._ids)}'
        with self._node.logging_errors(f"request '{message.request_id}'"):
            self._submit(
                planned_from_trajectory(message, max_poses=self._node.parameters.limits.max_poses)
            )

    def _on_path(self, message: Path) -> None:
        parameters = self._node.parameters
        request_id = f'path-{next(self._ids)}'
        with self._node.logging_errors(f"request '{request_id}'"):
            self._submit(
                planned_from_path(
                    message,
                    request_id=request_id,
                    moving_frame=parameters.frames.base,
                    speed=parameters.path.speed,
                    turn_rate=parameters.path.turn_rate,
                    max_poses=parameters.limits.max_poses,
                    warn=self._node.log_warning,
                    orientation=cast(Orientation, parameters.path.orientation),
                    doubts=self._node.doubts,
                )
            )

    def _submit(self, planned: PlannedPath) -> None:
        node, parameters = self._node, self._node.parameters
        worker = node.worker
        with node.metrics.timing('convert'):
            start = initial_state(node, [planned], request_id=planned.request_id)
        request = _request(
            planned.request_id,
            start,
            seed=parameters.request.seed,
            steps=parameters.request.steps,
            memory_frames=parameters.request.memory_frames,
            prompt=parameters.request.prompt,
            negative_prompt=parameters.request.negative_prompt,
            guidance=parameters.request.guidance,
        )
        worker.submit(
            Job(
                request=request,
                observations=start.observations,
                wanted=start.wanted,
                on_answer=lambda chunk: self._publishers.publish(chunk, start.camera_frame),
                on_end=self._publishers.log,
                client=planned.client,
                replaces=parameters.request.replace_older,
            )
        )

    def _goal_job(self, handle: ServerGoalHandle, request_id: str, finish: Finish) -> Job:
        node, goal = self._node, handle.request
        planned = planned_from_trajectory(
            goal.trajectory, max_poses=node.parameters.limits.max_poses
        )
        images = attached_images(goal.seed_image, goal.seed_depth, planned)
        start = initial_state(
            node,
            [planned],
            request_id=request_id,
            images=images,
            more_images=goal.more_images,
            target_camera=goal.target_camera,
            memory=goal.memory,
        )
        keep_in = check_name(goal.keep_in, 'keep_in') if goal.keep_in else None
        if keep_in == DRIVEN != start.memory:
            raise ValueError(
                f"keep_in: '{DRIVEN}' would replace the observations, choose another name"
            )
        if keep_in is not None:
            node.memories.reserve(keep_in)

        def on_chunk(chunk: Chunk) -> None:
            self._publishers.publish(chunk, start.camera_frame)
            header = self._publishers.header(chunk.times[-1], start.camera_frame)
            handle.publish_feedback(
                ImagineAction.Feedback(
                    chunk_index=chunk.index,
                    chunk_count=chunk.count,
                    visible=float(chunk.visible.mean()),
                    observed=float(chunk.observed.mean()),
                    last_frame=convert.image_message(chunk.frames[-1], 'rgb8', header),
                )
            )

        def on_end(outcome: Outcome) -> None:
            if keep_in not in (None, start.memory) and outcome.status == 'done':
                record = MemoryRecord(
                    camera_frame=start.camera_frame,
                    loaded=start.memory in node.memories.names(loaded=True),
                )
                node.memories.add(keep_in, record)
            if keep_in is not None:
                node.memories.release(keep_in)
            finish(outcome, self._result(outcome))

        return Job(
            request=_request(
                request_id,
                start,
                seed=goal.seed,
                steps=goal.steps,
                memory_frames=goal.memory_frames,
                prompt=goal.prompt,
                negative_prompt=goal.negative_prompt,
                guidance=goal.guidance or 1.0,
                keep_in=keep_in,
            ),
            observations=start.observations,
            wanted=start.wanted,
            on_answer=on_chunk,
            on_end=on_end,
            client=planned.client,
            kind='goal',
            replaces=goal.replace_older,
        )

    def _result(self, outcome: Outcome) -> ImagineAction.Result:
        engine = self._node.engine_or_none
        return ImagineAction.Result(
            request_id=outcome.request_id,
            complete=outcome.status == 'done',
            message=message_of(outcome),
            chunks=outcome.chunks,
            frames=outcome.frames,
            visible_mean=outcome.visible_mean,
            observed_mean=outcome.observed_mean,
            model=engine.model if engine else '',
            depth_source=outcome.depth_source,
            seconds=outcome.seconds,
        )


def _request(
    request_id: str,
    start: InitialState,
    *,
    seed: int,
    steps: int,
    memory_frames: bool,
    prompt: str,
    negative_prompt: str,
    guidance: float,
    keep_in: str | None = None,
) -> ImagineRequest:
    (trajectory,) = start.trajectories
    return ImagineRequest(
        request_id=request_id,
        world_from_camera=trajectory.world_from_camera,
        times=trajectory.times,
        memory=start.memory,
        seed=seed,
        steps=steps or None,
        prompt=prompt,
        negative_prompt=negative_prompt,
        guidance=guidance,
        K=start.K,
        memory_frames=memory_frames,
        keep_in=keep_in,
    )
