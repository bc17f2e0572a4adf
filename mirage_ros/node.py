"""The lifecycle node, its parts and its executor."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path as FilePath
import signal
import threading
import time
from typing import Any, cast

from diagnostic_msgs.msg import DiagnosticArray
import rclpy
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import NameValidationException, ParameterException
from rclpy.executors import MultiThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNodeMixin, LifecycleState, TransitionCallbackReturn
from rclpy.logging import get_logger
from rclpy.signals import SignalHandlerOptions

from mirage_model.allocator import keep_freed_pages
from mirage_model.engine.worker import SHUTTING_DOWN, Worker
from mirage_model.extras import explain
from mirage_model.interface import EngineProtocol, ModelInfo
from mirage_model.io import sentence
from mirage_ros.action_server import Goals
from mirage_ros.candidates_server import CandidatesServer
from mirage_ros.context import NodeContext
from mirage_ros.declaration import check_paths
from mirage_ros.diagnostics import diagnostics
from mirage_ros.imagine_server import ImagineServer
from mirage_ros.memory_names import DRIVEN
from mirage_ros.memory_visualization import MemoryViews
from mirage_ros.observer import Observer
from mirage_ros.parameters import EngineParameters, NodeParameters
from mirage_ros.publishers import Publishers
from mirage_ros.services import Services

SEND_RESULTS = 0.2  # seconds; rclpy has no call that waits until results are sent
LINK_PATIENCE = 2.0
"""Time for which diagnostics wait for an engine on another machine [s]."""
EXECUTOR_THREADS = 10
"""Camera, requests, actions, transforms, timers, transitions, and services that wait for the
worker."""
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


def connect_engine(parameters: EngineParameters) -> EngineProtocol:
    """Return the engine of a server."""
    from mirage_model.serving.config import certificates_of
    from mirage_model.serving.images import Images
    from mirage_model.serving.remote import RemoteEngine

    files = (parameters.authority, parameters.certificate, parameters.key)
    return RemoteEngine(
        parameters.address,
        certificates=certificates_of(*(FilePath(file) if file else None for file in files)),
        sha256=parameters.sha256,
        images=cast(Images, parameters.images),
        timeout=parameters.timeout,
        lease=parameters.lease,
        keep_bytes=parameters.keep_bytes,
    )


def load_engine(parameters: NodeParameters) -> EngineProtocol:
    """Return the engine of a server, or one in this process with the model of a folder or
    mirage-tiny."""
    if parameters.engine.address:
        return connect_engine(parameters.engine)
    from mirage_model.engine.engine import Engine
    from mirage_model.memory.eviction import EvictionPolicy, MemoryLimits

    return Engine.from_options(
        parameters.model.options,
        device=parameters.model.device,
        limits=MemoryLimits(
            capacity=parameters.memory.capacity,
            policy=cast(EvictionPolicy, parameters.memory.policy),
            resident=parameters.memory.resident,
            folder=parameters.memory.pages,
        ),
    )


class MirageNode(LifecycleNodeMixin, NodeContext):
    """Configure loads the model and runs it once, activate serves, deactivate frees the device and
    keeps the memories."""

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
        # by the steady clock: simulated time may be what does not come
        self._patience = self.create_timer(
            self.parameters.startup_patience,
            self._name_silent_inputs,
            callback_group=MutuallyExclusiveCallbackGroup(),
            clock=Clock(clock_type=ClockType.STEADY_TIME),
            autostart=False,
        )
        # so that get_state answers during a transition
        LifecycleNodeMixin.__init__(self, callback_group=ReentrantCallbackGroup())
        change = self._service_change_state.callback
        self._service_change_state.callback = lambda *arguments: self._change_state(
            change, *arguments
        )

    def start(self) -> bool:
        """Configure and activate. Return False if either fails; the reason is logged."""
        return self.trigger_configure() == SUCCESS and self.trigger_activate() == SUCCESS

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model and run it once, so that the first request is as fast as the tenth."""
        model, began = self.parameters.model, time.monotonic()
        self.get_logger().info(
            f'loading {model.folder or "mirage-tiny"}; it then runs once on {model.device}, which '
            'may take half a minute'
        )
        try:
            check_paths(self.parameters, writes=not self.parameters.engine.address)
            self._loaded = self._load(self.parameters)
            loaded = time.monotonic()
            self.get_logger().info(f'loaded in {loaded - began:.1f} s, runs once')
            self._loaded.warm()
            self._check_labels(self._loaded.describe())
        except (ValueError, ImportError, OSError, RuntimeError) as error:
            # for a model, a device or a parameter that is not valid
            self._loaded = None
            self.get_logger().fatal(
                explain(error) if isinstance(error, ImportError) else sentence(error)
            )
            return FAILURE
        self.get_logger().info(f'ran once in {time.monotonic() - loaded:.1f} s')
        self._warm = True
        self._model_info = self._loaded.describe()
        return SUCCESS

    def _check_labels(self, about: ModelInfo) -> None:
        """Warn of dynamic objects that would enter the memory, or raise ValueError."""
        action = self.parameters.model.without_labels
        if about.segments_dynamic or action == 'accept':
            return
        text = (
            f'model: {about.model} does not segment dynamic objects, each passer-by enters the '
            'memory; set model.labeller, or model.without_labels to accept'
        )
        if action == 'reject':
            raise ValueError(text)
        self.get_logger().warning(text)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        assert self._loaded is not None and self._model_info is not None
        try:
            if not self._warm:
                self._loaded.warm()
        except (OSError, RuntimeError) as error:
            self.get_logger().error(sentence(error))
            return FAILURE
        self._warm = True
        self._worker = Worker(self._loaded, queue_size=self.parameters.limits.queue_size)
        self._patience.reset()
        about = self._model_info
        self.get_logger().info(
            f'{about.model} ({about.sha256[:12]}) is ready: {about.height}x{about.width} at '
            f'{about.frame_rate:g} Hz, '
            f'{about.new_frames_per_chunk} frames a chunk, on {self.parameters.engine_place}'
        )
        return SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """End all requests and release the device. The memories stay."""
        self._end_worker('the node was deactivated')
        if self._loaded is not None:
            self._warm = False
            self._loaded.release()
        self.get_logger().info('inactive: the device is released, the memories stay')
        return SUCCESS

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._end_worker()
        self._close_engine()
        self._model_info = None
        self._warm = False
        self.memories.clear()
        return SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self.on_cleanup(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Drop the model and the memories, so that the node can be configured again."""
        self.get_logger().error('a transition failed: back to unconfigured')
        return self.on_cleanup(state)

    def _change_state(self, change: Callable, request: Any, response: Any) -> Any:
        """Reject a transition that is not possible from this state; in Jazzy it would end the
        executor."""
        try:
            return change(request, response)
        except rclpy_implementation.RCLError as error:
            asked = request.transition.label or request.transition.id
            state = self._state_machine.current_state[1]
            self.get_logger().error(f"transition '{asked}' rejected in state '{state}': {error}")
            response.success = False
            return response

    def close(self) -> None:
        """End all requests, send their results, and end the worker.

        The executor must still spin.
        """
        self._end_worker()
        self._goals.wait_for_all(1.0)
        time.sleep(SEND_RESULTS)
        self._close_engine()

    def _close_engine(self) -> None:
        engine, self._loaded = self._loaded, None
        if engine is not None:
            engine.close()

    def _end_worker(self, reason: str = SHUTTING_DOWN) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close(reason)

    def destroy_node(self) -> None:
        for action in self._actions:
            action.destroy()
        super().destroy_node()
        # holds the DDS participant and has no destroy()
        del self._state_machine

    def _name_silent_inputs(self) -> None:
        """Log, once, the inputs on which nothing has come yet."""
        self._patience.cancel()
        with self.logging_errors('inputs'):
            for name in self.inputs.silent():
                self.get_logger().warning(
                    f'{name}: nothing came in {self.parameters.startup_patience:g} s; '
                    f'{self.inputs.describe(name)}'
                )

    def _report(self) -> None:
        if not self._diagnostics.get_subscription_count():
            return
        with self.logging_errors('diagnostics'):
            worker, about, engine = self._worker, self._model_info, self._loaded
            stats, nbytes = None, 0
            link = engine.link() if engine is not None else None
            if worker is not None and (link is None or link.connected):
                driven = self.memories.find(DRIVEN)
                size = worker.call(
                    lambda engine: (
                        engine.stats(memory=DRIVEN) if driven else None,
                        engine.device_nbytes(),
                    )
                )
                with suppress(OSError):  # a link that broke is reported without the sizes
                    stats, nbytes = size.result(None if link is None else LINK_PATIENCE)
                link = engine.link() if engine is not None else None
            message = diagnostics(
                self.metrics,
                self.parameters,
                name=self.get_fully_qualified_name(),
                state=self._state_machine.current_state[1],
                engine=about,
                waiting=worker.waiting if worker else 0,
                stats=stats,
                device_bytes=nbytes,
                silent=self.inputs.silent(self.parameters.startup_patience),
                link=link,
            )
            message.header.stamp = self.get_clock().now().to_msg()
            self._diagnostics.publish(message)


def main(load: Callable[[NodeParameters], EngineProtocol] = load_engine) -> int:
    """Run until SIGINT or SIGTERM, then end all requests.

    Return the exit status, 1 for a parameter or a model that cannot be used, and if the executor
    ended by itself.
    """
    keep_freed_pages()
    stop = threading.Event()
    stop_requested = loading = False

    def on_signal(*_: Any) -> None:
        nonlocal stop_requested
        stop_requested = True
        stop.set()
        if loading:
            raise SystemExit(0)  # loading is interrupted; everything else ends in order

    def load_interruptibly(parameters: NodeParameters) -> EngineProtocol:
        nonlocal loading
        try:
            loading = threading.current_thread() is threading.main_thread()
            if stop_requested:
                raise SystemExit(0)
            return load(parameters)
        finally:
            loading = False

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    try:
        try:
            node = MirageNode(load_interruptibly)
        except (ValueError, ParameterException, NameValidationException) as error:
            get_logger('mirage').fatal(sentence(error))
            return 1
        return _serve(node, stop, stopped=lambda: stop_requested)
    finally:
        rclpy.try_shutdown()


def _serve(node: MirageNode, stop: threading.Event, *, stopped: Callable[[], bool]) -> int:
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
        if not stopped():
            get_logger('mirage').fatal('the executor ended by itself')
        return 0 if stopped() else 1
    finally:
        node.close()
        executor.shutdown()
        spinning.join()
        node.destroy_node()
