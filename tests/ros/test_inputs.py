"""The node names inputs that do not come, come late or come under another name."""

from __future__ import annotations

from array import array
import time

import cv2
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Odometry, Path
import numpy as np
from processes import Client, seed_messages, trajectory
import pytest
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from tf2_msgs.msg import TFMessage

from mirage_ros.convert import stamp

BEST_EFFORT = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
MOUNT = '[0.2, 0.0, 0.5, -0.5, 0.5, -0.5, 0.5]'


def publish_camera(client: Client, time_of_image: float, **seed) -> None:
    """Send a camera's messages with a stamp several times, as its topics are best effort."""
    for _ in range(5):
        for kind, message in zip(('image', 'camera_info', 'depth'), seed_messages(**seed)):
            message.header.stamp = stamp(time_of_image)
            client.send(kind, message)
        client.spin(0.1)


def test_silent_inputs_are_named_with_what_is_published(ros, start_node):
    """The causes are a name that is not remapped, another type, and an incompatible QoS."""
    driver = Node('driver')
    for topic, kind, qos in (
        ('/camera/color/image_raw', Image, BEST_EFFORT),
        ('/camera/color/image_raw/compressed', CompressedImage, 10),
        ('camera_info', CameraInfo, BEST_EFFORT),
        ('/robot/odometry', PoseStamped, 10),
        ('/tf', TFMessage, BEST_EFFORT),
    ):
        driver.create_publisher(kind, topic, qos)
    node = start_node(
        startup_patience=2.0,
        observe__pose_source='odometry',
        remappings={'odometry': '/robot/odometry'},
        qos__sensor__reliability='reliable',
        frames__base_form_camera=MOUNT,
    )
    for text in (
        'image: nothing came in 2 s; the topic is /image (sensor_msgs/msg/Image, reliable '
        'volatile): nobody publishes it; published of its type: ',
        '/camera/color/image_raw (best effort volatile)',
        '/camera/color/image_raw/compressed (sensor_msgs/msg/CompressedImage, reliable volatile)',
        'camera_info: nothing came in 2 s; the topic is /camera_info (sensor_msgs/msg/CameraInfo, '
        "reliable volatile): 'driver' publishes it as best effort volatile, which this "
        'subscription cannot receive',
        "'driver' publishes it as geometry_msgs/msg/PoseStamped",
        "New publisher discovered on topic '/tf', offering incompatible QoS. No messages will be",
        'parameter frames.base_form_camera: unknown and ignored, did you mean '
        'frames.base_from_camera?',
    ):
        node.wait_for(text, 60.0)
    driver.destroy_node()


def test_old_images_are_rejected_with_both_stamps(client, start_node):
    node = start_node()
    client.publisher('path', Path)
    client.connect()
    now = time.time()
    publish_camera(client, now - 3600.0)
    client.send('trajectory', trajectory(16, request_id='old'))
    node.wait_for("request 'old' rejected: image: the newest has the stamp ")
    assert f'{now - 3600.0:.3f}, 36' in node.says() and 'request.max_age is 30 s' in node.says()
    publish_camera(client, time.time())
    client.send('trajectory', trajectory(16, request_id='new'))
    client.until(lambda: client.chunks)
    assert [chunk.request_id for chunk in client.chunks] == ['new']


def test_images_without_depth_are_logged_while_driving(client, start_node):
    """A depth image 50 ms late does not belong to the image; best effort odometry is received."""
    client.publishers.pop('depth')
    client.publisher('depth', Image)
    odometry = client.node.create_publisher(Odometry, 'odometry', BEST_EFFORT)
    node = start_node(
        observe__pose_source='odometry', observe__rate=20.0, frames__base_from_camera=MOUNT
    )
    client.connect()

    def drive(late: float) -> None:
        now = time.time()
        message = Odometry(child_frame_id='base_link')
        message.header.frame_id, message.header.stamp = 'map', stamp(now)
        message.pose.pose.orientation.w = 1.0
        odometry.publish(message)
        for kind, sent in zip(('image', 'camera_info', 'depth'), seed_messages()):
            sent.header.stamp = stamp(now + late * (kind == 'depth'))
            client.send(kind, sent)
        client.spin(0.1)

    def logged(text: str) -> bool:
        return text in node.says()

    client.until(lambda: drive(0.05) or logged('0.050 s away; sensors.stamp_tolerance is 0.02 s'))
    assert 'image not observed: depth: none belongs to the image at' in node.says()

    def imagined() -> bool:
        drive(0.0)
        client.send('trajectory', trajectory(16, request_id='from the memory'))
        return bool(client.chunks)

    client.until(imagined)
    assert "from memory 'driven'" in node.says()


def compressed(pixels: np.ndarray, kind: str, head: bytes = b'') -> CompressedImage:
    png = head + cv2.imencode('.png', pixels)[1].tobytes()
    return CompressedImage(format=kind, data=array('B', png))


@pytest.mark.parametrize('own', [False, True], ids=['base topic', 'own remapping'])
def test_compressed_topics_follow_the_remapped_name(client, start_node, own):
    """The names are those of image_transport; a remapping of the compressed name itself goes
    first."""
    image = '/other/packed' if own else '/camera/color/image_rect/compressed'
    depth = '/camera/depth/image/compressedDepth'
    rules = {'image': '/camera/color/image_rect', 'depth': '/camera/depth/image'}
    if own:
        rules['image/compressed'] = image
    for name in ('image', 'depth'):
        client.publishers.pop(name)
    client.publisher(image, CompressedImage)
    client.publisher(depth, CompressedImage)
    start_node(sensors__transport='compressed', remappings=rules)
    client.connect()
    _, info, _ = seed_messages()
    colour = compressed(np.full((96, 160, 3), 40, np.uint8), 'rgb8; png compressed bgr8')
    metres = compressed(
        np.full((96, 160), 2000, np.uint16), '16UC1; compressedDepth png', bytes(12)
    )

    def imagined() -> bool:
        for topic, message in ((image, colour), (depth, metres), ('camera_info', info)):
            message.header = info.header
            client.send(topic, message)
        client.send('trajectory', trajectory(16, request_id='packed'))
        client.spin(0.2)
        return bool(client.chunks)

    client.until(imagined)
    assert client.chunks[0].frames[0].data[0] == 41
