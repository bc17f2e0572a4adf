"""Cases of poses and transforms for the readers of messages."""

from __future__ import annotations

from bag_messages import odometry, pose_message, pose_with_covariance, transforms
from message_cases import MOUNT, TIME, Case
import numpy as np

ODOMETRY = {'observe.pose_source': 'odometry'}
BASE = {'frames.base': 'base_link'}
MOUNTED = {**BASE, 'frames.base_from_camera': MOUNT}
TF = {'observe.pose_source': 'tf'}
GAP = 'a gap over 0.5 s|1 of 1 images have no pose'
SPAN = 'is known from|1 of 1 images have no pose'
POSES = [
    Case(
        'pose with covariance',
        pose=lambda time: pose_with_covariance(time, time - 90),
        node={'observe.pose_source': 'pose_with_covariance'},
    ),
    Case('pose of a mounted base', bag={'base_from_camera': MOUNT}, node=MOUNTED, x=11.0),
    Case('pose of a base without a mount', node=BASE, rejection="no transforms join 'camera' to"),
    Case(
        'pose of a base with a static mount',
        node=BASE,
        x=10.5,
        static=transforms(0.0, ('base_link', 'camera', 0.5)),
    ),
    Case(
        'mount and poses of the camera itself',
        pose=lambda t: odometry(t, t - 90, 'camera'),
        bag={'base_from_camera': MOUNT},
        node={**MOUNTED, **ODOMETRY},
        rejection="no transforms join 'base_link' to 'map'",
    ),
    Case(
        'mount that is no rotation',
        bag={'base_from_camera': (*MOUNT[:6], 0.5)},
        node={**BASE, 'frames.base_from_camera': (*MOUNT[:6], 0.5)},
        rejection='base_from_camera: the quaternion has length 0.5',
    ),
    Case(
        'odometry with slashes',
        pose=lambda t: odometry(t, t - 90, '/camera', frame='/map'),
        node=ODOMETRY,
    ),
    Case(
        'odometry in no frame',
        pose=lambda t: odometry(t, t - 90, 'camera', frame=''),
        node=ODOMETRY,
        rejection='two different frames are needed',
    ),
    Case('a hole of 5 s', sent=(TIME - 2.5, TIME + 2.5), rejection=GAP),
    Case('a hole of 0.6 s on one side', sent=(TIME - 0.1, TIME + 0.6), rejection=GAP),
    Case('image before the first pose', sent=(TIME + 0.1, TIME + 0.2), rejection=SPAN),
    Case('image after the last pose', sent=(TIME - 0.2, TIME - 0.1), rejection=SPAN),
    Case('pose at the stamp alone', sent=(TIME,)),
    Case('poses out of order', sent=(TIME + 0.25, TIME - 0.25)),
    Case('poses repeated', sent=(TIME - 0.25, TIME - 0.25, TIME + 0.25, TIME + 0.25)),
    Case(
        'a link that never moves, sent every 10 s',
        node=TF,
        x=12.0,
        sent=(TIME - 5, TIME + 5),
        pose=lambda t: transforms(t, ('map', 'camera', 12.0)),
    ),
    Case('quaternion of length 0.995', pose=lambda t: pose_message(t, t - 90, w=0.995)),
    Case(
        'transform that is not finite',
        node=TF,
        rejection='is not finite',
        pose=lambda t: transforms(t, ('map', 'camera', np.nan)),
    ),
    Case(
        'transform of a frame in itself',
        node=TF,
        rejection='two different frames are needed',
        pose=lambda t: transforms(t, ('camera', '/camera', 1.0)),
    ),
    Case(
        'transforms with slashes',
        node=TF,
        pose=lambda t: transforms(t, ('/map', '/camera', t - 90)),
    ),
    Case(
        'static mount after moving base',
        node=TF,
        x=10.5,
        pose=lambda t: transforms(t, ('map', 'base', t - 90)),
        static=transforms(0.0, ('/base', '/camera', 0.5)),
    ),
    Case(
        'odometry of the camera',
        pose=lambda time: odometry(time, time - 90, 'camera'),
        node={'observe.pose_source': 'odometry'},
    ),
    Case(
        'odometry of a mounted base',
        pose=lambda time: odometry(time, time - 90, '/base_link'),
        x=11.0,
        bag={'base_from_camera': MOUNT},
        node={
            'observe.pose_source': 'odometry',
            'frames.base': 'base_link',
            'frames.base_from_camera': MOUNT,
        },
    ),
    Case(
        'odometry without a child frame',
        pose=lambda time: odometry(time, time - 90),
        x=11.0,
        bag={'base_from_camera': MOUNT},
        node={
            'observe.pose_source': 'odometry',
            'frames.base': 'base_link',
            'frames.base_from_camera': MOUNT,
        },
    ),
    Case(
        'odometry and a static mount',
        pose=lambda time: odometry(time, time - 90, 'base_link'),
        static=transforms(0.0, ('base_link', 'camera', 0.5)),
        x=10.5,
        node={'observe.pose_source': 'odometry', 'frames.base': 'base_link'},
    ),
    Case(
        'odometry of an unknown base',
        pose=lambda time: odometry(time, time - 90, 'wheels'),
        rejection="no transforms join 'camera' to",
        node={'observe.pose_source': 'odometry', 'frames.base': 'base_link'},
    ),
    Case(
        'transforms',
        pose=lambda time: transforms(time, ('/map', 'odom', 3.0), ('odom', '/base', time - 90)),
        static=transforms(0.0, ('base', 'camera', 0.5)),
        x=13.5,
        node={'observe.pose_source': 'tf'},
    ),
    Case(
        'transforms and a mount',
        pose=lambda time: transforms(time, ('map', 'base_link', time - 90)),
        x=11.0,
        bag={'base_from_camera': MOUNT},
        node={
            'observe.pose_source': 'tf',
            'frames.base': 'base_link',
            'frames.base_from_camera': MOUNT,
        },
    ),
    Case(
        'transforms to an ancestor that is not the world',
        pose=lambda time: transforms(time, ('odom', 'map', -1.0), ('odom', 'camera', time - 90)),
        x=11.0,
        node={'observe.pose_source': 'tf'},
    ),
    Case(
        'transforms that lead elsewhere',
        pose=lambda time: transforms(time, ('earth', 'camera', 0.0)),
        rejection="no transforms join 'camera' to 'map'; the frames that are known: camera, earth",
        node={'observe.pose_source': 'tf'},
    ),
    Case(
        'quaternion of length 0.5',
        pose=lambda time: pose_message(time, 0.0, w=0.5),
        rejection='pose: the quaternion has length 0.5, not 1',
    ),
    Case(
        'position that is not finite',
        pose=lambda time: pose_message(time, np.nan),
        rejection='is not finite',
    ),
    Case(
        'position beyond 10 km',
        pose=lambda time: pose_message(time, 10_001.0),
        rejection='is further than 10 km from the origin of its frame',
    ),
    Case(
        'pose in its own frame',
        pose=lambda time: pose_message(time, 0.0, frame='camera'),
        rejection="pose of 'camera' in 'camera': two different frames are needed",
    ),
]

