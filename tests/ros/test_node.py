"""A running node with an engine that answers at once is driven from another process over DDS."""

from __future__ import annotations

from array import array
from pathlib import Path as FilePath
import signal
import subprocess
import sys
import time

from action_msgs.msg import GoalStatus
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped
from instant_engine import InstantEngine
from mirage.action import Imagine
from mirage.msg import ImaginedChunk
from nav_msgs.msg import Path
import numpy as np
from processes import INSTANT, START, seed_messages, shared_memory, trajectory
import pytest
from sensor_msgs.msg import CameraInfo, Image

from mirage_model.messages.poses import seconds
from mirage_ros import convert
from mirage_ros.node import MirageNode

pytestmark = pytest.mark.alone


def test_topics(client, start_node):
    """20 frames need two chunks of 16; the padding of the second is not published."""
    for name, kind in (
        ('imagined/image', Image),
        ('imagined/camera_info', CameraInfo),
        ('imagined/visibility', Image),
    ):
        client.receive(name, kind)
    start_node(request__seed=7)
    client.connect()
    client.send_seed(value=40)
    client.send('trajectory', trajectory(20, request_id='around the corner'))
    client.until(
        lambda: len(client.received['imagined/visibility']) == 20 and len(client.chunks) == 2
    )

    assert [(chunk.index, chunk.count, len(chunk.frames)) for chunk in client.chunks] == [
        (0, 2, 16),
        (1, 2, 4),
    ]
    parts = [convert.chunk_from_message(message) for message in client.chunks]
    times = np.concatenate([part.times for part in parts])
    np.testing.assert_allclose(times, START + np.arange(1, 21) / 8, atol=1e-6)
    poses = np.concatenate([part.world_from_camera for part in parts])
    np.testing.assert_allclose(poses[:, 0, 3], 0.05 * np.arange(1, 21), atol=1e-6)
    frames = np.concatenate([part.frames for part in parts])
    np.testing.assert_array_equal(frames[:, 0, 0, 0], 40 + np.arange(1, 21) + 7)
    for message in client.chunks:
        assert message.request_id == 'around the corner'
        assert message.header.frame_id == 'imagined/camera'
        assert message.world_frame == 'map'
        assert (message.depth_source, message.model, message.seed) == ('sensor', 'instant', 7)
        assert message.observation_stamp == Time(sec=1)  # the seed image's
        assert set(message.visible) == {0.75} and set(message.observed) == {0.5}

    images, masks, cameras = (
        client.received[f'imagined/{name}'] for name in ('image', 'visibility', 'camera_info')
    )
    client.until(lambda: len(images) == len(cameras) == 20)
    np.testing.assert_array_equal([image.data[0] for image in images], frames[:, 0, 0, 0])
    assert [seconds(image.header.stamp) for image in images] == list(times)
    assert {image.header.frame_id for image in images + masks + cameras} == {'imagined/camera'}
    assert set(masks[0].data) == {0, 128, 255} and masks[0].encoding == 'mono8'
    assert cameras[0].k[0] == 80.0


def test_path_of_the_base(client, start_node):
    """The path has unstamped poses of base_link, which carries a camera that looks forward."""
    start_node(
        frames__base_from_camera='[0.2, 0.0, 0.5, -0.5, 0.5, -0.5, 0.5]',
        path__speed=0.8,
        compression__format='png',
    )
    client.publisher('path', Path)
    client.connect()
    client.send_seed()
    path = Path()
    path.header.frame_id = 'map'
    path.header.stamp = Time(sec=100)
    for x in (0.0, 0.8, 1.6):
        pose = PoseStamped()
        pose.pose.position.x = x
        path.poses.append(pose)
    client.send('path', path)
    client.until(lambda: client.chunks)
    (message,) = client.chunks
    assert len(message.frames_compressed) == 16 and not message.frames
    part = convert.chunk_from_message(message)
    np.testing.assert_allclose(part.times, 100 + np.arange(1, 17) / 8, atol=1e-6)
    camera_forward = part.world_from_camera[:, :3, 2]
    np.testing.assert_allclose(camera_forward, np.tile([1, 0, 0], (16, 1)), atol=1e-6)
    np.testing.assert_allclose(
        part.world_from_camera[:, 0, 3], 0.2 + 0.1 * np.arange(1, 17), atol=1e-5
    )
    np.testing.assert_allclose(part.world_from_camera[:, 2, 3], 0.5, atol=1e-6)


