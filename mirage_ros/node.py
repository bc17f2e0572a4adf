"""The node: its states, and what its parts share. Requests, observing, services and views are parts beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path as FilePath
import signal
import sys
import threading
import time
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
import rclpy
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.exceptions import ParameterException
from rclpy.executors import MultiThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNodeMixin, LifecycleState, TransitionCallbackReturn
from rclpy.logging import get_logger
from rclpy.signals import SignalHandlerOptions

from mirage_model.engine.worker import SHUTTING_DOWN, Worker
from mirage_model.interface import EngineProtocol
from mirage_ros.action_server import Goals
from mirage_ros.candidates_server import CandidatesServer
from mirage_ros.context import NodeContext
from mirage_ros.diagnostics import diagnostics
from mirage_ros.imagine_server import ImagineServer
from mirage_ros.memory_registry import DRIVEN
from mirage_ros.memory_views import MemoryViews
from mirage_ros.observer import Observer
from mirage_ros.parameters import NodeParameters
from mirage_ros.publishers import Publishers
from mirage_ros.services import Services

RESULTS_LEAVE = 0.2  # seconds; rclpy has no call that waits until results are sent
EXECUTOR_THREADS = 10
"""Camera, requests, actions, transforms, timers, transitions, and services that wait for the worker."""
USAGE = """usage: mirage_node [--ros-args --params-file FILE -p NAME:=VALUE -r TOPIC:=TOPIC ...]

