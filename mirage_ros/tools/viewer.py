"""Stream memory, path, imagined and observed frames to Rerun: ``mirage_viewer``.

``viewer:=rerun`` of the launch file starts it too. Needs the extra ``viewer``.
``mirage_viewer --ros-args -p recording:=FILE`` writes a file instead of opening the viewer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path as FilePath
import sys
from typing import Any

from mirage.msg import ImaginedChunk
import numpy as np
import rclpy
from rclpy.exceptions import NameValidationException, ParameterException
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, PointCloud2

from mirage_model.extras import explain
from mirage_model.io import check_output, sentence
from mirage_model.messages.images import rgb_from_image
from mirage_model.messages.poses import seconds
from mirage_ros import convert
from mirage_ros.command_line import check_call

APPLICATION = 'mirage'


def open_recording(file: FilePath | None) -> Any:
    """Return a stream to a file, or to a viewer that is opened."""
    import rerun

    recording = rerun.RecordingStream(APPLICATION)
    if file is None:
        recording.spawn()
    else:
        recording.save(file)
    return recording


def log_chunk(recording: Any, message: ImaginedChunk) -> None:
    """Log imagined frames and masks at their planned times, and their cameras."""
    import rerun

    chunk = convert.chunk_from_message(message)
    height, width = chunk.frames.shape[1:3]
    for frame, mask, K, time, world_from_camera in zip(
        chunk.frames,
        chunk.visibility,
        convert.K_of_each(chunk),
        chunk.times,
        chunk.world_from_camera,
    ):
        recording.set_time('time', timestamp=float(time))
        recording.log(
            'world/imagined_camera',
            rerun.Transform3D(
                translation=world_from_camera[:3, 3], mat3x3=world_from_camera[:3, :3]
            ),
            rerun.Pinhole(image_from_camera=K, width=width, height=height),
        )
        recording.log('world/imagined_camera/frame', rerun.Image(frame))
        recording.log('visibility', rerun.Image(mask))
    recording.log(
        'world/path', rerun.LineStrips3D([chunk.world_from_camera[:, :3, 3]], radii=0.01)
    )


def log_observed(recording: Any, message: Image) -> None:
    import rerun

    recording.set_time('time', timestamp=seconds(message.header.stamp))
    recording.log('observed', rerun.Image(rgb_from_image(message)))


def log_points(recording: Any, message: PointCloud2) -> None:
    import rerun

    recording.set_time('time', timestamp=seconds(message.header.stamp))
    rows = np.frombuffer(message.data, np.uint8).reshape(message.width, message.point_step)
    positions = rows[:, :12].copy().view('<f4')
    colours = rows[:, 12:15][:, ::-1]  # the word is 0xRRGGBB, little-endian
    recording.log('world/memory', rerun.Points3D(positions, colors=colours, radii=0.02))


class Viewer(Node):
    def __init__(self) -> None:
        super().__init__('mirage_viewer')
        file = self.declare_parameter('recording', '').value
        if file:
            check_output(FilePath(file), 'recording')
        self._recording = open_recording(FilePath(file) if file else None)
        sensor = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
        for kind, name, qos, log in (
            (ImaginedChunk, 'imagined/chunk', QoSProfile(depth=10), log_chunk),
            (Image, 'image', sensor, log_observed),
            (PointCloud2, 'memory/points', QoSProfile(depth=1), log_points),
        ):
            self.create_subscription(kind, name, self._logging(name, log), qos)

    def _logging(self, name: str, log: Callable) -> Callable:
        def callback(message: Any) -> None:
            try:
                log(self._recording, message)
            except ValueError as error:
                self.get_logger().error(f'{name} not shown: {error}')

        return callback


def main() -> int:
    assert __doc__
    check_call('mirage_viewer', __doc__)
    rclpy.init()
    try:
        rclpy.spin(Viewer())
    except ImportError as error:
        print(f'mirage_viewer: {explain(error)}', file=sys.stderr)
        return 1
    except (ValueError, OSError, ParameterException, NameValidationException) as error:
        print(f'mirage_viewer: {sentence(error)}', file=sys.stderr)
        return 1
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        rclpy.try_shutdown()
    return 0


if __name__ == '__main__':
    sys.exit(main())