def test_action(client, start_node):
    """A goal with an image, steps and seed gets feedback for every chunk, and a result that
    expires."""
    start_node(request__result_timeout=1.0)
    client.connect()
    image, camera_info, depth = seed_messages(value=90, frame_id='other_camera')
    goal = Imagine.Goal(seed=5, memory_frames=True, seed_image=[image], seed_depth=[depth])
    goal.trajectory = trajectory(32, moving_frame='other_camera')
    goal.trajectory.camera_info = [camera_info]
    sent = client.goal(goal)
    client.until(lambda: len(sent.feedback) == 2)  # rclpy drops what comes after the result
    status, result = sent.result()
    assert status == GoalStatus.STATUS_SUCCEEDED, result.message
    assert (result.complete, result.chunks, result.frames) == (True, 2, 32)
    assert (result.visible_mean, result.observed_mean) == (0.75, 0.5)
    assert result.depth_source == 'sensor' and result.model == 'instant' and result.request_id
    assert [feedback.chunk_index for feedback in sent.feedback] == [0, 1]
    last = sent.feedback[-1].last_frame
    assert last.data[0] == 90 + 32 + 5
    assert seconds(last.header.stamp) == START + 4
    assert last.header.frame_id == 'imagined/other_camera'
    client.until(lambda: len(client.chunks) == 2)
    assert len(client.chunks[0].memory_frames) == 16
    client.until(lambda: sent.result()[0] == GoalStatus.STATUS_UNKNOWN, seconds=10.0)


def test_seed_pose(client, start_node):
    """With a seed pose the first pose of the path is a frame too."""
    start_node()
    client.connect()
    client.send_seed()
    message = trajectory(15)
    message.seed_pose = [message.poses[3]]
    client.send('trajectory', message)
    client.until(lambda: client.chunks)
    assert seconds(client.chunks[0].times[0]) == START
    assert len(client.chunks[0].times) == 16


def test_cancel(client, start_node):
    """A running goal ends within one step, a waiting one at once; the next goal is served."""
    step = 0.3
    start_node(instant={'step_seconds': step})
    client.connect()
    client.send_seed()
    running = client.goal(Imagine.Goal(trajectory=trajectory(16, request_id='long'), steps=1000))
    waiting = client.goal(Imagine.Goal(trajectory=trajectory(16, request_id='waits'), steps=1000))
    waiting.cancel()
    status, result = waiting.result()
    assert status == GoalStatus.STATUS_CANCELED
    time.sleep(step)
    asked = time.monotonic()
    running.cancel()
    status, result = running.result()
    assert status == GoalStatus.STATUS_CANCELED
    assert time.monotonic() - asked < step + 0.5
    assert (result.complete, result.chunks) == (False, 0)
    assert 'cancelled by the client' in result.message

    status, result = client.goal(Imagine.Goal(trajectory=trajectory(16), steps=1)).result()
    assert status == GoalStatus.STATUS_SUCCEEDED and result.frames == 16


def broken(change) -> Imagine.Goal:
    image, camera_info, depth = seed_messages()
    goal = Imagine.Goal(seed_image=[image], seed_depth=[depth], trajectory=trajectory(16))
    goal.trajectory.camera_info = [camera_info]
    change(goal)
    return goal


def no_poses(goal):
    goal.trajectory.poses, goal.trajectory.times = [], []


def nan_pose(goal):
    goal.trajectory.poses[3].position.x = float('nan')


def zero_quaternion(goal):
    goal.trajectory.poses[2].orientation.w = 0.0


def times_backwards(goal):
    goal.trajectory.times[5] = Time(sec=5)


def times_missing(goal):
    goal.trajectory.times.pop()


def unknown_world(goal):
    goal.trajectory.header.frame_id = 'mars'


def unknown_moving_frame(goal):
    goal.trajectory.moving_frame = 'gripper'


def base_without_transform(goal):
    goal.trajectory.moving_frame = 'base_link'


def too_short(goal):
    del goal.trajectory.poses[1:], goal.trajectory.times[1:]


def too_long(goal):
    goal.trajectory.times[-1] = Time(sec=int(START) + 3600)


def wrong_encoding(goal):
    goal.seed_image[0].encoding = '8UC7'


def wrong_size(goal):
    goal.seed_image[0].data = goal.seed_image[0].data[:-480]


