"""Make messages as a robot records them, and bags of them, by `rosbags`."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

STORE = get_typestore(Stores.ROS2_JAZZY)
HEIGHT, WIDTH = 12, 16


def header(time: float, frame: str = 'camera'):
    stamp = STORE.types['builtin_interfaces/msg/Time'](
        sec=int(time), nanosec=round(time % 1 * 1e9)
    )
    return STORE.types['std_msgs/msg/Header'](stamp=stamp, frame_id=frame)


def image(
    time: float,
    pixels: np.ndarray,
    encoding: str,
    *,
    padding: int = 0,
    big: bool = False,
    height: int | None = None,
    frame: str = 'camera',
):
    """Make an image; each row ends with ``padding`` bytes of 255."""
    rows = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder('>' if big else '<')))
    rows = rows.view(np.uint8).reshape(len(pixels), -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=255)
    return STORE.types['sensor_msgs/msg/Image'](
        header=header(time, frame),
        height=height or pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        is_bigendian=int(big),
        step=rows.shape[1],
        data=rows.reshape(-1),
    )


def compressed(time: float, pixels: np.ndarray, *, ending: str = '.png', form: str = 'png'):
    """Make a compressed colour image."""
    data = cv2.imencode(ending, pixels[..., ::-1])[1].reshape(-1)
    return STORE.types['sensor_msgs/msg/CompressedImage'](
        header=header(time), format=form, data=data
    )


def compressed_depth(time: float, stored: np.ndarray, form: str, a: float = 0.0, b: float = 0.0):
    """Make depth as the compressedDepth transport sends it: for 32FC1 the PNG holds a / depth +
    b."""
    png = cv2.imencode('.png', stored)[1].reshape(-1)
    parts = np.zeros(4, np.uint8), np.array([a, b], '<f4').view(np.uint8), png
    return STORE.types['sensor_msgs/msg/CompressedImage'](
        header=header(time), format=form, data=np.concatenate(parts)
    )


def camera_info(
    time: float,
    *,
    f: float = 20.0,
    p: float = 1.0,
    d: float = 0.0,
    frame: str = 'camera',
):
    K = np.array([f, 0, 7.5, 0, f, 5.5, 0, 0, 1.0])
    P = p * np.array([f, 0, 7.5, 0, 0, f, 5.5, 0, 0, 0, 1 / p if p else 0, 0])
    region = STORE.types['sensor_msgs/msg/RegionOfInterest'](
        x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
    )
    return STORE.types['sensor_msgs/msg/CameraInfo'](
        header=header(time, frame),
        height=HEIGHT,
        width=WIDTH,
        distortion_model='plumb_bob',
        d=np.array([d, 0, 0, 0, 0.0]),
        k=K,
        r=np.eye(3).reshape(-1),
        p=P,
        binning_x=0,
        binning_y=0,
        roi=region,
    )


def pose_message(time: float, x: float, *, frame: str = 'map', w: float = 1.0):
    geometry = STORE.types
    return geometry['geometry_msgs/msg/PoseStamped'](
        header=header(time, frame),
        pose=geometry['geometry_msgs/msg/Pose'](
            position=geometry['geometry_msgs/msg/Point'](x=x, y=2.0, z=0.0),
            orientation=geometry['geometry_msgs/msg/Quaternion'](x=0.0, y=0.0, z=0.0, w=w),
        ),
    )


def pose_with_covariance(time: float, x: float):
    """Make a geometry_msgs/PoseWithCovarianceStamped, as a localiser sends it."""
    types = STORE.types
    pose = types['geometry_msgs/msg/PoseWithCovariance'](
        pose=pose_message(time, x).pose, covariance=np.zeros(36)
    )
    return types['geometry_msgs/msg/PoseWithCovarianceStamped'](
        header=header(time, 'map'), pose=pose
    )


def odometry(time: float, x: float, child: str = '', *, frame: str = 'map', w: float = 1.0):
    types = STORE.types
    pose = types['geometry_msgs/msg/PoseWithCovariance'](
        pose=pose_message(time, x, w=w).pose, covariance=np.zeros(36)
    )
    zero = types['geometry_msgs/msg/Vector3'](x=0.0, y=0.0, z=0.0)
    twist = types['geometry_msgs/msg/TwistWithCovariance'](
        twist=types['geometry_msgs/msg/Twist'](linear=zero, angular=zero), covariance=np.zeros(36)
    )
    return types['nav_msgs/msg/Odometry'](
        header=header(time, frame), child_frame_id=child, pose=pose, twist=twist
    )


def transforms(time: float, *links: tuple[str, str, float]):
    """Make a TFMessage of links: parent, child, and x of the child in metres."""
    types = STORE.types
    return types['tf2_msgs/msg/TFMessage'](
        [
            types['geometry_msgs/msg/TransformStamped'](
                header=header(time, parent),
                child_frame_id=child,
                transform=types['geometry_msgs/msg/Transform'](
                    translation=types['geometry_msgs/msg/Vector3'](x=x, y=0.0, z=0.0),
                    rotation=types['geometry_msgs/msg/Quaternion'](x=0.0, y=0.0, z=0.0, w=1.0),
                ),
            )
            for parent, child, x in links
        ]
    )


def write(
    path: Path,
    topics: dict[str, list],
    plugin: StoragePlugin = StoragePlugin.MCAP,
    *,
    more: dict[str, list] | None = None,
    in_order: bool = False,
    spoil: dict[str, int] | None = None,
    delay: float = 0.003,
) -> Path:
    """``more`` are messages without a header, with their times; ``in_order`` logs all as they are
    listed.

    Messages with a header are written ``delay`` seconds after they were stamped. Of topics in
    ``spoil`` the message of that number is cut short.
    """
    clock = 0
    with Writer(path, version=9, storage_plugin=plugin) as writer:
        for topic, sent in topics.items():
            kind = sent[0].__msgtype__
            connection = writer.add_connection(topic, kind, typestore=STORE)
            for number, message in enumerate(sent):
                stamp = message.header.stamp
                logged = stamp.sec * 10**9 + stamp.nanosec + round(delay * 1e9)
                if in_order:
                    clock += 1
                    logged = clock
                data = bytes(STORE.serialize_cdr(message, kind))
                cut = (spoil or {}).get(topic) == number
                writer.write(connection, logged, data[:20] if cut else data)
        for topic, sent in (more or {}).items():
            kind = sent[0][1].__msgtype__
            connection = writer.add_connection(topic, kind, typestore=STORE)
            for time, message in sent:
                writer.write(connection, round(time * 1e9), STORE.serialize_cdr(message, kind))
    return path
