"""Write bags (MCAP) without ROS, through `rosbags`."""

from __future__ import annotations

from pathlib import Path
import shutil
from typing import Any

from jaxtyping import Float, Shaped
import numpy as np
from scipy.spatial.transform import Rotation

_ENCODINGS = {('uint8', 3): 'rgb8', ('uint8', 2): 'mono8', ('float32', 2): '32FC1'}


class BagWriter:
    """A context manager that writes a bag; an existing bag is replaced. Stamps are nanoseconds."""

    def __init__(self, path: Path):
        from rosbags.rosbag2 import StoragePlugin, Writer
        from rosbags.typesys import Stores, get_typestore

        shutil.rmtree(path, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._store = get_typestore(Stores.ROS2_JAZZY)
        self._writer = Writer(path, version=9, storage_plugin=StoragePlugin.MCAP)
        self._connections: dict[str, Any] = {}

    def __enter__(self) -> BagWriter:
        self._writer.open()
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def send(self, topic: str, nanoseconds: int, message: Any) -> None:
        kind = message.__msgtype__
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(
                topic, kind, typestore=self._store
            )
        data = self._store.serialize_cdr(message, kind)
        self._writer.write(self._connections[topic], nanoseconds, data)

    def make(self, kind: str, *values: Any, **fields: Any) -> Any:
        """Make a message of a type such as 'geometry_msgs/Point'."""
        package, name = kind.split('/')
        return self._store.types[f'{package}/msg/{name}'](*values, **fields)

    def header(self, nanoseconds: int, frame: str) -> Any:
        stamp = self.make('builtin_interfaces/Time', nanoseconds // 10**9, nanoseconds % 10**9)
        return self.make('std_msgs/Header', stamp, frame)

    def image(self, header: Any, pixels: Shaped[np.ndarray, 'h w *c']) -> Any:
        """Make an image of RGB or mono bytes, or of float32 depth."""
        return self.make(
            'sensor_msgs/Image',
            header=header,
            height=pixels.shape[0],
            width=pixels.shape[1],
            encoding=_ENCODINGS[pixels.dtype.name, pixels.ndim],
            is_bigendian=0,
            step=pixels[0].nbytes,
            data=np.ascontiguousarray(pixels).reshape(-1).view(np.uint8),
        )

    def camera_info(
        self, header: Any, K: Float[np.ndarray, '3 3'], height: int, width: int
    ) -> Any:
        """Make the camera_info of a rectified image."""
        return self.make(
            'sensor_msgs/CameraInfo',
            header=header,
            height=height,
            width=width,
            distortion_model='plumb_bob',
            d=np.zeros(5),
            k=np.asarray(K, np.float64).reshape(-1),
            r=np.eye(3).reshape(-1),
            p=np.hstack([K, np.zeros((3, 1))]).astype(np.float64).reshape(-1),
            binning_x=0,
            binning_y=0,
            roi=self.make('sensor_msgs/RegionOfInterest', 0, 0, 0, 0, False),
        )

    def pose(self, a_from_b: Float[np.ndarray, '4 4']) -> Any:
        x, y, z = a_from_b[:3, 3].tolist()
        turn = Rotation.from_matrix(a_from_b[:3, :3]).as_quat().tolist()
        return self.make(
            'geometry_msgs/Pose',
            position=self.make('geometry_msgs/Point', x, y, z),
            orientation=self.make('geometry_msgs/Quaternion', *turn),
        )

    def transforms(self, header: Any, child: str, a_from_b: Float[np.ndarray, '4 4']) -> Any:
        """Make a message of one transform."""
        pose = self.pose(a_from_b)
        at = pose.position
        transform = self.make(
            'geometry_msgs/TransformStamped',
            header=header,
            child_frame_id=child,
            transform=self.make(
                'geometry_msgs/Transform',
                translation=self.make('geometry_msgs/Vector3', at.x, at.y, at.z),
                rotation=pose.orientation,
            ),
        )
        return self.make('tf2_msgs/TFMessage', [transform])
