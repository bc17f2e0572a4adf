"""Messages become arrays and back; wrong ones are rejected."""

from __future__ import annotations

from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped
from hypothesis import given, settings
from hypothesis import strategies as st
from mirage.msg import ImaginedChunk
from nav_msgs.msg import Path
import numpy as np
from processes import seed_messages, trajectory
import pytest
from rclpy.serialization import deserialize_message, serialize_message
from scipy.spatial.transform import Rotation
from std_msgs.msg import Header

from mirage_model.interface import Chunk
from mirage_model.messages.doubts import Doubts
from mirage_model.messages.poses import matrices_from_poses, seconds
from mirage_ros import convert
from mirage_ros.trajectory import PlannedPath, planned_from_path, planned_from_trajectory

DOUBTS = Doubts(parameter='sensors.accept')


def over_the_wire(message):
    return deserialize_message(serialize_message(message), type(message))


def random_rigid(rng: np.random.Generator, n: int) -> np.ndarray:
    matrices = np.tile(np.eye(4), (n, 1, 1))
    matrices[:, :3, :3] = Rotation.random(n, random_state=rng.integers(1 << 30)).as_matrix()
    matrices[:, :3, 3] = rng.normal(size=(n, 3))
    return matrices


def smooth_chunk(*, n: int = 5, height: int = 24, width: int = 40, memory: bool = True) -> Chunk:
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 255, width, dtype=np.uint8)
    frames = np.broadcast_to(ramp[None, None, :, None], (n, height, width, 3)).copy()
    frames[..., 1] //= 2
    mask = rng.choice(np.uint8([0, 128, 255]), size=(n, height, width))
    return Chunk(
        request_id='r',
        index=1,
        count=3,
        frames=frames,
        visibility=mask,
        visible=np.float32(rng.random(n)),
        observed=np.float32(rng.random(n)),
        K=np.tile(np.float32([[30, 0, 19.5], [0, 31, 11.5], [0, 0, 1]]), (n, 1, 1)),
        world_from_camera=random_rigid(rng, n).astype(np.float32),
        times=1_700_000_000 + np.arange(n) / 8,
        memory_frames=frames[:, ::-1].copy() if memory else None,
        depth_source='sensor',
        observation_time=1_699_999_999.25,
        model='tiny',
        seed=-3,
        seconds=1.5,
    )


def test_pose_there_and_back():
    matrices = random_rigid(np.random.default_rng(1), 50)
    poses = [over_the_wire(convert.pose_from_matrix(matrix)) for matrix in matrices]
    np.testing.assert_allclose(matrices_from_poses(poses), matrices, atol=1e-12)
    scipy_order = [
        [p.orientation.x, p.orientation.y, p.orientation.z, p.orientation.w] for p in poses
    ]
    np.testing.assert_allclose(
        Rotation.from_quat(scipy_order).as_matrix(), matrices[:, :3, :3], atol=1e-12
    )


@settings(max_examples=50)
@given(st.integers(0, 2**31 * 1000 - 1))
def test_stamp_keeps_milliseconds_of_any_time(milliseconds):
    stamp = convert.stamp(milliseconds / 1000)
    assert stamp.sec * 1000 + stamp.nanosec / 1e6 == milliseconds
    assert seconds(stamp) == pytest.approx(milliseconds / 1000, abs=1e-6)


@pytest.mark.parametrize('time', [-0.5, 2.0**31 - 1e-7, 2.0**31, float('inf'), float('nan')])
def test_time_without_a_stamp(time):
    with pytest.raises(ValueError, match='a stamp holds'):
        convert.stamp(time)


