"""Run the demo: a simulated world, the node, and a video of the imagined frames.

ros2 launch mirage demo.launch.py out:=/tmp/mirage
"""

from launch.actions import DeclareLaunchArgument, ExecuteProcess
from launch.substitutions import LaunchConfiguration
from launch_ros.substitutions import ExecutableInPackage

from launch import LaunchDescription

ARGUMENTS = {
    'out': ('out/demo', 'Folder for the video, the contact sheet and summary.json.'),
    'model_folder': ('', 'Folder with the weights; empty for mirage-tiny.'),
    'labeller': ('', 'Folder of a labeller of dynamic objects; empty for that of the model.'),
    'device': ('cpu', 'Torch device: cpu, cuda or cuda:N.'),
}


def generate_launch_description() -> LaunchDescription:
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    command = [ExecutableInPackage(package='mirage', executable='mirage_demo')]
    for name in ARGUMENTS:
        command += [f'--{name.replace("_", "-")}', LaunchConfiguration(name)]
    # it starts and ends the node itself
    return LaunchDescription([*arguments, ExecuteProcess(cmd=command, output='screen')])
