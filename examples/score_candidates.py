"""Ask a running node which of three turns stays in view of its memory.

The node must observe while it drives, so that there is a memory: set its parameter
observe.pose_source.
"""

from __future__ import annotations

import math

from geometry_msgs.msg import Pose
from mirage.msg import PlannedTrajectory
from mirage.srv import ScoreTrajectories
import rclpy
from rclpy.duration import Duration
from std_msgs.msg import Header

TURNS = {'left': 0.3, 'straight': 0.0, 'right': -0.3}
"""Radians a second."""
POSES, SECONDS, SPEED = 17, 2.0, 0.5


def main() -> int:
    rclpy.init()
    node = rclpy.create_node('scorer')
    client = node.create_client(ScoreTrajectories, 'score_trajectories')
    client.wait_for_service()
    now = node.get_clock().now()
    request = ScoreTrajectories.Request(threshold=0.5)
    for name, turn in TURNS.items():
        path = PlannedTrajectory(header=Header(frame_id='map'), moving_frame='base_link')
        path.request_id = name
        x = y = yaw = 0.0
        for step in range(POSES):
            pose = Pose()
            pose.position.x, pose.position.y = x, y
            pose.orientation.z, pose.orientation.w = math.sin(yaw / 2), math.cos(yaw / 2)
            path.poses.append(pose)
            path.times.append((now + Duration(seconds=step * SECONDS / (POSES - 1))).to_msg())
            yaw += turn * SECONDS / (POSES - 1)
            x += SPEED * math.cos(yaw) * SECONDS / (POSES - 1)
            y += SPEED * math.sin(yaw) * SECONDS / (POSES - 1)
        request.trajectories.append(path)
    future = client.call_async(request)
    rclpy.spin_until_future_complete(node, future)
    response = future.result()
    if not response.success:
        print(f'not scored: {response.message}')
    for score in response.scores:
        observed = sum(score.observed) / len(score.observed)
        print(f'{score.request_id}: {observed:.0%} of the view was observed')
    rclpy.shutdown()
    return 0 if response.success else 1


if __name__ == '__main__':
    raise SystemExit(main())