def test_messages_of_an_observation_must_belong_together():
    image, info, depth = seed_messages()
    view = convert.observation_from_messages(
        image, info, depth, world_from_camera=np.eye(4), max_pixels=10**6, doubts=DOUBTS
    )
    assert view.image.shape == (96, 160, 3) and view.depth.shape == (96, 160) and view.time == 1.0
    with pytest.raises(ValueError, match='max_pixels'):
        convert.observation_from_messages(
            image, info, depth, world_from_camera=np.eye(4), max_pixels=100, doubts=DOUBTS
        )
    image.header = Header(frame_id='elsewhere')
    with pytest.raises(ValueError, match="'elsewhere'"):
        convert.observation_from_messages(
            image, info, depth, world_from_camera=np.eye(4), max_pixels=10**6, doubts=DOUBTS
        )


def test_trajectory():
    message = trajectory(4, request_id='x')
    planned = planned_from_trajectory(over_the_wire(message), max_poses=5)
    assert planned.request_id == 'x' and planned.frame_from_seed is None
    np.testing.assert_allclose(np.diff(planned.times), 0.125)
    with pytest.raises(ValueError, match='limits.max_poses is 4'):
        planned_from_trajectory(message, max_poses=4)


def test_times_that_have_no_stamp():
    message = trajectory(4)
    message.times[0].sec = -1
    with pytest.raises(ValueError, match=r'times\[0\]: time -1.0 s, a stamp holds 0 to'):
        planned_from_trajectory(message, max_poses=5)


def path_of(*poses: tuple[float, float], stamps: list[int] | None = None) -> Path:
    """Return a path of poses (x in metres, yaw in degrees)."""
    message = Path()
    message.header.frame_id = 'map'
    message.header.stamp = Time(sec=50)
    for i, (x, yaw) in enumerate(poses):
        pose = PoseStamped()
        pose.pose.position.x = float(x)
        o = pose.pose.orientation
        o.x, o.y, o.z, o.w = map(float, Rotation.from_euler('z', yaw, degrees=True).as_quat())
        pose.header.stamp = Time(sec=stamps[i]) if stamps else Time()
        message.poses.append(pose)
    return message


NOW = 1_700_000_000.0


def planned(message: Path, warnings: list[str] | None = None) -> PlannedPath:
    return planned_from_path(
        message,
        request_id='p',
        moving_frame='base_link',
        speed=0.5,
        turn_rate=1.0,
        max_poses=100,
        warn=(lambda text: None) if warnings is None else warnings.append,
        orientation='auto',
        doubts=DOUBTS,
    )


def test_unstamped_path_is_timed_by_way_and_turn():
    """The path has 1 m at 0.5 m/s and 90 degrees at 1 rad/s; a pose that repeats is left out."""
    path = planned(path_of((0, 0), (1, 0), (1, 90), (1, 90), (1.5, 90)))
    np.testing.assert_allclose(path.times, 50 + np.cumsum([0, 2, np.pi / 2, 1]))
    assert len(path.frame_from_moving) == 4


def test_one_stamp_for_all_poses_is_no_time():
    assert planned(path_of((0, 0), (1, 0), stamps=[7, 7])).times[1] == 52


@pytest.mark.parametrize(
    'stamps',
    [
        NOW + 3e-6 * np.arange(21),
        np.append(NOW + 3e-6 * np.arange(20), NOW - 0.8),
        np.append(np.full(20, NOW), NOW - 0.8),
        NOW + 5e-3 * np.arange(21),
    ],
    ids=['now', 'goal older', 'one stamp but the goal', 'within 0.1 s'],
)
def test_stamps_of_planning_are_no_times(stamps):
    """The path takes 2 m within a tenth of a second, since planners stamp poses as they make
    them."""
    message = path_of(*((0.1 * i, 0) for i in range(21)))
    for pose, time in zip(message.poses, stamps):
        pose.header.stamp = convert.stamp(float(time))
    warnings: list[str] = []
    path = planned(message, warnings)
    np.testing.assert_allclose(path.times, 50 + 0.2 * np.arange(21))
    assert len(warnings) == 1 and 'these stamps are no times' in warnings[0]


