"""The demo's robot: drives a simulated world, plans a path over ROS 2, and compares what comes back with what is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import json
import os
from pathlib import Path
from subprocess import Popen
import time

from jaxtyping import Float, UInt8
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState
from mirage.msg import ImaginedChunk, PlannedTrajectory
import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from mirage_model.clip import Clip
from mirage_model.evaluation.replay.video import mask_in_colour, mp4
from mirage_model.image_fit import fit_image
from mirage_model.interface import Chunk
from mirage_model.messages.poses import seconds
from mirage_ros import convert
from mirage_ros.tools import video
from mirage_ros.tools.service_call import ServiceCall

CAMERA_FRAME = 'robot_camera_optical'
WORLD_FRAME = 'map'
LEAD_SECONDS = 5.0
"""The plan starts this far in the future."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The drive that is imagined, on a map that the model was not trained on, and when to give up waiting."""

    map_name: str = 'E2M6'
    kind: str = 'forward'
    world_seed: int = 2
    frames: int = 64
    patience: float = 240.0


class Robot(Node):
    """Sends a camera's images again and again, one trajectory, and collects the chunks."""

    def __init__(self, clip: Clip):
        super().__init__('robot')
        self._clip = clip
        self.chunks: list[ImaginedChunk] = []
        self.images_sent = 0
        qos = QoSProfile(depth=10)
        self._outputs = {
            'image': self.create_publisher(Image, 'image', qos),
            'camera_info': self.create_publisher(CameraInfo, 'camera_info', qos),
            'depth': self.create_publisher(Image, 'depth', qos),
            'trajectory': self.create_publisher(PlannedTrajectory, 'trajectory', qos),
        }
        self._state = self.create_client(GetState, 'mirage/get_state')
        self._asked = ServiceCall(self._state, GetState.Request())
        self.create_subscription(ImaginedChunk, 'imagined/chunk', self.chunks.append, qos)
        self.create_timer(0.2, self._send_camera)

    def connected(self) -> bool:
        heard = all(output.get_subscription_count() for output in self._outputs.values())
        return heard and self.count_publishers('imagined/chunk') > 0 and self._active()

    def _active(self) -> bool:
        """Whether the node has said so, loaded and ready to be asked."""
        told = self._asked.answer()
        if told is None:
            return False
        self._asked = ServiceCall(self._state, GetState.Request())
        return told.current_state.id == State.PRIMARY_STATE_ACTIVE

    def _send_camera(self) -> None:
        clip = self._clip
        header = Header(stamp=self.get_clock().now().to_msg(), frame_id=CAMERA_FRAME)
        depth = clip.depth[0].numpy()
        height, width = depth.shape
        self._outputs['image'].publish(
            convert.image_message(clip.frames[0].numpy(), 'rgb8', header)
        )
        self._outputs['camera_info'].publish(
            convert.camera_info_message(clip.cameras.K[0].numpy(), height, width, header)
        )
        self._outputs['depth'].publish(convert.image_message(depth, '32FC1', header))
        self.images_sent += 1

    def send_trajectory(self, request_id: str) -> None:
        start = time.time() + LEAD_SECONDS
        cameras = self._clip.cameras
        message = PlannedTrajectory(
            header=Header(stamp=self.get_clock().now().to_msg(), frame_id=WORLD_FRAME),
            request_id=request_id,
            moving_frame=CAMERA_FRAME,
            poses=[convert.pose_from_matrix(pose) for pose in cameras.world_from_camera.numpy()],
            times=[convert.stamp(start + float(t)) for t in cameras.times - cameras.times[0]],
        )
        self._outputs['trajectory'].publish(message)


def drive(config: DemoConfig) -> Clip:
    """What the simulator really shows along the path; the first frame is the seed."""
    from mirage_model.worlds.doom import FRAME_RATE, DoomWorld

    rng = np.random.default_rng(config.world_seed)
    with DoomWorld(config.map_name, seed=config.world_seed) as world:
        path = world.plan(config.kind, config.frames + 1, rng)
        times = np.arange(config.frames + 1) / FRAME_RATE
        return world.record(path, times, name=config.map_name)


def imagine(clip: Clip, config: DemoConfig, node: Popen) -> list[ImaginedChunk]:
    """Ask the node over DDS.

    Raise TimeoutError when nothing comes for ``patience`` seconds, ChildProcessError when the node has ended.
    """
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    robot = Robot(clip)
    executor = SingleThreadedExecutor()
    executor.add_node(robot)

    def spin_until(done: Callable[[], bool], complaint: str) -> None:
        deadline = time.monotonic() + config.patience
        while not done():
            if node.poll() is not None:
                raise ChildProcessError(f'the node ended with {node.returncode}')
            if time.monotonic() > deadline:
                raise TimeoutError(f'{complaint} within {config.patience:.0f} s')
            executor.spin_once(timeout_sec=0.05)

    try:
        print('[robot] waiting for the node', flush=True)
        spin_until(robot.connected, 'the node did not appear')
        seen = robot.images_sent + 3
        spin_until(lambda: robot.images_sent >= seen, 'no image was sent')
        robot.send_trajectory('demo')
        print(
            f'[robot] asked for {config.frames} frames along a path on {config.map_name}',
            flush=True,
        )
        shown = 0
        while not shown or shown < robot.chunks[0].count:
            spin_until(lambda: len(robot.chunks) > shown, 'no chunk came')  # noqa: B023
            chunk = robot.chunks[shown]
            shown += 1
            print(
                f'[robot] chunk {shown} of {chunk.count}: {len(chunk.times)} frames in {chunk.seconds:.1f} s, '
                f'visible {np.mean(chunk.visible):.0%}, observed {np.mean(chunk.observed):.0%}',
                flush=True,
            )
        return robot.chunks
    finally:
        executor.shutdown()
        robot.destroy_node()
        rclpy.try_shutdown()


