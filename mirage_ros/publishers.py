"""Publishers of imagined frames, masks, cameras and their path; the log of outcomes."""

from __future__ import annotations

from geometry_msgs.msg import PoseStamped
from mirage.msg import ImaginedChunk
from nav_msgs.msg import Path
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from mirage_model.engine.worker import Outcome
from mirage_model.interface import Chunk
from mirage_ros import convert
from mirage_ros.context import NodeContext
from mirage_ros.convert import Compression


class Publishers:
    """Publishers of everything imagined; called from the worker's thread."""

    def __init__(self, node: NodeContext):
        self._node = node
        self._parameters = parameters = node.parameters
        qos = parameters.qos.imagined
        reliability = ReliabilityPolicy[qos.reliability.upper()]
        frames = QoSProfile(depth=qos.depth, reliability=reliability)
        chunks = QoSProfile(depth=10, reliability=reliability)
        self._image = node.create_publisher(Image, 'imagined/image', frames)
        self._camera_info = node.create_publisher(CameraInfo, 'imagined/camera_info', frames)
        self._visibility = node.create_publisher(Image, 'imagined/visibility', frames)
        self._chunk = node.create_publisher(ImaginedChunk, 'imagined/chunk', chunks)
        self._path = node.create_publisher(Path, 'imagined/path', chunks)

    def publish(self, chunk: Chunk, camera_frame: str) -> None:
        metrics = self._node.metrics
        metrics.add_chunk(len(chunk.frames), chunk.seconds, chunk.stages)
        with metrics.timing('publish'):
            self._chunk.publish(self.message(chunk, camera_frame))
            self._publish_frames(chunk, camera_frame)
            if self._path.get_subscription_count():
                self._path.publish(self._path_of(chunk))

    def message(
        self, chunk: Chunk, camera_frame: str, *, compression: Compression | None = None
    ) -> ImaginedChunk:
        """Return a chunk as a message.

        Args:
            camera_frame: Frame id of the camera, without the prefix.
            compression: Overrides the parameter ``compression.format``.

        Raises:
            ValueError: The message is larger than ``limits.max_message_bytes``.
        """
        parameters = self._parameters
        return convert.message_from_chunk(
            chunk,
            world_frame=parameters.frames.world,
            frame_id=parameters.frames.imagined_prefix + camera_frame,
            sha256=self._node.engine.sha256,
            compression=compression
            or convert.chosen_compression(
                parameters.compression.format,
                convert.raw_bytes_of(chunk),
                raw_bytes=parameters.largest_raw,
            ),
            quality=parameters.compression.jpeg_quality,
            max_bytes=parameters.limits.max_message_bytes,
        )

    def header(self, time: float, camera_frame: str) -> Header:
        return Header(
            stamp=convert.stamp(time),
            frame_id=self._parameters.frames.imagined_prefix + camera_frame,
        )

    def log(self, outcome: Outcome) -> None:
        self._node.metrics.count(f'requests {outcome.status}')
        logger = self._node.get_logger()
        if outcome.status == 'done':
            logger.info(
                f"request '{outcome.request_id}' done: {outcome.frames} frames in "
                f'{outcome.seconds:.1f} s, '
                f'visible {outcome.visible_mean:.0%}, observed {outcome.observed_mean:.0%}'
            )
            return
        text = f"request '{outcome.request_id}' {outcome.status}: {outcome.reason}"
        if outcome.status in ('rejected', 'failed'):
            self._node.log_error(text, outcome.details)
        else:
            self._node.log_warning(text)

    def _publish_frames(self, chunk: Chunk, camera_frame: str) -> None:
        height, width = chunk.visibility.shape[1:]
        for frame, visibility, K, planned in zip(
            chunk.frames, chunk.visibility, convert.K_of_each(chunk), chunk.times
        ):
            header = self.header(planned, camera_frame)
            if self._image.get_subscription_count():
                self._image.publish(convert.image_message(frame, 'rgb8', header))
            if self._camera_info.get_subscription_count():
                self._camera_info.publish(convert.camera_info_message(K, height, width, header))
            if self._visibility.get_subscription_count():
                self._visibility.publish(convert.image_message(visibility, 'mono8', header))

    def _path_of(self, chunk: Chunk) -> Path:
        world = self._parameters.frames.world
        poses = [
            PoseStamped(
                header=Header(stamp=convert.stamp(time), frame_id=world),
                pose=convert.pose_from_matrix(world_from_camera),
            )
            for time, world_from_camera in zip(chunk.times, chunk.world_from_camera)
        ]
        return Path(header=poses[0].header, poses=poses)
