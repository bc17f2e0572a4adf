"""The node's reading of messages without a graph: the calls of its callbacks, in their order."""

from __future__ import annotations

import importlib
from typing import Any

from bag_messages import STORE
from rclpy.serialization import deserialize_message
from recordings import Recording

from mirage_model.interface import Observation
from mirage_model.messages.camera_info import read_camera
from mirage_model.messages.doubts import Doubts
from mirage_ros.convert import observation_from_messages
from mirage_ros.declaration import from_values
from mirage_ros.parameters import NodeParameters
from mirage_ros.sensor_sync import CameraImages, SensorSync
from mirage_ros.trajectory import CameraFrames
from mirage_ros.transforms import ReceivedTransforms

SOURCES = {'covariance': 'pose_with_covariance'}
"""Values of observe.pose_source, by the kind of poses of a recording."""


def received(message: Any) -> Any:
    """Return rclpy's message of one of rosbags."""
    kind = message.__msgtype__
    package, folder, name = kind.split('/')
    rclpy_type = getattr(importlib.import_module(f'{package}.{folder}'), name)
    return deserialize_message(bytes(STORE.serialize_cdr(message, kind)), rclpy_type)


class NodeReader:
    """The inputs of a node: receive messages, then observe what is complete.

    ``said`` has every error and warning that the node would log.
    """

    def __init__(self, values: dict[str, Any]):
        parameters = from_values(NodeParameters, {'tf.wait': 0.0} | values)
        self.said: list[str] = []
        self.transforms = ReceivedTransforms(
            parameters, on_bad=lambda topic, error: self._say(error), warn=self.said.append
        )
        self._frames = CameraFrames(parameters, self.transforms)
        self._sensors = SensorSync(
            use_depth=True,
            tolerance=parameters.sensors.stamp_tolerance,
            max_pixels=parameters.limits.max_pixels,
            warn=self.said.append,
        )
        self.doubts = Doubts(
            parameters.sensors.accept, parameter='sensors.accept', log=self.said.append
        )
        self._complete: dict[float, CameraImages] = {}
        self._adds = {
            '/image': self._sensors.add_image,
            '/depth': self._sensors.add_depth,
            '/info': self._add_camera_info,
            '/depth_info': lambda m: self._frames.set_depth_camera(read_camera(m, self.doubts)),
            '/tf_static': lambda m: self.transforms.add_transforms('tf_static', m, static=True),
        }

    def _add_camera_info(self, message: Any) -> None:
        self._frames.set_camera(read_camera(message, self.doubts))
        self._sensors.add_camera_info(message)

    def receive(self, topic: str, message: Any) -> None:
        """Receive a message; poses come on any other topic."""
        try:
            if topic in self._adds:
                self._adds[topic](message)
            elif hasattr(message, 'transforms'):
                self.transforms.add_transforms('tf', message, static=False)
            else:
                self.transforms.add_pose('pose', message)
        except ValueError as error:
            self._say(error)
        try:
            images = self._sensors.newest()
        except ValueError as error:
            self._missing = error
        else:
            self._complete[images.arrival.stamp] = images

    def observe(self) -> dict[float, Observation]:
        """Return the complete sets, once all transforms are there, by their stamps."""
        found = {}
        for time, images in self._complete.items():
            try:
                found[time] = self._observation(images)
            except ValueError as error:
                self._say(error)
        if not self._complete:
            self._say(self._missing)
        return found

    def _observation(self, images: CameraImages) -> Observation:
        camera = read_camera(images.camera_info, self.doubts)
        self._frames.set_camera(camera)
        return observation_from_messages(
            images.image,
            images.camera_info,
            images.depth,
            world_from_camera=self._frames.world_from_camera(camera.frame, images.arrival.stamp),
            max_pixels=10**6,
            doubts=self.doubts,
            depth_camera=self._frames.depth_camera(images.depth, camera),
        )

    def _say(self, error: ValueError) -> None:
        self.said.append(str(error))


def read_node(recording: Recording) -> tuple[dict[float, Observation], list[str]]:
    """Return observations by their stamps, and what the node said of others."""
    reader = NodeReader(
        {
            'observe.pose_source': SOURCES.get(recording.source, recording.source),
            'frames.base': recording.options['base_frame'],
        }
    )
    for _, topic, message in recording.sent():
        reader.receive(topic, received(message))
    return reader.observe(), reader.said