def wrong_depth_size(goal):
    goal.seed_depth = [seed_messages(height=48)[2]]


def no_camera(goal):
    goal.trajectory.camera_info = []


def no_image(goal):
    goal.seed_image = []


def not_calibrated(goal):
    goal.trajectory.camera_info[0].k = np.zeros(9)


def no_depth(goal):
    goal.seed_depth = []


def breaks_the_engine(goal):
    goal.seed_image[0].data = array('B', bytes([13]) * len(goal.seed_image[0].data))


BAD_GOALS = [
    (no_poses, 'rejected: poses: empty'),
    (nan_pose, 'rejected: poses[3]: position [nan'),
    (zero_quaternion, 'rejected: poses[2]: the quaternion has length 0'),
    (times_backwards, 'rejected: times[5]: time 5.000000 is not after'),
    (times_missing, 'rejected: times: 16 for 17 poses'),
    (unknown_world, "rejected: no transforms join 'mars' to 'map'"),
    (
        unknown_moving_frame,
        "rejected: moving_frame: the pose of the camera 'camera' in 'gripper' is unknown",
    ),
    (base_without_transform, 'base_from_camera'),
    (too_short, 'less than one frame'),
    (too_long, 'max_frames is 64'),
    (wrong_encoding, "encoding '8UC7' is not one of"),
    (wrong_size, '45600 bytes in rows of 480 are not 96x160'),
    (wrong_depth_size, 'must be registered'),
    (no_camera, 'seed_image: given without trajectory.camera_info'),
    (no_image, 'rejected: seed_depth: given without seed_image'),
    (not_calibrated, 'not the intrinsics of a calibrated camera'),
    (no_depth, 'rejected: the view has no depth'),
    (breaks_the_engine, 'failed: RuntimeError: this image breaks the engine'),
]


def test_bad_goals_then_a_good_one(client, start_node):
    """Every bad goal is answered with its reason, and the node goes on."""
    start_node(limits__max_frames=64)
    client.connect()
    for change, reason in BAD_GOALS:
        status, result = client.goal(broken(change)).result()
        assert status == GoalStatus.STATUS_ABORTED, change
        assert reason in result.message, result.message
        assert not result.complete and result.frames == 0
    status, result = client.goal(broken(lambda goal: None)).result()
    assert status == GoalStatus.STATUS_SUCCEEDED, result.message


def test_bad_messages_then_good_ones(client, start_node):
    """A rejected image does not replace the good one before it; reasons are logged."""
    node = start_node()
    client.connect()
    client.send('trajectory', trajectory(16, request_id='too early'))
    node.wait_for("request 'too early' rejected: image: none was received")
    client.send_seed(stamp=1, depth=False)
    client.send('trajectory', trajectory(16, request_id='no depth'))
    node.wait_for("request 'no depth' rejected: depth: none was received")
    client.send_seed(stamp=2, value=50)
    image, camera_info, depth = seed_messages(stamp=3)
    image.encoding = 'jpeg'
    client.send('image', image)
    node.wait_for("image rejected: image: encoding 'jpeg'")
    depth.step = 7
    client.send('depth', depth)
    node.wait_for('depth rejected: depth: ')
    camera_info.width = 0
    client.send('camera_info', camera_info)
    node.wait_for('camera_info rejected: camera_info: image size')
    lost = trajectory(16, request_id='lost', frame_id='')
    client.send('trajectory', lost)
    node.wait_for("request 'lost' rejected: header.frame_id: is ''")
    other = trajectory(16, request_id='other camera')
    other.camera_info = [seed_messages(frame_id='rear')[1]]
    client.send('trajectory', other)
    node.wait_for("request 'other camera' rejected: camera_info: 'rear'")

    client.send('trajectory', trajectory(16, request_id='good'))
    client.until(lambda: client.chunks)
    assert [chunk.request_id for chunk in client.chunks] == ['good']
    assert client.chunks[0].frames[0].data[0] == 51


def test_unscaled_depth_is_marked(client, start_node):
    start_node(sensors__use_depth=False, model__allow_unscaled_depth=True)
    client.connect('depth')
    client.send_seed(depth=False)
    client.send('trajectory', trajectory(16))
    client.until(lambda: client.chunks)
    assert client.chunks[0].depth_source == ImaginedChunk.NOT_SCALED


