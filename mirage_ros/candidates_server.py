"""The action imagine_candidates: several paths, each from a copy of one memory."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
import math
import time

from mirage.action import ImagineCandidates
from mirage.msg import ImaginedCandidate
from rclpy.action.server import ServerGoalHandle

from mirage_model.engine.worker import Job, Outcome
from mirage_model.interface import Candidate, CandidatesRequest, InvalidRequest, Trajectory
from mirage_model.messages.images import image_size, rgb_from_image
from mirage_ros import convert
from mirage_ros.action_server import Finish, Goals, message_of
from mirage_ros.context import NodeContext
from mirage_ros.convert import Compression
from mirage_ros.initial_state import own_seed, start
from mirage_ros.publishers import Publishers
from mirage_ros.trajectory import FramePlan

RESOLUTIONS = {ImagineCandidates.Goal.FULL: 'full', ImagineCandidates.Goal.HALF: 'half'}
PACKED = {'none': 1, 'png': 2, 'jpeg': 16}
"""How many times smaller pictures are taken to become, before they are there."""
FEWER = 'ask for fewer frames, for the last ones alone or for half the resolution, or allow more'


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
                f'trajectories: {count} candidates, limits.max_candidates is {parameters.limits.max_candidates}'
            )
        if goal.resolution not in RESOLUTIONS:
            raise ValueError(f'resolution {goal.resolution} is neither FULL nor HALF')
        if not goal.deadline >= 0:
            raise ValueError(f'deadline: {goal.deadline} s')
        paths = [
            convert.planned_from_trajectory(trajectory, max_poses=parameters.limits.max_poses)
            for trajectory in goal.trajectories
        ]
        seed = own_seed(goal.seed_image, goal.seed_depth, paths[0])
        begin = start(node, paths, request_id=request_id, seed=seed, memory=goal.memory)
        compression = self._compression(goal, begin.plans)
        request = CandidatesRequest(
            request_id=request_id,
            trajectories=tuple(
                Trajectory(world_from_camera=plan.world_from_camera, times=plan.times)
                for plan in begin.plans
            ),
            seeds=_seeds(goal.seeds, count),
            memory=begin.memory,
            steps=goal.steps or None,
            batch=min(goal.batch or parameters.request.batch, count, self._fit(goal, begin.plans)),
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
                self._publishers.message(chunk, begin.camera_frame, compression=compression)
                for chunk in candidate.chunks
            ]
            size += sum(map(convert.image_bytes, chunks))
            if size > parameters.limits.max_message_bytes:
                raise InvalidRequest(
                    f'{done} of {count} candidates fill the result: limits.max_message_bytes is '
                    f'{parameters.limits.max_message_bytes}: {FEWER}'
                )
            message.chunks = chunks
            message.complete, message.goal_distance = candidate.complete, candidate.goal_distance
            done += 1
            for chunk in candidate.chunks:
                node.figures.chunk(len(chunk.frames), chunk.seconds, chunk.stages)
            feedback()

        def on_prediction(prediction: Future[float]) -> None:
            nonlocal predicted
            with suppress(ValueError):  # the engine rejects the job for the same reason
                predicted = prediction.result()
                feedback()

        # the worker computes it before it begins the job
        node.worker.call(lambda engine: engine.predicted_seconds(request)).add_done_callback(
            on_prediction
        )
        return Job(
            request=request,
            view=begin.view,
            wanted=begin.wanted,
            on_answer=on_candidate,
            on_end=lambda outcome: finish(outcome, self._result(outcome, results, predicted)),
            client=paths[0].client,
            kind='goal',
            replaces=goal.replace_older,
            due=accepted + goal.deadline if goal.deadline else None,
            last_frame_only=goal.last_frame_only,
        )

    def _frame_bytes(self, goal: ImagineCandidates.Goal) -> int:
        """Of a frame and its mask."""
        about = self._node.engine
        nbytes = about.height * about.width * 4
        return nbytes // 4 if goal.resolution == goal.HALF else nbytes

    def _compression(
        self, goal: ImagineCandidates.Goal, plans: Sequence[FramePlan]
    ) -> Compression:
        """Of the pictures of a result. Raise ValueError where they could not fit into a message."""
        parameters = self._node.parameters
        frames = len(plans) if goal.last_frame_only else sum(plan.wanted for plan in plans)
        nbytes = frames * self._frame_bytes(goal)
        chosen = convert.chosen_compression(
            parameters.compression.format, nbytes, raw_bytes=parameters.largest_raw
        )
        packed = nbytes / PACKED[chosen]
        if packed > parameters.limits.max_message_bytes:
            raise ValueError(
                f'{len(plans)} candidates of {frames} frames in all take about {packed / 2**20:.1f} MiB ({chosen}), '
                f'limits.max_message_bytes allows {parameters.limits.max_message_bytes / 2**20:.1f}: {FEWER}'
            )
        return chosen

    def _fit(self, goal: ImagineCandidates.Goal, plans: Sequence[FramePlan]) -> int:
        """Candidates whose frames may lie in memory at once: those of the largest result, or one."""
        longest = max(len(plan.times) for plan in plans) * self._frame_bytes(goal)
        return max(1, PACKED['jpeg'] * self._node.parameters.limits.max_message_bytes // longest)

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
        raise ValueError(f'{len(seeds)} seeds for {count} candidates: give none, one, or one each')
    return tuple(seeds) * count if len(seeds) == 1 else tuple(seeds) or (0,) * count
