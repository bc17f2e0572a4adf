"""The demo: a simulated world, the node, and a film of what was imagined.

ros2 launch mirage demo.launch.py out:=/tmp/mirage
"""

from launch.actions import DeclareLaunchArgument, ExecuteProcess
from launch.substitutions import LaunchConfiguration
from launch_ros.substitutions import ExecutableInPackage

from launch import LaunchDescription

ARGUMENTS = {
    'out': ('out/demo', 'folder for the film, the contact sheet and summary.json'),
    'model_folder': ('', 'folder with weights; empty: mirage-tiny'),
    'device': ('cpu', 'cpu, cuda or cuda:N'),
}


def generate_launch_description() -> LaunchDescription:
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    command = [ExecutableInPackage(package='mirage', executable='mirage_demo')]
    for name in ARGUMENTS:
        command += [f'--{name.replace("_", "-")}', LaunchConfiguration(name)]
    # it starts the node itself, and ends it
    return LaunchDescription([*arguments, ExecuteProcess(cmd=command, output='screen')])