def psnr(
    a: UInt8[np.ndarray, 'n h w 3'], b: UInt8[np.ndarray, 'n h w 3']
) -> Float[np.ndarray, ' n']:
    """Decibels for every frame."""
    error = np.square(a.astype(np.float64) - b).mean(axis=(1, 2, 3))
    return 10 * np.log10(255.0**2 / np.maximum(error, 1e-9))


def fitted(
    frames: UInt8[np.ndarray, 'n h w 3'], height: int, width: int
) -> UInt8[np.ndarray, 'n {height} {width} 3']:
    """Cropped about the centre and scaled, as the engine does with the seed image."""
    if frames.shape[1:3] == (height, width):
        return frames
    return np.stack([fit_image(frame, height, width) for frame in frames])


def reconstructed(
    frames: UInt8[np.ndarray, 'n h w 3'], model_folder: Path | None
) -> UInt8[np.ndarray, 'm h w 3']:
    """The true frames through the model's codec and back: no imagination can be nearer than this."""
    import torch

    from mirage_model.model.checkpoint import EMBEDDED
    from mirage_model.model.codec import Codec

    codec = Codec.from_folder((model_folder or EMBEDDED) / 'vae')
    whole = (len(frames) - 1) // codec.temporal_stride * codec.temporal_stride + 1
    video = torch.from_numpy(frames[:whole]).movedim(-1, 1).float()[None] / 255
    decoded = codec.decode(codec.encode(video))[0].clamp(0, 1).movedim(1, -1)
    return (decoded * 255).round().byte().numpy()


def record(file: Path, clip: Clip, messages: list[ImaginedChunk]) -> None:
    """Write what was observed and imagined for Rerun."""
    from mirage_ros.tools.viewer import log_chunk, log_observed, open_recording

    recording = open_recording(file)
    start = seconds(messages[0].times[0]) - float(clip.cameras.times[1])
    header = Header(stamp=convert.stamp(start + float(clip.cameras.times[0])))
    log_observed(recording, convert.image_message(clip.frames[0].numpy(), 'rgb8', header))
    for message in messages:
        log_chunk(recording, message)
    recording.flush()


def run(
    out: Path,
    config: DemoConfig,
    *,
    model_folder: Path | None,
    node: Popen,
    recording: Path | None = None,
) -> dict:
    """Write the film, the contact sheet and summary.json; return the summary."""
    started = time.monotonic()
    print(f'[robot] driving {config.frames} frames on {config.map_name}', flush=True)
    clip = drive(config)
    messages = imagine(clip, config, node)
    imagined = time.monotonic() - started
    if recording is not None:
        record(recording, clip, messages)
    chunks = [convert.chunk_from_message(message) for message in messages]
    frames = np.concatenate([chunk.frames for chunk in chunks])
    truth = fitted(clip.frames.numpy(), *frames.shape[1:3])
    masks = np.concatenate([chunk.visibility for chunk in chunks])
    rows = {
        'simulator': truth[1:],
        'imagined': frames,
        'memory saw': _memory_frames(chunks),
        'mask': mask_in_colour(masks),
    }
    frame_rate = 1 / float(np.diff(clip.cameras.times).mean())
    video.write_png(
        out / 'contact_sheet.png', video.contact_sheet(rows, times=clip.cameras.times.numpy()[1:])
    )
    (out / 'film.mp4').write_bytes(mp4(video.film_frames(rows), frame_rate=frame_rate))

    codec = reconstructed(truth, model_folder)
    visible = np.concatenate([chunk.visible for chunk in chunks])
    observed = np.concatenate([chunk.observed for chunk in chunks])
    seconds = [chunk.seconds for chunk in chunks]
    summary = {
        'map': config.map_name,
        'path': config.kind,
        'weights': {'name': messages[0].model, 'sha256': messages[0].model_sha256},
        'depth_source': chunks[0].depth_source,
        'seed': chunks[0].seed,
        'chunks': len(chunks),
        'frames': len(frames),
        'coverage_mean': round(float(visible.mean()), 4),
        'observed_mean': round(float(observed.mean()), 4),
        'psnr_db': round(float(psnr(frames, truth[1:]).mean()), 2),
        'psnr_repeat_seed_db': round(
            float(psnr(np.broadcast_to(truth[:1], frames.shape), truth[1:]).mean()), 2
        ),
        'psnr_codec_db': round(float(psnr(codec[1:], truth[1 : len(codec)]).mean()), 2),
        'psnr_db_of_each_chunk': [
            round(float(psnr(chunk.frames, part).mean()), 2)
            for chunk, part in zip(
                chunks, np.split(truth[1:], np.cumsum([len(c.frames) for c in chunks])[:-1])
            )
        ],
        'seconds_per_chunk': round(float(np.mean(seconds)), 2),
        'frames_per_second': round(len(frames) / sum(seconds), 2),
        'seconds_with_start_of_the_node': round(imagined, 1),
        'processes': {'node': node.pid, 'client': os.getpid()},
    }
    (out / 'summary.json').write_text(json.dumps(summary, indent=2) + '\n')
    return summary


def _memory_frames(chunks: list[Chunk]) -> UInt8[np.ndarray, 'n h w 3']:
    parts = [chunk.memory_frames for chunk in chunks]
    assert all(part is not None for part in parts), 'the node was not told to send memory_frames'
    return np.concatenate(parts)
