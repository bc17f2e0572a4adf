"""A robot with TF drives; its memory is written, scored, saved, re-anchored and reset."""

from __future__ import annotations

from array import array
from pathlib import Path as FilePath

from action_msgs.msg import GoalStatus
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from mirage.action import Imagine, ImagineCandidates
from mirage.srv import MemoryFile, PredictSeconds, ResetMemory, ScoreTrajectories
from nav_msgs.msg import OccupancyGrid, Path
import numpy as np
from processes import Client, NodeProcess, seed_messages, trajectory
import pytest
from rclpy.action import ActionClient
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import PointCloud2
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage

from mirage_model.messages.poses import matrix_from_numbers
from mirage_ros import convert
from mirage_ros.convert import transform_message
from mirage_ros.tools.fake_robot import Goal

BASE_FROM_CAMERA = matrix_from_numbers((0.2, 0.0, 0.5, -0.5, 0.5, -0.5, 0.5), name='camera')


def shifted(x: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[0, 3] = x
    return matrix


class Robot:
    """A robot at x in its odometry frame, which is at ``odom_at`` in the map."""

    def __init__(self, client: Client, node: NodeProcess):
        self.client, self.node = client, node
        latched = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._static = client.node.create_publisher(TFMessage, '/tf_static', latched)
        self._static.publish(
            TFMessage(transforms=[transform_message('base_link', 'camera', BASE_FROM_CAMERA, 0.0)])
        )
        self._tf = client.node.create_publisher(TFMessage, '/tf', QoSProfile(depth=100))
        client.receive('/diagnostics', DiagnosticArray)
        self.stamp = 100

    def drive_to(self, x: float, *, odom_at: float = 10.0, value: int = 40) -> None:
        """Send transforms about the next second, and its image, until the node has considered
        it."""
        self.stamp += 1
        before = self.looked_at()
        for message in seed_messages(stamp=self.stamp, value=value):
            kind = 'camera_info' if hasattr(message, 'k') else 'image'
            kind = 'depth' if getattr(message, 'encoding', '') == '32FC1' else kind
            self.client.send(kind, message)
        self._tf.publish(
            TFMessage(
                transforms=[
                    transform_message('map', 'odom', shifted(odom_at), float(self.stamp)),
                    transform_message('odom', 'base_link', shifted(x), float(self.stamp)),
                ]
            )
        )
        self.client.until(lambda: self.looked_at() > before)

    def metrics(self) -> dict[str, str]:
        """Return the values of the newest diagnostics."""
        messages = self.client.received['/diagnostics']
        count = len(messages)
        self.client.until(lambda: len(messages) > count)
        return {value.key: value.value for value in messages[-1].status[0].values}

    def looked_at(self) -> int:
        metrics = self.metrics()
        return sum(int(value) for key, value in metrics.items() if key.startswith('images '))

    def observed(self) -> int:
        return int(self.metrics().get('images observed', 0))


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> FilePath:
    return tmp_path_factory.mktemp('memories')


@pytest.fixture(scope='module')
def robot(ros, folder, tmp_path_factory):
    node = NodeProcess(
        tmp_path_factory.mktemp('log') / 'node.log',
        observe__pose_source='tf',
        observe__rate=20.0,
        keyframe__gain=0.0,
        tf__wait=1.0,
        diagnostics__period=0.1,
        view__period=0.2,
        memory__folder=f"'{folder}'",
        limits__max_memories=2,
        limits__max_candidates=3,
        limits__max_message_bytes=3 * 2**20,
        instant={'step_seconds': 0.0005},
    )
    with Client() as client:
        robot = Robot(client, node)
        client.connect()
        robot.drive_to(0.0)
        robot.drive_to(1.0, value=60)
        yield robot
    node.stop()


def in_odom(frames: int = 16, *, request_id: str = '', stamp: int = 0):
    message = trajectory(frames, request_id=request_id, frame_id='odom', moving_frame='base_link')
    message.header.stamp = Time(sec=stamp)
    return message


def test_paths_in_any_frame_start_from_the_driven_memory(robot):
    """Poses of the base in odom become poses of the camera in the map; the first frame is at the
    first pose."""
    assert robot.observed() == 2
    client = robot.client
    client.receive('imagined/path', Path)
    client.until(lambda: client.node.count_publishers('imagined/path'))
    client.chunks.clear()
    client.until(lambda: robot.metrics())
    client.send('trajectory', in_odom(15, request_id='odom'))
    client.until(lambda: client.chunks and client.received['imagined/path'])
    (message,) = client.chunks
    chunk = convert.chunk_from_message(message)
    assert message.world_frame == 'map' and message.header.frame_id == 'imagined/camera'
    expected = [
        shifted(10.0) @ shifted(0.05 * k) @ BASE_FROM_CAMERA for k in range(len(chunk.times))
    ]
    np.testing.assert_allclose(chunk.world_from_camera, expected, atol=1e-5)
    assert chunk.frames[0, 0, 0, 0] == 61  # of the second image, not of the first
    path = client.received['imagined/path'][0]
    assert path.header.frame_id == 'map' and len(path.poses) == len(chunk.times)
    assert path.poses[3].pose == message.poses[3]


def test_stale_and_unknown_frames_are_rejected(robot):
    robot.client.send('trajectory', in_odom(request_id='stale', stamp=50))
    robot.node.wait_for(
        "request 'stale' rejected: no transform between 'map' and 'odom' at 50.000: "
        "'odom' in 'map' is known from 101.000 to"
    )
    mars = trajectory(16, request_id='lost', frame_id='mars')
    robot.client.send('trajectory', mars)
    robot.node.wait_for("request 'lost' rejected: no transforms join 'mars' to 'map'")


def test_scores(robot):
    request = ScoreTrajectories.Request(
        trajectories=[in_odom(4, request_id='a'), trajectory(2, request_id='b')], threshold=0.5
    )
    response = robot.client.call(ScoreTrajectories, 'score_trajectories', request)
    assert response.success, response.message
    assert [score.request_id for score in response.scores] == ['a', 'b']
    assert [len(score.observed) for score in response.scores] == [5, 3]
    assert response.scores[0].observed_ends == -1
    for bad, why in (
        ([], '0 candidates'),
        ([in_odom()] * 4, '4 candidates, limits.max_candidates is 3'),
        ([trajectory(4, frame_id='mars')], "'mars'"),
    ):
        request = ScoreTrajectories.Request(trajectories=bad)
        response = robot.client.call(ScoreTrajectories, 'score_trajectories', request)
        assert not response.success and why in response.message, response.message
    request = ScoreTrajectories.Request(trajectories=[in_odom()], threshold=float('nan'))
    response = robot.client.call(ScoreTrajectories, 'score_trajectories', request)
    assert 'threshold: is nan' in response.message


def test_candidates(robot):
    action = ActionClient(robot.client.node, ImagineCandidates, 'imagine_candidates')
    robot.client.until(action.server_is_ready)
    goal = ImagineCandidates.Goal(
        trajectories=[in_odom(n - 1, request_id=f'{n}') for n in (20, 16, 3)],
        seeds=[3, 4, 5],
        goal_image=[seed_messages()[0]],
    )
    sent = Goal(robot.client, goal, action)
    robot.client.until(lambda: sent.feedback and sent.feedback[-1].candidates_done == 3)
    status, result = sent.result()
    assert status == GoalStatus.STATUS_SUCCEEDED, result.message
    assert [c.request_id for c in result.candidates] == ['20', '16', '3']
    assert [[len(m.times) for m in c.chunks] for c in result.candidates] == [[16, 4], [16], [3]]
    assert [c.goal_distance for c in result.candidates] == [0.0, 1.0, 2.0]

    robot.client.chunks.clear()
    for n, seed, candidate in zip((20, 16, 3), (3, 4, 5), result.candidates):
        one = Imagine.Goal(trajectory=in_odom(n - 1), seed=seed)
        assert robot.client.goal(one).result()[0] == GoalStatus.STATUS_SUCCEEDED
        robot.client.until(lambda: len(robot.client.chunks) == len(candidate.chunks))
        for alone, together in zip(robot.client.chunks, candidate.chunks):
            assert alone.frames == together.frames and alone.poses == together.poses
        robot.client.chunks.clear()

    goal.last_frame_only = True
    _, result = Goal(robot.client, goal, action).result()
    assert [len(c.chunks[0].times) for c in result.candidates] == [1, 1, 1]

    long = ImagineCandidates.Goal(trajectories=[in_odom(511)], steps=1000, last_frame_only=True)
    replaced = Goal(robot.client, long, action)
    long.replace_older = True
    running = Goal(robot.client, long, action)
    status, result = replaced.result()
    assert status == GoalStatus.STATUS_ABORTED and 'replaced by the newer' in result.message
    waits = ImagineCandidates.Goal(trajectories=goal.trajectories, deadline=1e-6)
    status, result = Goal(robot.client, waits, action).result()
    assert status == GoalStatus.STATUS_ABORTED and 'deadline' in result.message
    assert [c.request_id for c in result.candidates] == ['20', '16', '3']
    assert not any(c.complete or c.chunks for c in result.candidates)
    running.cancel()
    assert running.result()[0] == GoalStatus.STATUS_CANCELED

    for change, why in (
        ({'trajectories': []}, '0 candidates'),
        ({'trajectories': [in_odom()] * 4}, 'limits.max_candidates is 3'),
        ({'seeds': [1, 2]}, 'seeds: 2 for 3 candidates'),
        ({'resolution': 7}, 'resolution: 7, must be'),
        ({'deadline': float('nan')}, 'deadline'),
        ({'memory': 'none'}, "memory 'none' does not exist"),
        (
            {'trajectories': [in_odom(511)] * 3},
            '3 candidates with 1536 frames in total take about 5.6 MiB (jpeg), '
            'limits.max_message_bytes allows 3.0',
        ),
    ):
        bad = ImagineCandidates.Goal(trajectories=goal.trajectories)
        for name, value in change.items():
            setattr(bad, name, value)
        status, result = Goal(robot.client, bad, action).result()
        assert status == GoalStatus.STATUS_ABORTED and why in result.message, result.message


def test_too_large_results_end_with_the_complete_candidates(robot):
    """Compressed noise takes more than a sixteenth of its raw bytes."""
    action = ActionClient(robot.client.node, ImagineCandidates, 'imagine_candidates')
    robot.client.until(action.server_is_ready)
    image, camera_info, depth = seed_messages(stamp=robot.stamp)
    noise = np.random.default_rng(0).integers(0, 150, len(image.data), dtype=np.uint8)
    image.data = array('B', noise.tobytes())
    goal = ImagineCandidates.Goal(
        trajectories=[in_odom(149) for _ in range(3)], seed_image=[image], seed_depth=[depth]
    )
    goal.trajectories[0].camera_info = [camera_info]
    status, result = Goal(robot.client, goal, action).result()
    assert status == GoalStatus.STATUS_ABORTED
    assert '1 of 3 candidates fill the result: limits.max_message_bytes' in result.message
    assert [len(c.chunks) for c in result.candidates] == [10, 0, 0]
    assert [c.complete for c in result.candidates] == [True, False, False]


def test_prediction(robot):
    ask = lambda **what: robot.client.call(  # noqa: E731
        PredictSeconds, 'predict_seconds', PredictSeconds.Request(**what)
    )
    assert ask(candidates=2, path_seconds=4.0).success
    for bad in (float('nan'), float('inf'), 1e30, -1.0):
        assert 'path_seconds' in ask(candidates=1, path_seconds=bad).message
    assert 'candidates' in ask(candidates=0, path_seconds=1.0).message


def test_imagined_points_are_kept_with_keep_in(robot):
    keep = Imagine.Goal(trajectory=in_odom(), keep_in='a_branch')
    assert robot.client.goal(keep).result()[0] == GoalStatus.STATUS_SUCCEEDED
    again = Imagine.Goal(trajectory=in_odom(), memory='a_branch')
    assert robot.client.goal(again).result()[0] == GoalStatus.STATUS_SUCCEEDED
    long = [Imagine.Goal(trajectory=in_odom(511), steps=1000, keep_in=name) for name in 'bc']
    waits = [robot.client.goal(goal) for goal in long]
    for goal, why in (
        # of the two that there is room for one is there and one is being made
        (waits[1], "memory 'c': there is no room for it, limits.max_memories is 2"),
        (Imagine.Goal(trajectory=in_odom(), memory='none'), "memory 'none' does not exist"),
        (Imagine.Goal(trajectory=in_odom(), keep_in='../x'), "keep_in: '../x' is not a name"),
    ):
        sent = goal if isinstance(goal, Goal) else robot.client.goal(goal)
        status, result = sent.result()
        assert status == GoalStatus.STATUS_ABORTED and why in result.message
    waits[0].cancel()
    assert waits[0].result()[0] == GoalStatus.STATUS_CANCELED
    forgotten = robot.client.call(
        ResetMemory, 'reset_memory', ResetMemory.Request(memory='a_branch')
    )
    assert forgotten.success


def test_views_are_published_to_subscribers(robot):
    robot.client.receive('memory/points', PointCloud2)
    robot.client.receive('memory/coverage', OccupancyGrid)
    robot.client.until(
        lambda: robot.client.received['memory/points'] and robot.client.received['memory/coverage']
    )
    assert robot.client.received['memory/points'][0].header.frame_id == 'map'
    assert 100 in robot.client.received['memory/coverage'][0].data


def test_pause_and_resume(robot):
    robot.client.call(Trigger, 'pause_observing')
    before = robot.observed()
    robot.drive_to(3.0)
    assert robot.observed() == before
    robot.client.call(Trigger, 'resume_observing')
    robot.drive_to(3.0)
    assert robot.observed() == before + 1


def test_save_reset_and_load_inside_the_folder(robot, folder):
    def file(service: str, name: str, memory: str = '') -> MemoryFile.Response:
        request = MemoryFile.Request(file=name, memory=memory)
        return robot.client.call(MemoryFile, service, request)

    assert file('save_memory', 'drive.npz').success
    assert (folder / 'drive.npz').is_file()
    (folder / 'link.npz').symlink_to('/etc/passwd')
    for service in ('save_memory', 'load_memory'):
        for name in ('../drive.npz', '/etc/passwd', '', '.hidden', 'a/b'):
            assert 'is not a name' in file(service, name).message
        assert 'leads out of' in file(service, 'link.npz').message
    assert 'does not exist' in file('load_memory', 'nothing.npz').message
    assert robot.client.call(ResetMemory, 'reset_memory').success
    asked = ScoreTrajectories.Request(trajectories=[in_odom(4)])
    assert not robot.client.call(ScoreTrajectories, 'score_trajectories', asked).success
    assert file('load_memory', 'drive.npz').success
    assert robot.client.call(ScoreTrajectories, 'score_trajectories', asked).success
    asked.memory = 'one'
    refused = robot.client.call(ScoreTrajectories, 'score_trajectories', asked)
    assert refused.message.startswith("memory 'one' does not exist")
    assert file('load_memory', 'drive.npz', 'one').success
    assert robot.client.call(ScoreTrajectories, 'score_trajectories', asked).success
    assert file('load_memory', 'drive.npz', 'two').success
    assert 'max_memories is 2' in file('load_memory', 'drive.npz', 'three').message


def away(robot, memory: str) -> float:
    """Return the distance along x from the map's origin to a memory's camera, as the instant
    engine scores it [m]."""
    request = ScoreTrajectories.Request(trajectories=[trajectory(2)], memory=memory)
    response = robot.client.call(ScoreTrajectories, 'score_trajectories', request)
    assert response.success, response.message
    return response.scores[0].mean_age


def test_loop_closure_reanchors_memories_that_were_not_loaded(robot):
    """The driven memory and its kept copies are re-anchored, loaded ones are not."""
    client = robot.client
    client.call(ResetMemory, 'reset_memory', ResetMemory.Request(memory='two'))
    robot.drive_to(4.0)
    keep = Imagine.Goal(trajectory=in_odom(), keep_in='branch')
    assert client.goal(keep).result()[0] == GoalStatus.STATUS_SUCCEEDED
    keep = Imagine.Goal(trajectory=in_odom(511), keep_in='branch', steps=1000)
    running = client.goal(keep)
    before = {name: away(robot, name) for name in ('', 'branch', 'one')}
    robot.drive_to(4.0, odom_at=11.5)
    jump = "'odom' jumped in 'map' by 1.50 m and 0.000 rad"
    robot.node.wait_for(f'{jump}: re-anchored: branch, driven; unchanged because loaded: one')
    assert int(robot.metrics()['jumps']) == 1
    status, result = running.result()
    assert status == GoalStatus.STATUS_ABORTED
    assert result.message.startswith(f'cancelled: {jump} while it ran'), result.message
    after = {name: away(robot, name) for name in before}
    for name in ('', 'branch'):
        assert after[name] == pytest.approx(before[name] + 1.5, abs=1e-5)
    assert after['one'] == before['one']


def test_bad_transforms_and_images_are_rejected_and_counted(robot):
    broken = transform_message('map', 'odom', shifted(0.0), 200.0)
    broken.transform.rotation.w = float('nan')
    robot._tf.publish(TFMessage(transforms=[broken]))
    robot.node.wait_for("tf rejected: transform of 'odom' in 'map'")
    image = seed_messages()[0]
    image.data = array('B', [1, 2, 3])
    robot.client.send('image', image)
    robot.node.wait_for('image rejected: image: 3 bytes')
    assert int(robot.metrics()['messages rejected']) > 1
