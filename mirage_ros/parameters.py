"""The node's parameters: one frozen dataclass, from which ROS parameters, their ranges and config/mirage.yaml are made."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
import textwrap
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import ReliabilityPolicy

from mirage_model.engine.keyframes import KeyframeConfig

KEYFRAMES = KeyframeConfig()


def setting(
    default: Any, description: str, *, low=None, high=None, among: tuple[str, ...] = ()
) -> Any:
    """Declare a field with what ROS tools show of it. ``low`` and ``high`` belong to the range."""
    if among:
        description += ' One of: ' + ', '.join(among) + '.'
    metadata = {'description': description, 'low': low, 'high': high, 'among': among}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class NodeParameters:
    """What can be set at the start of the node. Read-only while it runs."""

    model_folder: str = setting(
        '', 'Folder with the weights; empty: mirage-tiny, which comes along.'
    )
    device: str = setting('cpu', 'Where the model runs: cpu, cuda, cuda:1 and so on.')

    autostart: bool = setting(
        True, 'Configure and activate at the start; false: a lifecycle manager does.'
    )

    world_frame: str = setting(
        'map',
        'The fixed frame that the memory lies in. Paths may be in any frame that TF joins to it.',
    )
    base_frame: str = setting(
        'base_link',
        'The frame that a nav_msgs/Path moves, and that trajectories may move instead of the camera.',
    )
    base_from_camera: tuple[float, ...] = setting(
        (),
        "The camera's optical frame in base_frame: x y z in metres, quaternion x y z w. "
        'Empty: looked up in TF where poses are of base_frame.',
    )
    use_tf: bool = setting(True, 'Listen to /tf and /tf_static.')
    tf_seconds: float = setting(
        30.0, 'How long transforms are kept, seconds.', low=1.0, high=3600.0
    )
    tf_wait: float = setting(
        0.2, 'How long a lookup waits for a transform to come, seconds.', low=0.0, high=5.0
    )
    nominal_speed: float = setting(
        0.5, 'Times the poses of an unstamped path, m/s.', low=0.01, high=50.0
    )
    nominal_turn_rate: float = setting(
        0.8, 'Times the turns on the spot of an unstamped path, rad/s.', low=0.01, high=20.0
    )

    use_depth: bool = setting(
        True,
        'Take the seed with the depth image of its stamp, and wait for that; false: without depth.',
    )
    allow_unscaled_depth: bool = setting(
        False,
        'Serve a seed without metric depth, although the lengths along the path mean nothing then.',
    )
    refine_cameras: bool = setting(
        False,
        'Find the cameras of imagined frames anew by matched features before they are remembered.',
    )
    stamp_tolerance: float = setting(
        0.02,
        'How far the stamps of image, camera_info and depth may lie apart to belong together, seconds.',
        low=0.0,
        high=1.0,
    )

    image_transport: str = setting(
        'raw',
        'compressed: take image/compressed (JPEG or PNG) and depth/compressedDepth (PNG of 16UC1) instead.',
        among=('raw', 'compressed'),
    )

    pose_source: str = setting(
        'none',
        'Where the camera is when an image comes: tf, the topic odometry (nav_msgs/Odometry) or the topic pose '
        '(geometry_msgs/PoseStamped of base_frame). none: not known, so that nothing is observed on the way, and a seed '
        "is at its trajectory's first pose.",
        among=('none', 'tf', 'odometry', 'pose'),
    )
    observe_rate: float = setting(
        2.0,
        'Images that are looked at per second; the rest is dropped and counted.',
        low=0.01,
        high=60.0,
    )
    keyframe_distance: float = setting(
        KEYFRAMES.distance,
        'An image is remembered if the camera has moved this far since the one before that was, m, or turned',
        low=0.0,
        high=100.0,
    )
    keyframe_angle: float = setting(KEYFRAMES.angle, 'this far, rad,', low=0.0, high=3.2)
    keyframe_gain: float = setting(
        KEYFRAMES.gain,
        'and at least this share of its view is not observed yet;',
        low=0.0,
        high=1.0,
    )
    keyframe_refresh: float = setting(
        KEYFRAMES.refresh, 'or if that is so many seconds ago.', low=0.0, high=1e6
    )
    start_from_driven: bool = setting(
        True,
        'Requests start from what was driven through, where there is such a memory; false: from the newest image alone.',
    )
    odom_frame: str = setting(
        'odom', 'The frame whose jumps in world_frame are watched: they are loop closures.'
    )
    jump_distance: float = setting(
        0.2, 'Between two images: what moves odom_frame further is a jump, m.', low=0.0, high=100.0
    )
    jump_angle: float = setting(
        0.1, 'What turns odom_frame further is a jump, rad.', low=0.0, high=3.2
    )
    on_jump: str = setting(
        'reanchor',
        'What happens to the memory at a jump: moved by it as a whole, forgotten, or left.',
        among=('reanchor', 'reset', 'ignore'),
    )

    newest_wins: bool = setting(
        True,
        'A new trajectory or path on a topic replaces the older ones of the same client. Goals are replaced only by goals '
        'that ask for it.',
    )
    queue_size: int = setting(
        4, 'Requests of a client that may wait; more are dropped with an answer.', low=1, high=64
    )
    max_goals: int = setting(
        12, 'Goals of the actions that are served or wait, of all clients.', low=1, high=128
    )
    result_seconds: float = setting(
        30.0,
        'The result of a goal, and the goal, are kept so long for clients that ask late, seconds.',
        low=1.0,
        high=900.0,
    )
    max_poses: int = setting(10_000, 'Poses in a trajectory.', low=1, high=1_000_000)
    max_candidates: int = setting(64, 'Candidates of one request.', low=1, high=4096)
    batch: int = setting(
        1,
        'Candidates that go through the model together where a goal does not say.',
        low=1,
        high=256,
    )
    max_memories: int = setting(8, 'Memories that requests may keep by name.', low=1, high=1024)
    memory_folder: str = setting(
        '', 'Memories are saved to and loaded from this folder alone; empty: neither is served.'
    )
    memory_capacity: int = setting(
        4_000_000,
        'Cells that a memory holds at most, of about 125 bytes each for mirage-tiny; 0: no bound.',
        low=0,
        high=2**31 - 1,
    )
    memory_policy: str = setting(
        'oldest', 'What a full memory forgets first.', among=('oldest', 'furthest', 'imagined')
    )
    memory_resident: int = setting(
        0,
        'Cells of a memory that stay in RAM, the furthest of the others in memory_pages; 0: all.',
        low=0,
        high=2**31 - 1,
    )
    memory_pages: str = setting('', 'A folder for what memory_resident leaves no room for.')
    max_frames: int = setting(512, 'Frames that one request may ask for.', low=1, high=100_000)
    max_pixels: int = setting(4096 * 2304, 'Pixels of a seed image.', low=1, high=2**28)

    seed: int = setting(0, 'Of the random numbers for requests that come by topic.')
    steps: int = setting(
        0, "Denoising steps for requests that come by topic; 0: the model's own.", low=0, high=1000
    )
    memory_frames: bool = setting(
        False, 'Chunks of requests that come by topic also carry what the memory saw.'
    )

    imagined_prefix: str = setting(
        'imagined/',
        "Put before the camera's frame id on everything imagined, so that none is taken for sensor data.",
    )
    compression: str = setting(
        'auto',
        'Of the pictures in a chunk, or in all the result of a goal with candidates. auto: jpeg above raw_bytes.',
        among=('auto', 'none', 'jpeg', 'png'),
    )
    raw_bytes: int = setting(
        8 * 2**20, 'Largest chunk or result that auto sends raw, bytes.', low=0, high=2**30
    )
    jpeg_quality: int = setting(90, 'Of jpeg, percent.', low=1, high=100)
    max_message_bytes: int = setting(
        32 * 2**20,
        'Largest chunk that is published, and largest result of a goal with candidates; one above it ends its request.',
        low=2**16,
        high=2**30,
    )

    sensor_reliability: str = setting(
        'best_effort',
        'QoS of image, camera_info and depth. best_effort hears every publisher.',
        among=('best_effort', 'reliable'),
    )
    sensor_depth: int = setting(5, 'QoS depth of those.', low=1, high=1000)
    imagined_reliability: str = setting(
        'reliable', 'QoS of what is imagined.', among=('best_effort', 'reliable')
    )
    imagined_depth: int = setting(
        100, 'QoS depth of imagined frames, which come a chunk at once.', low=1, high=10_000
    )

    view_period: float = setting(
        2.0,
        'Between two clouds or grids of the memory, while they are subscribed to, seconds.',
        low=0.1,
        high=3600.0,
    )
    view_points: int = setting(100_000, 'Points of the cloud.', low=1, high=10_000_000)
    grid_resolution: float = setting(0.1, 'Of the grid, m.', low=0.01, high=10.0)
    grid_size: int = setting(
        1024,
        'Most cells along a side of the grid; what lies beyond is left out.',
        low=16,
        high=8192,
    )

    diagnostics_period: float = setting(
        1.0, 'Between two messages on /diagnostics, seconds.', low=0.1, high=60.0
    )
    warn_chunk_seconds: float = setting(
        0.0,
        'Diagnostics warn where the 95th percentile of a chunk takes longer; 0: never.',
        low=0.0,
        high=3600.0,
    )
    error_chunk_seconds: float = setting(
        0.0,
        'Diagnostics report an error where it takes longer than this; 0: never.',
        low=0.0,
        high=3600.0,
    )
    warn_cells: int = setting(
        10_000_000,
        'Diagnostics warn where the driven memory holds more cells; 0: never.',
        low=0,
        high=2**31 - 1,
    )
    error_bytes: int = setting(
        0, 'Diagnostics report an error where it takes more bytes; 0: never.', low=0, high=2**62
    )

    def __post_init__(self) -> None:
        """Raise ValueError for what ranges cannot say."""
        for item in fields(self):
            among = item.metadata['among']
            if among and getattr(self, item.name) not in among:
                raise ValueError(
                    f'{item.name}: {getattr(self, item.name)!r} is not one of {among}'
                )
        for name in ('world_frame', 'base_frame', 'odom_frame', 'imagined_prefix'):
            if not getattr(self, name):
                raise ValueError(f'{name} must not be empty')
        if len(self.base_from_camera) not in (0, 7):
            raise ValueError(f'base_from_camera needs 7 numbers, got {len(self.base_from_camera)}')

    @property
    def largest_raw(self) -> int:
        """Bytes of pictures that the compression auto sends as they are."""
        return min(self.raw_bytes, self.max_message_bytes)


def declare(node: Node) -> NodeParameters:
    """Declare all parameters on a node and return their values."""
    values = {}
    for item in fields(NodeParameters):
        low, high = item.metadata['low'], item.metadata['high']
        descriptor = ParameterDescriptor(
            description=item.metadata['description'],
            additional_constraints=', '.join(item.metadata['among']),
            read_only=True,
        )
        if isinstance(item.default, float) and low is not None:
            descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
        elif low is not None:
            descriptor.integer_range = [IntegerRange(from_value=low, to_value=high, step=1)]
        if isinstance(item.default, tuple):
            # an empty list has no type in YAML, so that the list's type is said here
            parameter = node.declare_parameter(item.name, Parameter.Type.DOUBLE_ARRAY, descriptor)
            values[item.name] = tuple(parameter.value or ())
        else:
            values[item.name] = node.declare_parameter(item.name, item.default, descriptor).value
    return NodeParameters(**values)


def reliability(name: str) -> ReliabilityPolicy:
    return {
        'best_effort': ReliabilityPolicy.BEST_EFFORT,
        'reliable': ReliabilityPolicy.RELIABLE,
    }[name]


def as_yaml() -> str:
    """Write config/mirage.yaml: every parameter with its default, what it means and its range."""
    lines = [
        '# Every parameter of the node with its default. Made by `python -m mirage_ros.parameters > config/mirage.yaml`.',
        '/**:',
        '  ros__parameters:',
    ]
    for item in fields(NodeParameters):
        text = item.metadata['description']
        if item.metadata['low'] is not None:
            text += f' Range {item.metadata["low"]} to {item.metadata["high"]}.'
        lines.append('')
        lines += textwrap.wrap(text, 110, initial_indent='    # ', subsequent_indent='    # ')
        value = item.default
        if isinstance(value, bool):
            value = str(value).lower()
        elif isinstance(value, str):
            value = f"'{value}'"
        # ROS refuses an empty list without a type
        lines.append(
            f'    {item.name}: {value}'
            if value != ()
            else f'    # {item.name}: [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]'
        )
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    print(as_yaml(), end='')