POSES += [
    Case(
        'two parents',
        node=TF,
        pose=lambda t: transforms(t, ('map', 'camera', 1.0), ('odom', 'camera', 2.0)),
        rejection="'camera' has the parents 'map' and 'odom': each frame may have one",
    ),
    Case(
        'two parents, one of them static',
        node=TF,
        pose=lambda t: transforms(t, ('map', 'camera', 1.0)),
        static=transforms(0.0, ('base', 'camera', 0.5)),
        rejection="'camera' has the parents 'base' and 'map'",
    ),
    Case(
        'two parents of a frame that is not on the way',
        node=TF,
        pose=lambda t: transforms(
            t, ('map', 'camera', t - 90), ('a', 'cup', 1.0), ('b', 'cup', 2.0)
        ),
    ),
    Case(
        'a pose, and another parent by static transforms',
        static=transforms(0.0, ('odom', 'camera', 7.0)),
    ),
    Case(
        'static and moving, equal',
        node=TF,
        x=10.5,
        pose=lambda t: transforms(t, ('map', 'base', t - 90), ('base', 'camera', 0.5)),
        static=transforms(0.0, ('base', 'camera', 0.5)),
    ),
    Case(
        'static and moving that differ',
        node=TF,
        pose=lambda t: transforms(t, ('map', 'base', t - 90), ('base', 'camera', 0.7)),
        static=transforms(0.0, ('base', 'camera', 0.5)),
        rejection="'camera' in 'base' is sent as a static and as a moving transform",
    ),
    Case('poses a microsecond apart', sent=(TIME - 2e-6, TIME - 1e-6), rejection=SPAN),
    Case('pose a microsecond after the image', sent=(TIME - 0.1, TIME + 1e-6)),
    Case(
        'poses stamped zero',
        sent=(0.0, 0.0),
        pose=lambda t: pose_message(0.0, 1.0),
        rejection=SPAN,
    ),
]