def test_stamped_path_keeps_its_times():
    np.testing.assert_array_equal(
        planned(path_of((0, 0), (1, 0), (2, 0), stamps=[3, 4, 9])).times, [3, 4, 9]
    )
    with pytest.raises(ValueError, match=r'poses\[2\]: time 4.000000 is not after 4.000000'):
        planned(path_of((0, 0), (1, 0), (2, 0), stamps=[3, 4, 4]))


def test_path_that_would_end_after_the_last_stamp():
    message = path_of((0, 0), (1, 0))
    message.header.stamp = Time(sec=2**31 - 1)
    with pytest.raises(ValueError, match=r'poses\[1\]: time .*, a stamp holds 0 to'):
        planned(message)


def test_path_to_the_end_of_the_universe():
    with pytest.raises(ValueError, match=r'poses\[1\]: position .* further than 10 km'):
        planned(path_of((0, 0), (1e200, 0)))


def test_path_with_poses_in_another_frame():
    message = path_of((0, 0), (1, 0))
    message.poses[1].header.frame_id = 'odom'
    with pytest.raises(ValueError, match=r"poses\[1\]: in frame 'odom'"):
        planned(message)


@pytest.mark.parametrize('memory', [True, False])
def test_raw_chunk_there_and_back(memory):
    chunk = smooth_chunk(memory=memory)
    message = over_the_wire(
        convert.message_from_chunk(
            chunk, world_frame='map', frame_id='imagined/camera', sha256='ab'
        )
    )
    back = convert.chunk_from_message(message)
    for name in ('frames', 'visibility', 'visible', 'observed', 'times', 'memory_frames'):
        np.testing.assert_array_equal(getattr(back, name), getattr(chunk, name), err_msg=name)
    np.testing.assert_allclose(back.world_from_camera, chunk.world_from_camera, atol=1e-6)
    np.testing.assert_array_equal(back.K, chunk.K[0])
    for name in (
        'request_id',
        'index',
        'count',
        'depth_source',
        'observation_time',
        'model',
        'seed',
        'seconds',
    ):
        assert getattr(back, name) == getattr(chunk, name)
    assert message.model_sha256 == 'ab' and not message.frames_compressed


@pytest.mark.parametrize(('compression', 'worst'), [('jpeg', 12), ('png', 0)])
def test_compressed_chunk_there_and_back(compression, worst):
    chunk = smooth_chunk()
    message = over_the_wire(
        convert.message_from_chunk(
            chunk, world_frame='map', frame_id='i', sha256='', compression=compression, quality=95
        )
    )
    assert not message.frames and {part.format for part in message.frames_compressed} == {
        compression
    }
    back = convert.chunk_from_message(message)
    assert np.abs(back.frames.astype(int) - chunk.frames).max() <= worst
    assert np.abs(back.memory_frames.astype(int) - chunk.memory_frames).max() <= worst
    np.testing.assert_array_equal(back.visibility, chunk.visibility)


def test_message_has_a_cap():
    with pytest.raises(
        ValueError,
        match='chunk 1 of 5 frames of 24x40 takes .* limits.max_message_bytes allows 0.0',
    ):
        convert.message_from_chunk(
            smooth_chunk(), world_frame='map', frame_id='i', sha256='', max_bytes=1000
        )


def test_auto_compresses_large_chunks_only():
    chunk = smooth_chunk(memory=False)
    size = convert.raw_bytes_of(chunk)
    assert size == chunk.frames.nbytes + chunk.visibility.nbytes
    assert convert.chosen_compression('auto', size, raw_bytes=size) == 'none'
    assert convert.chosen_compression('auto', size, raw_bytes=size - 1) == 'jpeg'
    assert convert.chosen_compression('png', size, raw_bytes=0) == 'png'


def test_constants_of_the_message_are_those_of_the_library():
    from mirage_model import interface

    for name in ('NOTHING', 'IMAGINED', 'OBSERVED'):
        assert getattr(ImaginedChunk, name) == getattr(interface, name)
