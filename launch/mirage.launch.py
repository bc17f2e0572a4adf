"""Start the node with the DDS profile that large images need, and a viewer if wanted.

ros2 launch mirage mirage.launch.py namespace:=robot1 image:=/robot1/image_rect viewer:=rerun
"""

from pathlib import Path

from launch.actions import DeclareLaunchArgument, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.substitutions import EqualsSubstitution, LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchDescription

CONFIG = Path(__file__).resolve().parents[1] / 'config'

ARGUMENTS = {
    'namespace': ('', 'Namespace of the node and its topics.'),
    'params_file': (str(CONFIG / 'mirage.yaml'), 'YAML file with parameters.'),
    'model_folder': ('', 'Folder with the weights; empty for mirage-tiny.'),
    'device': ('cpu', 'Torch device: cpu, cuda or cuda:N.'),
    'autostart': ('true', 'Configure and activate; false leaves that to a lifecycle manager.'),
    'use_sim_time': ('false', 'Take the time from /clock.'),
    'viewer': (
        'none',
        'none, or rerun to show the memory, the path, and imagined and observed frames in Rerun.',
    ),
    'dds_profile': (str(CONFIG / 'fastdds.xml'), 'XML profile for Fast DDS.'),
    'log_level': ('info', 'Log level: debug, info, warn or error.'),
}
PARAMETERS = {
    'model.folder': 'model_folder',
    'model.device': 'device',
    'autostart': 'autostart',
    'use_sim_time': 'use_sim_time',
}
"""Launch arguments by the ROS parameters that they set."""
TOPICS = (
    'image',
    'camera_info',
    'depth',
    'odometry',
    'pose',
    '/tf',
    '/tf_static',
    'trajectory',
    'path',
    'imagine',
    'imagine_candidates',
)


def name_of(topic: str) -> str:
    """Return the launch argument that remaps a topic."""
    return topic.removeprefix('/')


def generate_launch_description() -> LaunchDescription:
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    names = [
        DeclareLaunchArgument(
            name_of(topic),
            default_value=topic,
            description=f'Name of the topic or action {topic}.',
        )
        for topic in TOPICS
    ]
    remappings = [(topic, LaunchConfiguration(name_of(topic))) for topic in TOPICS]
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
            {name: LaunchConfiguration(argument) for name, argument in PARAMETERS.items()},
        ],
        remappings=remappings,
        arguments=['--ros-args', '--log-level', LaunchConfiguration('log_level')],
        output='screen',
    )
    viewer = Node(
        package='mirage',
        executable='mirage_viewer',
        name='mirage_viewer',
        namespace=LaunchConfiguration('namespace'),
        parameters=[{'use_sim_time': LaunchConfiguration('use_sim_time')}],
        remappings=remappings,
        condition=IfCondition(EqualsSubstitution(LaunchConfiguration('viewer'), 'rerun')),
        output='screen',
    )
    return LaunchDescription([*arguments, *names, profile, node, viewer])
