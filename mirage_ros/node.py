"""The node: parameters, topics and the action. A callback converts and hands over; the worker calls back and it publishes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path as FilePath
import queue
import signal
import sys
import threading
import time
import traceback
from typing import Any

from mirage.action import Imagine as ImagineAction
from mirage.msg import ImaginedChunk, PlannedTrajectory
from nav_msgs.msg import Path
import rclpy
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.exceptions import ParameterException
from rclpy.executors import MultiThreadedExecutor
from rclpy.logging import get_logger
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from mirage_model.interface import Chunk, EngineProtocol, Imagine
from mirage_ros import convert
from mirage_ros.convert import Planned
from mirage_ros.plan import frames_along, moving_from_camera
from mirage_ros.seeds import SeedBuffer
from mirage_ros.settings import Settings, declare
from mirage_ros.worker import Job, Outcome, Worker

SENSOR_QOS = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
REQUEST_QOS = QoSProfile(depth=10)
FRAMES_QOS = QoSProfile(depth=100)  # a chunk's frames come at once
CANCEL_POLL = 0.02  # seconds
RESULTS_LEAVE = 0.2  # seconds; rclpy has no call that waits until results are sent


def load_engine(settings: Settings) -> EngineProtocol:
    """The model of a folder, or mirage-tiny, in this process."""
    from mirage_model.engine import Engine

    folder = FilePath(settings.model_folder) if settings.model_folder else None
    return Engine.from_folder(
        folder,
        device=settings.device,
        allow_unscaled_depth=settings.allow_unscaled_depth,
        refine_cameras=settings.refine_cameras,
    )


class MirageNode(Node):
    """Serves requests from the moment it is constructed until `close`."""

    def __init__(self, load: Callable[[Settings], EngineProtocol] = load_engine):
        super().__init__('mirage')
        self._settings = settings = declare(self)
        if settings.base_from_camera:
            convert.matrix_from_numbers(settings.base_from_camera, name='base_from_camera')
        engine = load(settings)
        self._engine = engine.describe()
        self._seeds = SeedBuffer(
            use_depth=settings.use_depth,
            tolerance=settings.stamp_tolerance,
            max_pixels=settings.max_pixels,
        )
        self._ids = count(1)
        self._goals = settings.queue_size + 1
        self._goals_left = threading.Semaphore(self._goals)

        self._image_out = self.create_publisher(Image, 'imagined/image', FRAMES_QOS)
        self._camera_info_out = self.create_publisher(
            CameraInfo, 'imagined/camera_info', FRAMES_QOS
        )
        self._visibility_out = self.create_publisher(Image, 'imagined/visibility', FRAMES_QOS)
        self._chunk_out = self.create_publisher(ImaginedChunk, 'imagined/chunk', REQUEST_QOS)

        self.create_subscription(Image, 'image', self._on_image, SENSOR_QOS)
        self.create_subscription(CameraInfo, 'camera_info', self._on_camera_info, SENSOR_QOS)
        if settings.use_depth:
            self.create_subscription(Image, 'depth', self._on_depth, SENSOR_QOS)
        self.create_subscription(PlannedTrajectory, 'trajectory', self._on_trajectory, REQUEST_QOS)
        self.create_subscription(Path, 'path', self._on_path, REQUEST_QOS)
        self._action = ActionServer(
            self,
            ImagineAction,
            'imagine',
            self._on_execute,
            goal_callback=self._on_goal,
            cancel_callback=lambda goal: CancelResponse.ACCEPT,
            callback_group=ReentrantCallbackGroup(),
        )
        # last: its thread would keep alive a process in which anything above fails
        self._worker = Worker(engine, queue_size=settings.queue_size)
        self.get_logger().info(
            f'{self._engine.model} ({self._engine.sha256[:12]}) is ready: {self._engine.height}x{self._engine.width} '
            f'at {self._engine.frame_rate:g} Hz, {self._engine.new_frames_per_chunk} frames a chunk, on {settings.device}'
        )

    @property
    def threads(self) -> int:
        """That an executor needs: one for every goal, one for topics, one to spare."""
        return self._goals + 2

    def close(self) -> None:
        """End every request with its answer, and the worker. The executor must still be spinning."""
        self._worker.close()
        for _ in range(self._goals):
            self._goals_left.acquire(timeout=1.0)
        time.sleep(RESULTS_LEAVE)

    # seeds

    def _on_image(self, message: Image) -> None:
        with self._refusing('image'):
            self._seeds.add_image(message)

    def _on_camera_info(self, message: CameraInfo) -> None:
        with self._refusing('camera_info'):
            self._seeds.add_camera_info(message)

    def _on_depth(self, message: Image) -> None:
        with self._refusing('depth'):
            self._seeds.add_depth(message)

    # requests

    def _on_trajectory(self, message: PlannedTrajectory) -> None:
        message.request_id = message.request_id or f'trajectory-{next(self._ids)}'
        with self._refusing(f"request '{message.request_id}'"):
            planned = convert.planned_from_trajectory(message, max_poses=self._settings.max_poses)
            self._worker.submit(self._topic_job(planned))

    def _on_path(self, message: Path) -> None:
        request_id = f'path-{next(self._ids)}'
        with self._refusing(f"request '{request_id}'"):
            planned = convert.planned_from_path(
                message,
                request_id=request_id,
                moving_frame=self._settings.base_frame,
                speed=self._settings.nominal_speed,
                turn_rate=self._settings.nominal_turn_rate,
                max_poses=self._settings.max_poses,
            )
            self._worker.submit(self._topic_job(planned))

    def _on_goal(self, goal: ImagineAction.Goal) -> GoalResponse:
        if self._goals_left.acquire(blocking=False):
            return GoalResponse.ACCEPT
        self.get_logger().error(
            f"goal '{goal.trajectory.request_id}' dropped: {self._goals} goals are being served"
        )
        return GoalResponse.REJECT

    def _on_execute(self, handle: ServerGoalHandle) -> ImagineAction.Result:
        """Wait for the worker; every goal runs this in a thread of its own."""
        trajectory = handle.request.trajectory
        trajectory.request_id = (
            trajectory.request_id or f'goal-{bytes(handle.goal_id.uuid).hex()[:12]}'
        )
        try:
            outcome = self._outcome(handle)
            self._log(outcome)
            if outcome.status == 'done':
                handle.succeed()
            elif outcome.status == 'cancelled' and handle.is_cancel_requested:
                handle.canceled()
            else:
                handle.abort()
        finally:
            self._goals_left.release()
        return ImagineAction.Result(
            request_id=outcome.request_id,
            complete=outcome.status == 'done',
            message=f'{outcome.status}: {outcome.reason}' if outcome.reason else '',
            chunks=outcome.chunks,
            frames=outcome.frames,
            visible_mean=outcome.visible_mean,
            observed_mean=outcome.observed_mean,
            model=self._engine.model,
            depth_source=outcome.depth_source,
            seconds=outcome.seconds,
        )

    def _outcome(self, handle: ServerGoalHandle) -> Outcome:
        outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        try:
            job = self._goal_job(handle, outcomes.put)
        except ValueError as error:
            request_id = handle.request.trajectory.request_id
            return Outcome(request_id=request_id, status='refused', reason=str(error))
        except Exception as error:
            self.get_logger().error(traceback.format_exc())
            request_id = handle.request.trajectory.request_id
            reason = f'{type(error).__name__}: {error}'
            return Outcome(request_id=request_id, status='failed', reason=reason)
        self._worker.submit(job)
        while True:
            try:
                return outcomes.get(timeout=CANCEL_POLL)
            except queue.Empty:
                if handle.is_cancel_requested:
                    self._worker.cancel(job)

    def _topic_job(self, planned: Planned) -> Job:
        settings = self._settings
        image, camera_info, depth = self._seeds.newest()
        if planned.camera_info is not None:
            convert.check_same_camera(planned.camera_info, camera_info)
        return self._job(
            planned,
            image,
            camera_info,
            depth,
            on_chunk=lambda chunk: self._publish(chunk, camera_info.header.frame_id),
            on_end=self._log,
            seed=settings.seed,
            steps=settings.steps,
            memory_frames=settings.memory_frames,
            replaceable=settings.newest_wins,
        )

    def _goal_job(self, handle: ServerGoalHandle, on_end: Callable[[Outcome], None]) -> Job:
        goal = handle.request
        planned = convert.planned_from_trajectory(
            goal.trajectory, max_poses=self._settings.max_poses
        )
        if goal.seed_depth and not goal.seed_image:
            raise ValueError('seed_depth without seed_image')
        if goal.seed_image:
            if planned.camera_info is None:
                raise ValueError('seed_image without trajectory.camera_info')
            image, camera_info = goal.seed_image[0], planned.camera_info
            depth = goal.seed_depth[0] if goal.seed_depth else None
        else:
            image, camera_info, depth = self._seeds.newest()
            if planned.camera_info is not None:
                convert.check_same_camera(planned.camera_info, camera_info)

        def on_chunk(chunk: Chunk) -> None:
            self._publish(chunk, camera_info.header.frame_id)
            header = self._header(chunk.times[-1], camera_info.header.frame_id)
            handle.publish_feedback(
                ImagineAction.Feedback(
                    chunk_index=chunk.index,
                    chunk_count=chunk.count,
                    visible=float(chunk.visible.mean()),
                    observed=float(chunk.observed.mean()),
                    last_frame=convert.image_message(chunk.frames[-1], 'rgb8', header),
                )
            )

        return self._job(
            planned,
            image,
            camera_info,
            depth,
            on_chunk=on_chunk,
            on_end=on_end,
            seed=goal.seed,
            steps=goal.steps,
            memory_frames=goal.memory_frames,
            replaceable=False,
        )

    def _job(
        self,
        planned: Planned,
        image: Image,
        camera_info: CameraInfo,
        depth: Image | None,
        *,
        seed: int,
        steps: int,
        memory_frames: bool,
        **how: Any,
    ) -> Job:
        """Raise ValueError for what cannot be served, before the engine is asked."""
        settings = self._settings
        from_camera = moving_from_camera(planned, camera_info.header.frame_id, settings)
        world_from_seed = planned.world_from_seed
        starts_at_seed = world_from_seed is None
        plan = frames_along(
            planned.world_from_moving @ from_camera,
            planned.times,
            starts_at_seed=starts_at_seed,
            engine=self._engine,
            max_frames=settings.max_frames,
        )
        view = convert.view_from_messages(
            image,
            camera_info,
            depth,
            world_from_camera=(planned.world_from_moving[0] if starts_at_seed else world_from_seed)
            @ from_camera,
            max_pixels=settings.max_pixels,
        )
        request = Imagine(
            request_id=planned.request_id,
            world_from_camera=plan.world_from_camera,
            times=plan.times,
            memory=f'request {planned.request_id}',
            seed=seed,
            steps=steps or None,
            memory_frames=memory_frames,
        )
        return Job(
            request=request,
            view=view,
            wanted=plan.wanted,
            **how,
        )

    # answers

    def _publish(self, chunk: Chunk, camera_frame: str) -> None:
        settings = self._settings
        self._chunk_out.publish(
            convert.message_from_chunk(
                chunk,
                world_frame=settings.world_frame,
                frame_id=settings.imagined_prefix + camera_frame,
                sha256=self._engine.sha256,
                compression=convert.chosen_compression(
                    settings.compression, chunk, raw_bytes=settings.raw_bytes
                ),
                quality=settings.jpeg_quality,
                max_bytes=settings.max_message_bytes,
            )
        )
        height, width = chunk.visibility.shape[1:]
        for frame, visibility, K, planned in zip(
            chunk.frames, chunk.visibility, convert.K_of_each(chunk), chunk.times
        ):
            header = self._header(planned, camera_frame)
            if self._image_out.get_subscription_count():
                self._image_out.publish(convert.image_message(frame, 'rgb8', header))
            if self._camera_info_out.get_subscription_count():
                self._camera_info_out.publish(
                    convert.camera_info_message(K, height, width, header)
                )
            if self._visibility_out.get_subscription_count():
                self._visibility_out.publish(convert.image_message(visibility, 'mono8', header))

    def _header(self, planned: float, camera_frame: str) -> Header:
        return Header(
            stamp=convert.stamp(planned), frame_id=self._settings.imagined_prefix + camera_frame
        )

    def _log(self, outcome: Outcome) -> None:
        if outcome.status == 'done':
            self.get_logger().info(
                f"request '{outcome.request_id}' done: {outcome.frames} frames in {outcome.chunks} chunks, "
                f'{outcome.seconds:.1f} s, visible {outcome.visible_mean:.0%}, observed {outcome.observed_mean:.0%}, '
                f'depth from {outcome.depth_source}'
            )
        else:
            self.get_logger().error(
                f"request '{outcome.request_id}' {outcome.status}: {outcome.reason}"
            )

    @contextmanager
    def _refusing(self, what: str) -> Iterator[None]:
        """Log why a message is refused, a ValueError, or what failed, anything else, and go on.

        What a callback raises would end the executor, and with it the node.
        """
        try:
            yield
        except ValueError as error:
            self.get_logger().error(f'{what} refused: {error}')
        except Exception:
            self.get_logger().error(f'{what} failed: {traceback.format_exc()}')


def main(load: Callable[[Settings], EngineProtocol] = load_engine) -> int:
    """Run until SIGINT or SIGTERM, then end every request with its answer. Returns the exit code.

    A thread of the executor that ends by itself ends the node too, with an error.
    """
    stop = threading.Event()
    serving = asked_to_end = False

    def on_signal(*_: Any) -> None:
        nonlocal asked_to_end
        asked_to_end = True
        stop.set()
        if not serving:
            raise SystemExit(0)  # loading is left at once

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    try:
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        node = MirageNode(load)
        executor = MultiThreadedExecutor(num_threads=node.threads)
        executor.add_node(node)

        def spin() -> None:
            try:
                executor.spin()
            finally:
                stop.set()

        spinning = threading.Thread(target=spin, name='executor')
        serving = True
        spinning.start()
        stop.wait()
        if not asked_to_end:
            get_logger('mirage').fatal('the executor ended by itself')
        node.close()
        executor.shutdown()
        spinning.join()
        node.destroy_node()
        return 0 if asked_to_end else 1
    except (ValueError, ParameterException, ImportError, OSError, RuntimeError) as error:
        # a model, a device or a parameter that cannot be served
        get_logger('mirage').fatal(' '.join(str(error).split()))
        return 1
    finally:
        rclpy.try_shutdown()


if __name__ == '__main__':
    sys.exit(main())
