"""Ask a running node what the camera would see two metres ahead: python examples/plan_ahead.py"""

from __future__ import annotations

from geometry_msgs.msg import Pose
from mirage.action import Imagine
from mirage.msg import ImaginedChunk, PlannedTrajectory
import rclpy
from rclpy.action import ActionClient
from rclpy.duration import Duration
from std_msgs.msg import Header

SECONDS = 4.0


def main() -> int:
    rclpy.init()
    node = rclpy.create_node('planner')
    imagine = ActionClient(node, Imagine, 'imagine')
    chunks: list[ImaginedChunk] = []
    node.create_subscription(ImaginedChunk, 'imagined/chunk', chunks.append, 10)
    imagine.wait_for_server()

    now = node.get_clock().now()
    path = PlannedTrajectory(header=Header(frame_id='map'), moving_frame='base_link')
    for step in range(3):  # 0, 1 and 2 metres along x
        pose = Pose()
        pose.position.x = float(step)
        path.poses.append(pose)
        path.times.append((now + Duration(seconds=SECONDS * step / 2)).to_msg())

    goal = imagine.send_goal_async(Imagine.Goal(trajectory=path))
    rclpy.spin_until_future_complete(node, goal)
    if not goal.result().accepted:
        print('the node serves as many goals as it may: ask again later')
        return 1
    answer = goal.result().get_result_async()
    rclpy.spin_until_future_complete(node, answer)
    result = answer.result().result
    while len(chunks) < result.chunks:  # they come by topic, while the action gives the outcome
        rclpy.spin_once(node, timeout_sec=1.0)
    for chunk in chunks:
        observed = sum(chunk.observed) / len(chunk.observed)
        print(
            f'chunk {chunk.index + 1} of {chunk.count}: {len(chunk.times)} frames, '
            f'observed {observed:.0%}'
        )
    if not result.complete:
        print(f'not imagined to the end: {result.message}')
    rclpy.shutdown()
    return 0 if result.complete else 1


if __name__ == '__main__':
    raise SystemExit(main())
