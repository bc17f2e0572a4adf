"""Random messages of all input types are rejected with a reason."""

from __future__ import annotations

from array import array
import random
import re
from typing import Any

from action_msgs.msg import GoalStatus
from builtin_interfaces.msg import Time
import cv2
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from graph import check_permitted
from mirage.action import Imagine, ImagineCandidates
from mirage.srv import MemoryFile, PredictSeconds, ResetMemory, ScoreTrajectories
from nav_msgs.msg import Odometry, Path
import numpy as np
from processes import seed_messages, trajectory
from rclpy.action import ActionClient
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage
from tf2_msgs.msg import TFMessage

from mirage_ros.convert import transform_message
from mirage_ros.tools.fake_robot import Goal
from mirage_ros.transforms import LATCHED

FLOATS = (0.0, -1.0, 1e-30, 1e30, float('nan'), float('inf'), -float('inf'))
WORDS = ('', 'map', 'mars', '../x', 'rgb8', '16UC1', '32FC1', 'bayer_rggb8', 'x' * 1000, 'é\n')
INTEGER = re.compile(r'(u?)int(\d+)')


def number(kind: str, rng: random.Random) -> Any:
    if kind == 'boolean':
        return rng.random() < 0.5
    if kind in ('float', 'double'):
        return rng.choice(FLOATS[:-3] if kind == 'float' else FLOATS)
    unsigned, bits = INTEGER.fullmatch(kind).groups()
    high = 2 ** (int(bits) - (not unsigned))
    return rng.choice([0, 1, 2, 7, high - 1, 0 if unsigned else -high])


