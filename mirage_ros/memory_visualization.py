"""Views of the driven memory for RViz and Foxglove, published while they have subscribers."""

from __future__ import annotations

from array import array

from jaxtyping import Bool, Float32
from nav_msgs.msg import OccupancyGrid
import numpy as np
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import Header

from mirage_model.interface import Points
from mirage_ros.context import NodeContext
from mirage_ros.memory_names import DRIVEN

UNKNOWN, IMAGINED_ONLY, OBSERVED = -1, 50, 100
"""Values of a grid cell: no latent point in its column, only imagined points, an observed point.
"""


class MemoryViews:
    def __init__(self, node: NodeContext):
        self._node = node
        self._cloud = node.create_publisher(PointCloud2, 'memory/points', 1)
        self._grid = node.create_publisher(OccupancyGrid, 'memory/coverage', 1)
        node.create_timer(
            node.parameters.view.period,
            self._publish,
            callback_group=MutuallyExclusiveCallbackGroup(),
        )

    def _publish(self) -> None:
        node, parameters = self._node, self._node.parameters
        wanted = [p for p in (self._cloud, self._grid) if p.get_subscription_count()]
        if not wanted or not node.is_active or node.memories.find(DRIVEN) is None:
            return
        with node.logging_errors('view of the memory'):
            points = node.worker.call(
                lambda engine: engine.points(memory=DRIVEN, max_points=parameters.view.max_points)
            ).result()
            header = Header(
                stamp=node.get_clock().now().to_msg(), frame_id=parameters.frames.world
            )
            if self._cloud in wanted:
                self._cloud.publish(cloud_message(points, header))
            if self._grid in wanted:
                self._grid.publish(
                    grid_message(
                        points.positions,
                        points.observed,
                        header,
                        resolution=parameters.view.grid_resolution,
                        max_size=parameters.view.grid_size,
                    )
                )


def cloud_message(points: Points, header: Header) -> PointCloud2:
    """Return a cloud with x y z [m], rgb, and observed: 255 for observed points, 128 for imagined
    ones."""
    layout = np.dtype(
        [('x', '<f4'), ('y', '<f4'), ('z', '<f4'), ('rgb', '<u4'), ('observed', 'u1')]
    )
    rows = np.zeros(len(points.positions), layout)
    for axis, name in enumerate('xyz'):
        rows[name] = points.positions[:, axis]
    red, green, blue = points.colours.astype(np.uint32).T
    rows['rgb'] = red << 16 | green << 8 | blue
    rows['observed'] = np.where(points.observed, 255, 128)
    kinds = {'<f4': PointField.FLOAT32, '<u4': PointField.UINT32, '|u1': PointField.UINT8}
    return PointCloud2(
        header=header,
        height=1,
        width=len(rows),
        fields=[
            PointField(name=name, offset=offset, datatype=kinds[kind.str], count=1)
            for name, (kind, offset, *_) in (layout.fields or {}).items()
        ],
        point_step=layout.itemsize,
        row_step=layout.itemsize * len(rows),
        data=array('B', rows.tobytes()),
        is_dense=True,
    )


def grid_message(
    positions: Float32[np.ndarray, 'n 3'],
    observed: Bool[np.ndarray, ' n'],
    header: Header,
    *,
    resolution: float,
    max_size: int,
) -> OccupancyGrid:
    """Return a grid of the world's x-y plane around the latent point that is nearest to their
    median.

    Args:
        positions: World coordinates [m].
        resolution: Cell size [m].
        max_size: Largest width and height [cells].
    """
    message = OccupancyGrid(header=header)
    message.info.map_load_time = header.stamp
    message.info.resolution = resolution
    message.info.origin.orientation.w = 1.0
    if not len(positions):
        return message
    cells = np.floor(positions[:, :2].astype(np.float64) / resolution).astype(np.int64)
    from_median = np.abs(cells - np.median(cells, axis=0)).max(axis=1)
    centre = cells[from_median.argmin()]  # the median cell itself may be empty
    near = (np.abs(cells - centre) < max_size // 2).all(axis=1)
    cells, observed = cells[near], observed[near]
    low = cells.min(axis=0)
    width, height = (cells.max(axis=0) - low + 1).tolist()
    grid = np.full((height, width), UNKNOWN, np.int8)
    column, row = (cells - low).T
    grid[row, column] = IMAGINED_ONLY
    grid[row[observed], column[observed]] = OBSERVED
    message.info.width, message.info.height = width, height
    message.info.origin.position.x, message.info.origin.position.y = (low * resolution).tolist()
    message.data = array('b', grid.tobytes())
    return message
