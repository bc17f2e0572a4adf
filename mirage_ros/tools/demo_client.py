"""The demo's robot: it drives a simulated world, plans a path over ROS 2, and compares the
imagined with the true frames."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
import json
import multiprocessing
import os
from pathlib import Path
import signal
from subprocess import Popen
import time

from jaxtyping import UInt8
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState
from mirage.msg import ImaginedChunk, PlannedTrajectory
import numpy as np
import rclpy
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import Header

from mirage_model.clip import Clip
from mirage_model.evaluation.baselines import warp_observation
from mirage_model.evaluation.replay.video import mask_in_colour, mp4
from mirage_model.image_fit import fit_image
from mirage_model.interface import Chunk, Observation
from mirage_model.messages.poses import seconds as seconds_of
from mirage_model.metrics import psnr
from mirage_ros import convert
from mirage_ros.tools import video
from mirage_ros.tools.config import DemoConfig
from mirage_ros.tools.fake_robot import CAMERA, FakeRobot, planned_trajectory

LEAD_SECONDS = 5.0
"""Time from now to the start of the plan [s]."""
IMAGE_PERIOD = 0.2
"""Time between images [s]."""


def record_world(config: DemoConfig) -> Clip:
    """Record what the simulator shows along the path; the first frame is the seed."""
    from mirage_model.data.record import record_trajectory

    map_name, kind = config.path
    # in a process of its own: OpenGL's drivers and torch's compiler crash in one process
    with ProcessPoolExecutor(
        1,
        mp_context=multiprocessing.get_context('spawn'),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    ) as pool:
        recorded = pool.submit(
            record_trajectory,
            map_name,
            kind,
            frames=config.frames + 1,
            seed=config.world_seed,
            name=map_name,
        )
        return recorded.result()


def observation(clip: Clip, index: int, *, at: float) -> Observation:
    """Return a frame of a clip as the robot sends it at a time [s]."""
    return Observation(
        image=clip.frames[index].numpy(),
        K=clip.cameras.K[index].double().numpy(),
        world_from_camera=clip.cameras.world_from_camera[index].double().numpy(),
        time=at,
        depth=clip.depth[index].numpy(),
    )


def imagine(clip: Clip, config: DemoConfig, node: Popen) -> list[ImaginedChunk]:
    """Send the seed and the plan to the node; return its chunks.

    Raises TimeoutError when nothing comes for ``patience`` seconds, ChildProcessError when the
    node has ended.
    """
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    try:
        with FakeRobot(
            'robot',
            topics={**CAMERA, 'trajectory': PlannedTrajectory},
            patience=config.patience,
            alive=lambda: node.poll() is None,
        ) as robot:
            return _imagine(robot, clip, config)
    finally:
        rclpy.try_shutdown()


def _imagine(robot: FakeRobot, clip: Clip, config: DemoConfig) -> list[ImaginedChunk]:
    sent = 0

    def send_image() -> None:
        nonlocal sent
        robot.send_view(observation(clip, 0, at=time.time()))
        sent += 1

    robot.node.create_timer(IMAGE_PERIOD, send_image)
    print('[robot] waiting for the node', flush=True)
    robot.connect()
    robot.until(
        lambda: (
            robot.call(GetState, 'mirage/get_state').current_state.id == State.PRIMARY_STATE_ACTIVE
        ),
        complaint='the node did not become active',
    )
    enough = sent + 3
    robot.until(lambda: sent >= enough, complaint='no image was sent')
    cameras = clip.cameras
    times = time.time() + LEAD_SECONDS + (cameras.times - cameras.times[0]).numpy()
    plan = planned_trajectory(cameras.world_from_camera.numpy(), times, request_id='demo')
    robot.send('trajectory', plan)
    print(f'[robot] asked for {config.frames} frames along a path on {clip.scene}', flush=True)
    count = 0
    while not count or count < robot.chunks[0].count:
        robot.until(lambda: len(robot.chunks) > count, complaint='no chunk came')  # noqa: B023
        chunk = robot.chunks[count]
        count += 1
        print(
            f'[robot] chunk {count} of {chunk.count}: {len(chunk.times)} frames in '
            f'{chunk.seconds:.1f} s, visible {np.mean(chunk.visible):.0%}, '
            f'observed {np.mean(chunk.observed):.0%}',
            flush=True,
        )
    return robot.chunks


def mean_psnr(frames: UInt8[np.ndarray, 'n h w 3'], truth: UInt8[np.ndarray, 'n h w 3']) -> float:
    """Return the mean over frames of their PSNR [dB]."""
    return float(np.mean([psnr(a / 255.0, b / 255.0) for a, b in zip(frames, truth)]))


def fitted(
    frames: UInt8[np.ndarray, 'n h w 3'], height: int, width: int
) -> UInt8[np.ndarray, 'n {height} {width} 3']:
    """Crop about the centre and scale, as the engine does with the seed image."""
    if frames.shape[1:3] == (height, width):
        return frames
    return np.stack([fit_image(frame, height, width) for frame in frames])


def reconstructed(
    frames: UInt8[np.ndarray, 'n h w 3'], model_folder: Path | None
) -> UInt8[np.ndarray, 'm h w 3']:
    """Encode and decode the true frames: the best that a model with this codec can reach."""
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
    start = seconds_of(messages[0].times[0]) - float(clip.cameras.times[1])
    header = Header(stamp=convert.stamp(start + float(clip.cameras.times[0])))
    log_observed(recording, convert.image_message(clip.frames[0].numpy(), 'rgb8', header))
    for message in messages:
        log_chunk(recording, message)
    recording.flush()


def run_demo(
    out: Path,
    config: DemoConfig,
    *,
    model_folder: Path | None,
    node: Popen,
    recording: Path | None = None,
) -> dict:
    """Write the video, the contact sheet and summary.json; return the summary."""
    started = time.monotonic()
    map_name, kind = config.path
    print(f'[robot] recording {config.frames} frames on {map_name}', flush=True)
    clip = record_world(config)
    messages = imagine(clip, config, node)
    imagined = time.monotonic() - started
    if recording is not None:
        record(recording, clip, messages)
    chunks = [convert.chunk_from_message(message) for message in messages]
    frames = np.concatenate([chunk.frames for chunk in chunks])
    truth = fitted(clip.frames.numpy(), *frames.shape[1:3])
    masks = np.concatenate([chunk.visibility for chunk in chunks])
    times = clip.cameras.times.numpy()
    seen = [observation(clip, index, at=float(time)) for index, time in enumerate(times)]
    warp = warp_observation(seen, *frames.shape[1:3])
    assert warp is not None
    rows = {
        'truth': truth[1:],
        video.GENERATED: frames,
        'what the memory showed': _memory_frames(chunks),
        'warp and inpaint': warp,
        'mask': mask_in_colour(masks),
    }
    ahead = times[1:] - times[0]
    video.write_png(out / 'contact_sheet.png', video.contact_sheet(rows, ahead=ahead))
    shown = video.video_frames(rows, ahead=ahead)
    (out / 'video.mp4').write_bytes(mp4(shown, frame_rate=1 / float(np.diff(times).mean())))

    codec = reconstructed(truth, model_folder)
    visible = np.concatenate([chunk.visible for chunk in chunks])
    observed = np.concatenate([chunk.observed for chunk in chunks])
    seconds = [chunk.seconds for chunk in chunks]
    summary = {
        'map': map_name,
        'path': kind,
        'weights': {'name': messages[0].model, 'sha256': messages[0].model_sha256},
        'depth_source': chunks[0].depth_source,
        'seed': chunks[0].seed,
        'chunks': len(chunks),
        'frames': len(frames),
        'coverage_mean': round(float(visible.mean()), 4),
        'observed_mean': round(float(observed.mean()), 4),
        'psnr_db': round(mean_psnr(frames, truth[1:]), 2),
        'psnr_warp_db': round(mean_psnr(warp, truth[1:]), 2),
        'psnr_repeat_seed_db': round(
            mean_psnr(np.broadcast_to(truth[:1], frames.shape), truth[1:]), 2
        ),
        'psnr_codec_db': round(mean_psnr(codec[1:], truth[1 : len(codec)]), 2),
        'psnr_db_of_each_chunk': [
            round(mean_psnr(chunk.frames, part), 2)
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
    parts = [chunk.memory_frames for chunk in chunks if chunk.memory_frames is not None]
    assert len(parts) == len(chunks), 'the node sends no memory_frames'
    return np.concatenate(parts)
