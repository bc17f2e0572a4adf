"""A recorded drive through the node: what it would have imagined, beside what the camera saw.

ros2 launch mirage replay.launch.py bag:=drive config:=drive.yaml out:=/tmp/replay
"""

from launch.actions import DeclareLaunchArgument, ExecuteProcess
from launch.conditions import IfCondition, UnlessCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.substitutions import ExecutableInPackage

from launch import LaunchDescription

ARGUMENTS = {
    'bag': ('', 'folder of the bag'),
    'config': ('', 'YAML file with the topics and what is imagined'),
    'out': ('out/replay/node', 'folder for the results'),
    'free_running': ('false', 'true: at the pace of the bag, to see what drops'),
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
    # it starts the node itself, and ends it
    return LaunchDescription(
        [
            *arguments,
            ExecuteProcess(cmd=command, output='screen', condition=UnlessCondition(free)),
            ExecuteProcess(
                cmd=[*command, '--free-running'], output='screen', condition=IfCondition(free)
            ),
        ]
    )