def test_newest_trajectory_wins(client, start_node):
    """Goals of the action are all served; of the trajectories only the newest is."""
    node = start_node(instant={'step_seconds': 0.1})
    client.connect()
    client.send_seed()
    goal = client.goal(Imagine.Goal(trajectory=trajectory(16, request_id='goal'), steps=20))
    time.sleep(1.0)  # until the worker has taken it: a goal and a topic keep no order between them
    for name in ('a', 'b', 'c'):
        client.send('trajectory', trajectory(16, request_id=name))
    assert goal.result()[0] == GoalStatus.STATUS_SUCCEEDED
    client.until(lambda: len(client.chunks) == 2)
    assert [chunk.request_id for chunk in client.chunks] == ['goal', 'c']
    node.wait_for("request 'a' dropped: replaced by the newer request 'b'")
    node.wait_for("request 'b' dropped: replaced by the newer request 'c'")


def test_full_queue_answers(client, start_node):
    start_node(instant={'step_seconds': 0.1}, limits__queue_size=1)
    client.connect()
    client.send_seed()
    goals = []
    for name in ('runs', 'waits', 'too many'):
        goals.append(
            client.goal(Imagine.Goal(trajectory=trajectory(16, request_id=name), steps=1000))
        )
        time.sleep(0.5)  # until the worker has taken the first out of the queue
    assert not goals[2].handle.accepted or 'the queue is full' in goals[2].result()[1].message
    for goal in goals[:2]:
        goal.cancel()
        assert goal.result()[0] == GoalStatus.STATUS_CANCELED
    status, result = client.goal(Imagine.Goal(trajectory=trajectory(16), steps=1)).result()
    assert status == GoalStatus.STATUS_SUCCEEDED, result.message


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_shutdown_answers_and_leaves_nothing(client, start_node, number):
    before = shared_memory()
    node = start_node(program=INSTANT, instant={'step_seconds': 0.1})
    client.connect()
    client.send_seed()
    sent = client.goal(Imagine.Goal(trajectory=trajectory(16), steps=1000))
    time.sleep(0.5)
    node.process.send_signal(number)
    status, result = sent.result()
    assert status == GoalStatus.STATUS_ABORTED
    assert result.message == 'cancelled: the node is shutting down'
    assert node.process.wait(timeout=10) == 0
    assert shared_memory(unused=True) <= before


def test_callback_errors_are_logged(ros, capfd):
    node = MirageNode(lambda parameters: InstantEngine())
    with node.logging_errors('a message'):
        raise OverflowError('cannot convert float infinity to integer')
    node.close()
    node.destroy_node()
    said = ''.join(capfd.readouterr())
    assert '[ERROR]' in said and 'Traceback' in said
    assert 'a message failed: OverflowError: cannot convert float infinity to integer' in said


def test_exit_code_when_the_executor_ends_by_itself():
    program = """
import sys, threading
import rclpy
from instant_engine import InstantEngine
from mirage_ros.node import main
def load(parameters):
    threading.Timer(1.0, rclpy.shutdown).start()
    return InstantEngine()
sys.exit(main(load))
"""
    node = subprocess.run(
        [sys.executable, '-c', program],
        cwd=FilePath(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert node.returncode == 1
    assert 'the executor ended by itself' in node.stdout + node.stderr


def test_sigint_while_activating():
    """The node ends at any moment between the start of the worker's thread and the first wait."""
    before = shared_memory()
    program = """
import os, signal, sys
from instant_engine import InstantEngine
from mirage_ros import node
start = node.Worker
def worker(*arguments, **keywords):
    started = start(*arguments, **keywords)
    os.kill(os.getpid(), signal.SIGINT)
    return started
node.Worker = worker
sys.exit(node.main(lambda parameters: InstantEngine()))
"""
    run = subprocess.run(
        [sys.executable, '-c', program],
        cwd=FilePath(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    assert shared_memory(unused=True) <= before


def test_sigterm_while_loading(tmp_path):
    before = shared_memory()
    program = """
import sys, time
from mirage_ros.node import main
def load(parameters):
    print('in the function', flush=True)
    time.sleep(1000)
sys.exit(main(load))
"""
    node = subprocess.Popen([sys.executable, '-c', program], stdout=subprocess.PIPE, text=True)
    assert 'in the function\n' in node.stdout
    node.send_signal(signal.SIGTERM)
    node.communicate(timeout=60)
    assert node.returncode == 0
    assert shared_memory(unused=True) <= before
