"""Replay a recording through the node and compare imagined with recorded frames.

ros2 launch mirage replay.launch.py bag:=drive config:=drive.yaml out:=/tmp/replay
"""

from launch.actions import DeclareLaunchArgument, ExecuteProcess
from launch.conditions import IfCondition, UnlessCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.substitutions import ExecutableInPackage

from launch import LaunchDescription

ARGUMENTS = {
    'bag': ('', 'Folder of the bag.'),
    'config': ('', 'YAML file with the topics and the options of the replay.'),
    'out': ('out/replay/node', 'Folder for the results.'),
    'free_running': ('false', 'true to play the bag in real time and count what is dropped.'),
}


def generate_launch_description() -> LaunchDescription:
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    command = [ExecutableInPackage(package='mirage', executable='mirage_replay_node')]
    command += [LaunchConfiguration('bag')]
    for name in ('config', 'out'):
        command += [f'--{name}', LaunchConfiguration(name)]
    free = LaunchConfiguration('free_running')
    # it starts and ends the node itself
    return LaunchDescription(
        [
            *arguments,
            ExecuteProcess(cmd=command, output='screen', condition=UnlessCondition(free)),
            ExecuteProcess(
                cmd=[*command, '--free-running'], output='screen', condition=IfCondition(free)
            ),
        ]
    )