def mutate(message: Any, rng: random.Random) -> None:
    """Change one field, however deep."""
    name, kind = rng.choice(list(message.get_fields_and_field_types().items()))
    value = getattr(message, name)
    if hasattr(value, 'get_fields_and_field_types'):
        mutate(value, rng)
    elif isinstance(value, str):
        setattr(message, name, rng.choice(WORDS))
    elif isinstance(value, np.ndarray):
        value[rng.randrange(len(value))] = rng.choice(FLOATS)
    elif isinstance(value, array):
        setattr(message, name, value[: rng.choice([0, 1, len(value) // 2])])
    elif isinstance(value, (list, tuple)) or kind.startswith('sequence'):
        values = list(value)
        if values and hasattr(values[0], 'get_fields_and_field_types') and rng.random() < 0.7:
            mutate(rng.choice(values), rng)
        elif values:
            room = 1 if ', 1' in kind else 3000
            setattr(message, name, (values * 3000)[: rng.choice([0, room])])
    else:
        setattr(message, name, number(kind, rng))


def good(rng: random.Random) -> dict[str, Any]:
    """Return a valid message for each topic."""
    image, camera_info, depth = seed_messages(stamp=rng.randrange(1, 100))
    pose = PoseStamped()
    pose.header.frame_id = 'map'
    path = Path(header=pose.header, poses=[PoseStamped(), PoseStamped()])
    path.poses[1].pose.position.x = 2.0
    return {
        'image': image,
        'camera_info': camera_info,
        'depth': depth,
        'trajectory': trajectory(16),
        'path': path,
        'odometry': Odometry(header=pose.header, child_frame_id='base_link'),
        'pose': pose,
        '/tf': TFMessage(transforms=[transform_message('map', 'odom', np.eye(4), 1.0)]),
        '/tf_static': TFMessage(transforms=[transform_message('base', 'arm', np.eye(4), 0.0)]),
        '/clock': Clock(clock=image.header.stamp),
        'image/compressed': packed(image.header, np.zeros((96, 160, 3), np.uint8), 'png'),
        'depth/compressedDepth': packed(
            image.header, np.full((96, 160), 3000, np.uint16), '16UC1; compressedDepth png', 12
        ),
    }


def packed(header: Any, picture: np.ndarray, format: str, before: int = 0) -> CompressedImage:
    data = array('B', bytes(before) + cv2.imencode('.png', picture)[1].tobytes())
    return CompressedImage(header=header, format=format, data=data)


RAW, COMPRESSED = ('image', 'depth'), ('image/compressed', 'depth/compressedDepth')


def connect(client, *unheard: str) -> None:
    """Return publishers of all inputs but some, connected to a node that acts within its
    permissions."""
    for name, message in good(random.Random(0)).items():
        if name == '/tf_static':
            client.publishers[name] = client.node.create_publisher(TFMessage, name, LATCHED)
        elif name not in client.publishers and name not in unheard:
            client.publisher(name, type(message))
    client.connect(*unheard)
    check_permitted(client.node)


def send_fuzzed(client, rng: random.Random, *unheard: str) -> None:
    for _ in range(40):
        for name, message in good(rng).items():
            if name not in unheard:
                for _ in range(rng.randrange(1, 4)):
                    mutate(message, rng)
                client.send(name, message)


def good_goal_succeeds(client) -> None:
    image, camera_info, depth = seed_messages()
    goal = Imagine.Goal(seed_image=[image], seed_depth=[depth], trajectory=trajectory(16))
    goal.trajectory.camera_info = [camera_info]
    goal.trajectory.seed_pose = [goal.trajectory.poses[0]]
    status, result = client.goal(goal).result()
    assert status == GoalStatus.STATUS_SUCCEEDED, result.message


CAMERA_IS_THE_BASE = '[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]'


def test_fuzzed_messages_then_a_good_one(client, start_node):
    rng = random.Random(0)
    node = start_node(
        observe__pose_source='odometry',
        observe__rate=50.0,
        tf__wait=0.0,
        frames__base_from_camera=CAMERA_IS_THE_BASE,
        memory__start_from_driven=False,
    )
    unheard = ('pose', '/clock', *COMPRESSED)
    connect(client, *unheard)
    candidates = ActionClient(client.node, ImagineCandidates, 'imagine_candidates')
    client.until(candidates.server_is_ready)
    services = {
        'score_trajectories': (ScoreTrajectories, {'trajectories': [trajectory(4)]}),
        'predict_seconds': (PredictSeconds, {'candidates': 1, 'path_seconds': 1.0}),
        'save_memory': (MemoryFile, {'file': 'a'}),
        'load_memory': (MemoryFile, {'file': 'a'}),
        'reset_memory': (ResetMemory, {'memory': 'a'}),
    }
    send_fuzzed(client, rng, *unheard)
    image, camera_info, depth = seed_messages()
    for _ in range(15):
        goal = Imagine.Goal(seed_image=[image], seed_depth=[depth], trajectory=trajectory(16))
        goal.trajectory.camera_info = [camera_info]
        several = ImagineCandidates.Goal(trajectories=[goal.trajectory] * 2, goal_image=[image])
        for action, message in ((client.action, goal), (candidates, several)):
            mutate(message, rng)
            status, result = Goal(client, message, action).result()
            assert status == GoalStatus.STATUS_SUCCEEDED or result.message
        for name, (kind, fields) in services.items():
            request = kind.Request(**fields)
            mutate(request, rng)
            response = client.call(kind, name, request)
            assert response.success or response.message
        image, camera_info, depth = seed_messages()
    good_goal_succeeds(client)
    said = node.says()
    assert 'rejected' in said and 'Traceback' not in said, said


def test_fuzzed_compressed_messages_in_simulated_time(client, start_node):
    """The clock is fuzzed too; the node's timers follow it afterwards."""
    rng = random.Random(0)
    node = start_node(
        observe__pose_source='pose',
        sensors__transport='compressed',
        use_sim_time=True,
        tf__wait=0.0,
        frames__base_from_camera=CAMERA_IS_THE_BASE,
        memory__start_from_driven=False,
    )
    unheard = ('odometry', *RAW)
    client.receive('/diagnostics', DiagnosticArray)
    connect(client, *unheard)
    send_fuzzed(client, rng, *unheard)
    good_goal_succeeds(client)
    second = 5000

    def observed_by_the_clock() -> bool:
        nonlocal second
        second += 1
        messages = good(rng)
        messages['pose'].header.frame_id = 'map'
        for name in ('camera_info', 'pose', *COMPRESSED):
            messages[name].header.stamp = Time(sec=second)
            client.send(name, messages[name])
        client.send('/clock', Clock(clock=Time(sec=second)))
        told = [
            message.header.stamp.sec > 5000
            and any(value.key == 'images observed' for value in message.status[0].values)
            for message in client.received['/diagnostics']
        ]
        return any(told)

    client.until(observed_by_the_clock)
    said = node.says()
    assert 'rejected' in said and 'Traceback' not in said, said