config/mirage.yaml lists the parameters; the topics are image, camera_info, depth and the others of
docs/reference/ros.md."""
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


def load_engine(parameters: NodeParameters) -> EngineProtocol:
    """The model of a folder, or mirage-tiny, in this process."""
    from mirage_model.engine.engine import Engine
    from mirage_model.memory.eviction import MemoryLimits

    folder = FilePath(parameters.model.folder) if parameters.model.folder else None
    return Engine.from_folder(
        folder,
        device=parameters.model.device,
        limits=MemoryLimits(
            capacity=parameters.memory.capacity,
            policy=parameters.memory.policy,
            resident=parameters.memory.resident,
            folder=parameters.memory.pages,
        ),
        allow_unscaled_depth=parameters.model.allow_unscaled_depth,
        refine_cameras=parameters.model.refine_cameras,
    )


class MirageNode(LifecycleNodeMixin, NodeContext):
    """Configure loads the model and runs it once, activate serves, deactivate frees the device and keeps the memories."""

    def __init__(self, load: Callable[[NodeParameters], EngineProtocol] = load_engine):
        NodeContext.__init__(self)
        self._load = load
        self._loaded: EngineProtocol | None = None
        self._warm = False
        publishers = Publishers(self)
        self._goals = Goals(self, publishers)
        requests = ImagineServer(self, publishers, self._goals)
        candidates = CandidatesServer(self, publishers, self._goals)
        self._actions = (requests.action, candidates.action)
        self._parts = (Observer(self), requests, candidates, Services(self), MemoryViews(self))
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self.create_timer(
            self.parameters.diagnostics.period,
            self._report,
            callback_group=MutuallyExclusiveCallbackGroup(),
        )
        # states are told while a transition takes its time
        LifecycleNodeMixin.__init__(self, callback_group=ReentrantCallbackGroup())
        change = self._service_change_state.callback
        self._service_change_state.callback = lambda *of: self._changed(change, *of)

    # states

    def start(self) -> bool:
        """Configure and activate; False where either fails, which is logged."""
        return self.trigger_configure() == SUCCESS and self.trigger_activate() == SUCCESS

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model and run it once, so that the first request is as fast as the tenth."""
        try:
            self._loaded = self._load(self.parameters)
            self._loaded.warm()
        except (ValueError, ImportError, OSError, RuntimeError) as error:
            # a model, a device or a parameter that cannot be served
            self._loaded = None
            self.get_logger().fatal(' '.join(str(error).split()))
            return FAILURE
        self._warm = True
        self._about = self._loaded.describe()
        return SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        assert self._loaded is not None and self._about is not None
        try:
            if not self._warm:
                self._loaded.warm()
        except (OSError, RuntimeError) as error:
            self.get_logger().error(' '.join(str(error).split()))
            return FAILURE
        self._warm = True
        self._worker = Worker(self._loaded, queue_size=self.parameters.limits.queue_size)
        about = self._about
        self.get_logger().info(
            f'{about.model} ({about.sha256[:12]}) is ready: {about.height}x{about.width} at {about.frame_rate:g} Hz, '
            f'{about.new_frames_per_chunk} frames a chunk, on {self.parameters.model.device}'
        )
        return SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Answer what is waiting, then give the device's memory back. The memories stay."""
        self._end_worker('the node was deactivated')
        if self._loaded is not None:
            self._warm = False
            self._loaded.release()
        self.get_logger().info('inactive: the device is free, the memories stay')
        return SUCCESS

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._end_worker()
        self._loaded = self._about = None
        self._warm = False
        self.memories.clear()
        return SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self.on_cleanup(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Forget everything: the node can be configured again."""
        self.get_logger().error('a transition failed: back to unconfigured')
        return self.on_cleanup(state)

    def _changed(self, change: Callable, request: Any, response: Any) -> Any:
        """A transition that is not possible from this state ends the executor in Jazzy; here it is refused."""
        try:
            return change(request, response)
        except rclpy_implementation.RCLError as error:
            asked = request.transition.label or request.transition.id
            state = self._state_machine.current_state[1]
            self.get_logger().error(f"transition '{asked}' refused in state '{state}': {error}")
            response.success = False
            return response

    def close(self) -> None:
        """End every request with its answer, and the worker. The executor must still be spinning."""
        self._end_worker()
        self._goals.wait_for_all(1.0)
        time.sleep(RESULTS_LEAVE)

    def _end_worker(self, reason: str = SHUTTING_DOWN) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close(reason)

    def destroy_node(self) -> None:
        for action in self._actions:
            action.destroy()
        super().destroy_node()
        # it holds the participant, and can only be let go
        del self._state_machine

    # diagnostics

    def _report(self) -> None:
        if not self._diagnostics.get_subscription_count():
            return
        with self.refusing('diagnostics'):
            worker, about, holdings, nbytes = self._worker, self._about, None, 0
            if worker is not None:
                driven = self.memories.find(DRIVEN)
                holdings, nbytes = worker.call(
                    lambda engine: (
                        engine.stats(memory=DRIVEN) if driven else None,
                        engine.device_nbytes(),
                    )
                ).result()
            message = diagnostics(
                self.figures,
                self.parameters,
                name=self.get_fully_qualified_name(),
                state=self._state_machine.current_state[1],
                engine=about,
                waiting=worker.waiting if worker else 0,
                holdings=holdings,
                device_bytes=nbytes,
            )
            message.header.stamp = self.get_clock().now().to_msg()
            self._diagnostics.publish(message)


def main(load: Callable[[NodeParameters], EngineProtocol] = load_engine) -> int:
    """Run until SIGINT or SIGTERM, then end every request with its answer. Returns the exit code.

    A thread of the executor that ends by itself ends the node too, with an error.
    """
    if {'-h', '--help'} & set(sys.argv[1:]):
        print(USAGE)
        return 0
    stop = threading.Event()
    asked_to_end = loading = False

    def on_signal(*_: Any) -> None:
        nonlocal asked_to_end
        asked_to_end = True
        stop.set()
        if loading:
            raise SystemExit(0)  # loading is left at once; anything else is ended in order

    def load_until_told_to_end(parameters: NodeParameters) -> EngineProtocol:
        nonlocal loading
        here = threading.current_thread() is threading.main_thread()
        try:
            loading = here
            if asked_to_end:
                raise SystemExit(0)
            return load(parameters)
        finally:
            loading = False

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    try:
        try:
            node = MirageNode(load_until_told_to_end)
        except (ValueError, ParameterException) as error:
            get_logger('mirage').fatal(' '.join(str(error).split()))
            return 1
        return _serve(node, stop, asked=lambda: asked_to_end)
    finally:
        rclpy.try_shutdown()


def _serve(node: MirageNode, stop: threading.Event, *, asked: Callable[[], bool]) -> int:
    executor = MultiThreadedExecutor(num_threads=EXECUTOR_THREADS)
    executor.add_node(node)

    def spin() -> None:
        try:
            executor.spin()
        finally:
            stop.set()

    spinning = threading.Thread(target=spin, name='executor')
    spinning.start()
    try:
        if not node.parameters.autostart:
            node.get_logger().info('waits to be configured')
        elif not node.start():
            return 1
        stop.wait()
        if not asked():
            get_logger('mirage').fatal('the executor ended by itself')
        return 0 if asked() else 1
    finally:
        node.close()
        executor.shutdown()
        spinning.join()
        node.destroy_node()


if __name__ == '__main__':
    sys.exit(main())
