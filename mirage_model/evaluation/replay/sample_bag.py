"""Write a bag to try things with: ``mirage report sample-bag``.

A trajectory through a map of Freedoom, as MCAP with images, camera_info, depth, odometry of the
robot's base and transforms, at 8 Hz.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from mirage_model.clip import Clip
from mirage_model.evaluation.config import SampleBagConfig
from mirage_model.evaluation.replay.bag_writer import BagWriter

START = 1_700_000_000
"""Stamp of the first frame, in seconds."""
BASE_FROM_CAMERA = (0.1, 0.0, 0.9, -0.5, 0.5, -0.5, 0.5)
"""x y z in metres and quaternion x y z w: the camera looks forward from above the base."""


def record_trajectory(map_name: str, kind: str, seconds: float, seed: int) -> Clip:
    """Record a trajectory; the same arguments give the same clip."""
    from mirage_model.worlds.doom import FRAME_RATE, DoomWorld

    frames = round(seconds * FRAME_RATE) + 1
    with DoomWorld(map_name, seed=seed) as world, tqdm(total=frames, unit='frame') as bar:
        path = world.plan(kind, frames, np.random.default_rng(seed))
        times = START + np.arange(frames) / FRAME_RATE
        return world.record(path, times, name=map_name, progress=lambda done: bar.update())


def write_sample(path: Path, clip: Clip) -> None:
    """Write a clip as a robot would have recorded it; an existing bag is replaced."""
    base_from_camera = np.eye(4)
    base_from_camera[:3, :3] = Rotation.from_quat(BASE_FROM_CAMERA[3:]).as_matrix()
    base_from_camera[:3, 3] = BASE_FROM_CAMERA[:3]
    height, width = clip.depth.shape[1:]
    with BagWriter(path) as bag:
        zero = bag.make('geometry_msgs/Vector3', 0.0, 0.0, 0.0)
        still = bag.make('geometry_msgs/Twist', zero, zero)
        for i, time in enumerate(clip.cameras.times.tolist()):
            at = round(time * 1e6) * 1000
            camera, fixed = bag.header(at, 'camera_optical'), bag.header(at, 'map')
            world_from_camera = clip.cameras.world_from_camera[i].double().numpy()
            world_from_base = world_from_camera @ np.linalg.inv(base_from_camera)
            K = clip.cameras.K[i].double().numpy()
            odometry = bag.make(
                'nav_msgs/Odometry',
                header=fixed,
                child_frame_id='base_link',
                pose=bag.make(
                    'geometry_msgs/PoseWithCovariance', bag.pose(world_from_base), np.zeros(36)
                ),
                twist=bag.make('geometry_msgs/TwistWithCovariance', still, np.zeros(36)),
            )
            for topic, message in (
                ('/camera/image', bag.image(camera, clip.frames[i].numpy())),
                ('/camera/depth', bag.image(camera, clip.depth[i].numpy())),
                ('/camera/camera_info', bag.camera_info(camera, K, height, width)),
                ('/odometry', odometry),
                ('/tf', bag.transforms(fixed, 'base_link', world_from_base)),
            ):
                bag.send(topic, at, message)
            if i == 0:
                base = bag.header(at, 'base_link')
                sits = bag.transforms(base, 'camera_optical', base_from_camera)
                bag.send('/tf_static', at, sits)


def main(config: SampleBagConfig) -> int:
    """Record a trajectory and write it as a bag; return the exit status."""
    clip = record_trajectory(config.map_name, config.kind, config.seconds, config.seed)
    write_sample(config.out, clip)
    span = float(clip.cameras.times[-1] - clip.cameras.times[0])
    print(f'{config.out}: {len(clip.frames)} frames over {span:.0f} s of {config.map_name}')
    return 0
