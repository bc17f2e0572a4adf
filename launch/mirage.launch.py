"""The node, with the DDS profile that large images need.

ros2 launch mirage mirage.launch.py namespace:=robot1 image:=/robot1/camera/image_rect
"""

from pathlib import Path

from launch.actions import DeclareLaunchArgument, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchDescription

CONFIG = Path(__file__).resolve().parents[1] / 'config'

ARGUMENTS = {
    'namespace': ('', 'of the node and its topics'),
    'params_file': (str(CONFIG / 'mirage.yaml'), 'YAML file with parameters'),
    'model_folder': ('', 'folder with weights; empty: mirage-tiny'),
    'device': ('cpu', 'cpu, cuda or cuda:N'),
    'dds_profile': (str(CONFIG / 'fastdds.xml'), 'profile for Fast DDS'),
    'log_level': ('info', 'debug, info, warn or error'),
}
TOPICS = ('image', 'camera_info', 'depth', 'trajectory', 'path', 'imagine')


def generate_launch_description() -> LaunchDescription:
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    remappings = [
        DeclareLaunchArgument(
            topic, default_value=topic, description=f'name of the {topic} topic or action'
        )
        for topic in TOPICS
    ]
    profile = SetEnvironmentVariable(
        'FASTRTPS_DEFAULT_PROFILES_FILE', LaunchConfiguration('dds_profile')
    )
    node = Node(
        package='mirage',
        executable='mirage_node',
        name='mirage',
        namespace=LaunchConfiguration('namespace'),
        parameters=[
            LaunchConfiguration('params_file'),
            {name: LaunchConfiguration(name) for name in ('model_folder', 'device')},
        ],
        remappings=[(topic, LaunchConfiguration(topic)) for topic in TOPICS],
        arguments=['--ros-args', '--log-level', LaunchConfiguration('log_level')],
        output='screen',
    )
    return LaunchDescription([*arguments, *remappings, profile, node])
