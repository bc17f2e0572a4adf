"""Prompt, guidance, camera and further images of a goal, through the node to the chunk."""

from __future__ import annotations

from action_msgs.msg import GoalStatus
from mirage import msg as mirage_msgs
from mirage.action import Imagine, ImagineCandidates
import numpy as np
from processes import seed_messages, trajectory
from rclpy.action import ActionClient
from sensor_msgs.msg import CameraInfo

from mirage_ros import convert


def goal_with_image(**fields) -> Imagine.Goal:
    image, camera_info, depth = seed_messages(value=40)
    goal = Imagine.Goal(seed_image=[image], seed_depth=[depth], **fields)
    goal.trajectory = trajectory(16)
    goal.trajectory.camera_info = [camera_info]
    return goal


def posed_image(value: int, **changes) -> mirage_msgs.PosedImage:
    image, camera_info, depth = seed_messages(value=value, **changes)
    posed = mirage_msgs.PosedImage(image=image, camera_info=camera_info, depth=[depth])
    posed.pose = trajectory(16).poses[0]
    return posed


def zoomed(size: int = 1) -> CameraInfo:
    """Return a camera of twice the focal length and of ``size`` times the model's frame."""
    _, camera_info, _ = seed_messages(height=96 * size, width=160 * size)
    camera_info.k[0] = camera_info.k[4] = 160.0 * size
    return camera_info


def test_goals_bring_prompt_and_camera(client, start_node):
    start_node()
    client.connect()
    goal = goal_with_image(prompt='a room', guidance=2.0, target_camera=[zoomed(2)])
    status, result = client.goal(goal).result()
    assert status == GoalStatus.STATUS_SUCCEEDED, result.message
    client.until(lambda: client.chunks)
    (chunk,) = client.chunks
    assert chunk.prompt == 'a room' and chunk.header.frame_id == 'imagined/camera'
    K = convert.chunk_from_message(chunk).K
    np.testing.assert_allclose(K, [[160, 0, 79.5], [0, 160, 47.5], [0, 0, 1]], atol=1e-4)

    one = goal_with_image()
    candidates = ImagineCandidates.Goal(
        trajectories=[one.trajectory],
        seed_image=one.seed_image,
        seed_depth=one.seed_depth,
        prompt='a hall',
        target_camera=[zoomed()],
    )
    action = ActionClient(client.node, ImagineCandidates, 'imagine_candidates')
    client.until(action.server_is_ready)
    status, result = client.goal(candidates, action).result()
    assert status == GoalStatus.STATUS_SUCCEEDED, result.message
    (chunk,) = result.candidates[0].chunks
    assert chunk.prompt == 'a hall' and chunk.camera_info.k[0] == 160.0


def test_requests_by_topic_take_the_parameters_prompt(client, start_node):
    start_node(request__prompt='a quiet room')
    client.connect()
    client.send_seed()
    client.send('trajectory', trajectory(16))
    client.until(lambda: client.chunks)
    assert client.chunks[0].prompt == 'a quiet room'


def test_further_images_are_written_before_the_seed(client, start_node):
    start_node()
    client.connect()
    goal = goal_with_image(more_images=[posed_image(90), posed_image(100)])
    sent = client.goal(goal)
    status, result = sent.result()
    assert status == GoalStatus.STATUS_SUCCEEDED, result.message
    assert sent.feedback[-1].last_frame.data[0] == 40 + 16

    goal.more_images = [posed_image(90), posed_image(100)]
    goal.more_images[1].image.encoding = '8UC7'
    _, result = client.goal(goal).result()
    assert 'rejected: more_images[1]: ' in result.message and '8UC7' in result.message
    goal.seed_image, goal.seed_depth = [], []
    _, result = client.goal(goal).result()
    assert 'rejected: more_images: 2 without seed_image' in result.message
