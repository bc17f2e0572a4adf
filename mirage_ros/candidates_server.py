"""The action imagine_candidates."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
import math
import time
from typing import Literal

from mirage.action import ImagineCandidates
from mirage.msg import ImaginedCandidate
from rclpy.action.server import ServerGoalHandle

from mirage_model.engine.worker import Job, Outcome
from mirage_model.interface import Candidate, CandidatesRequest, InvalidRequest
from mirage_model.messages.images import image_size, rgb_from_image
from mirage_ros import convert
from mirage_ros.action_server import Finish, Goals, message_of
from mirage_ros.context import NodeContext
from mirage_ros.convert import Compression
from mirage_ros.initial_state import InitialState, attached_images, initial_state
from mirage_ros.publishers import Publishers
from mirage_ros.trajectory import planned_from_trajectory

RESOLUTIONS: dict[int, Literal['full', 'half']] = {
    ImagineCandidates.Goal.FULL: 'full',
    ImagineCandidates.Goal.HALF: 'half',
}
RATIOS = {'none': 1, 'png': 2, 'jpeg': 16}
"""Compression ratios that are assumed before the frames exist."""
ADVICE = 'ask for fewer frames, last_frame_only or HALF resolution, or raise the limit'


class CandidatesServer:
    def __init__(self, node: NodeContext, publishers: Publishers, goals: Goals):
        self._node = node
        self._publishers = publishers
        self.action = goals.serve(
            ImagineCandidates,
            'imagine_candidates',
            requested_id=lambda goal: '',
            make_job=self._job,
            make_result=self._result,
        )

    def _job(self, handle: ServerGoalHandle, request_id: str, finish: Finish) -> Job:
        node, goal = self._node, handle.request
        accepted, parameters = time.monotonic(), node.parameters
        count = len(goal.trajectories)
        if not 1 <= count <= parameters.limits.max_candidates:
            raise ValueError(
                f'trajectories: {count} candidates, limits.max_candidates is '
                f'{parameters.limits.max_candidates}'
            )
        if goal.resolution not in RESOLUTIONS:
            raise ValueError(f'resolution: {goal.resolution}, must be FULL or HALF')
        if not goal.deadline >= 0:
            raise ValueError(f'deadline: {goal.deadline} s, must not be negative')
        paths = [
            planned_from_trajectory(trajectory, max_poses=parameters.limits.max_poses)
            for trajectory in goal.trajectories
        ]
        images = attached_images(goal.seed_image, goal.seed_depth, paths[0])
        start = initial_state(
            node,
            paths,
            request_id=request_id,
            images=images,
            more_images=goal.more_images,
            target_camera=goal.target_camera,
            memory=goal.memory,
        )
        compression = self._compression(goal, start)
        request = CandidatesRequest(
            request_id=request_id,
            trajectories=start.trajectories,
            seeds=_seeds(goal.seeds, count),
            memory=start.memory,
            steps=goal.steps or None,
            prompt=goal.prompt,
            negative_prompt=goal.negative_prompt,
            guidance=goal.guidance or 1.0,
            K=start.K,
            batch=min(goal.batch or parameters.request.batch, count, self._max_batch(goal, start)),
            resolution=RESOLUTIONS[goal.resolution],
            goal=self._goal_image(goal),
        )
        # incomplete until it is imagined: the deadline may pass before that
        results = [
            ImaginedCandidate(index=index, request_id=path.request_id, goal_distance=math.nan)
            for index, path in enumerate(paths)
        ]
        done, size, predicted = 0, 0, 0.0

        def feedback() -> None:
            handle.publish_feedback(
                ImagineCandidates.Feedback(
                    candidates_done=done,
                    candidate_count=count,
                    predicted_seconds=predicted,
                )
            )

        def on_candidate(candidate: Candidate) -> None:
            nonlocal done, size
            message = results[candidate.index]
            chunks = [
                self._publishers.message(chunk, start.camera_frame, compression=compression)
                for chunk in candidate.chunks
            ]
            size += sum(map(convert.image_bytes, chunks))
            if size > parameters.limits.max_message_bytes:
                raise InvalidRequest(
                    f'{done} of {count} candidates fill the result: limits.max_message_bytes is '
                    f'{parameters.limits.max_message_bytes}: {ADVICE}'
                )
            message.chunks = chunks
            message.complete, message.goal_distance = candidate.complete, candidate.goal_distance
            done += 1
            for chunk in candidate.chunks:
                node.metrics.add_chunk(len(chunk.frames), chunk.seconds, chunk.stages)
            feedback()

        def on_prediction(prediction: Future[float]) -> None:
            nonlocal predicted
            with suppress(ValueError):  # the engine rejects the job for the same reason
                predicted = prediction.result()
                feedback()

        # the worker computes it before it starts the job
        node.worker.call(lambda engine: engine.predicted_seconds(request)).add_done_callback(
            on_prediction
        )
        return Job(
            request=request,
            observations=start.observations,
            wanted=start.wanted,
            on_answer=on_candidate,
            on_end=lambda outcome: finish(outcome, self._result(outcome, results, predicted)),
            client=paths[0].client,
            kind='goal',
            replaces=goal.replace_older,
            due=accepted + goal.deadline if goal.deadline else None,
            last_frame_only=goal.last_frame_only,
        )

    def _frame_bytes(self, goal: ImagineCandidates.Goal) -> int:
        """Return the size of a frame and its mask."""
        about = self._node.engine
        nbytes = about.height * about.width * 4
        return nbytes // 4 if goal.resolution == goal.HALF else nbytes

    def _compression(self, goal: ImagineCandidates.Goal, start: InitialState) -> Compression:
        """Return the compression of the images of a result.

        Raises ValueError if they are too large for a message.
        """
        parameters = self._node.parameters
        frames = len(start.wanted) if goal.last_frame_only else sum(start.wanted)
        nbytes = frames * self._frame_bytes(goal)
        chosen = convert.chosen_compression(
            parameters.compression.format, nbytes, raw_bytes=parameters.largest_raw
        )
        packed = nbytes / RATIOS[chosen]
        if packed > parameters.limits.max_message_bytes:
            raise ValueError(
                f'trajectories: {len(start.wanted)} candidates with {frames} frames in total take '
                f'about {packed / 2**20:.1f} MiB ({chosen}), '
                'limits.max_message_bytes allows '
                f'{parameters.limits.max_message_bytes / 2**20:.1f}: {ADVICE}'
            )
        return chosen

    def _max_batch(self, goal: ImagineCandidates.Goal, start: InitialState) -> int:
        """Return the number of candidates whose frames are held at once: as many as fill a result,
        at least 1."""
        longest = max(len(trajectory.times) for trajectory in start.trajectories)
        longest *= self._frame_bytes(goal)
        return max(1, RATIOS['jpeg'] * self._node.parameters.limits.max_message_bytes // longest)

    def _goal_image(self, goal: ImagineCandidates.Goal):
        if not goal.goal_image:
            return None
        image_size(goal.goal_image[0], 'image', max_pixels=self._node.parameters.limits.max_pixels)
        return rgb_from_image(goal.goal_image[0])

    def _result(
        self,
        outcome: Outcome,
        candidates: Sequence[ImaginedCandidate] = (),
        predicted_seconds: float = 0.0,
    ) -> ImagineCandidates.Result:
        return ImagineCandidates.Result(
            request_id=outcome.request_id,
            complete=outcome.status == 'done',
            message=message_of(outcome),
            candidates=list(candidates),
            depth_source=outcome.depth_source,
            predicted_seconds=predicted_seconds,
            seconds=outcome.seconds,
        )


def _seeds(seeds: Sequence[int], count: int) -> tuple[int, ...]:
    if len(seeds) not in (0, 1, count):
        raise ValueError(
            f'seeds: {len(seeds)} for {count} candidates, give none, one, or one for each'
        )
    return tuple(seeds) * count if len(seeds) == 1 else tuple(seeds) or (0,) * count
