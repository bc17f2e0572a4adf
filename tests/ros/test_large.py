"""Chunks of 32 frames of 704x1280, 85 MiB raw, pass through real DDS compressed."""

from __future__ import annotations

import time

import numpy as np
from processes import seed_messages, trajectory
from sensor_msgs.msg import Image

from mirage_ros import convert

HEIGHT, WIDTH, FRAMES = 704, 1280, 32


def photograph_like() -> np.ndarray:
    """Return smooth shapes with some grain, which JPEG compresses about as a photograph."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    picture = (
        60 + 40 * np.sin(x / 37)[..., None] + 30 * np.cos(y / 23 + x / 90)[..., None] + [0, 15, 30]
    )
    return (picture + rng.normal(scale=4, size=picture.shape)).clip(0, 180).astype(np.uint8)


def large_seed(client):
    image, camera_info, depth = seed_messages(height=HEIGHT, width=WIDTH)
    image = convert.image_message(photograph_like(), 'rgb8', image.header)
    for _ in range(3):
        for name, message in (('image', image), ('camera_info', camera_info), ('depth', depth)):
            client.send(name, message)
        time.sleep(0.2)


def test_chunk_is_compressed_and_arrives(client, start_node):
    client.receive('imagined/image', Image)
    start_node(instant={'height': HEIGHT, 'width': WIDTH, 'new_frames': FRAMES})
    client.connect()
    large_seed(client)
    client.send('trajectory', trajectory(FRAMES, request_id='large'))
    client.until(
        lambda: client.chunks and len(client.received['imagined/image']) == FRAMES, seconds=60.0
    )
    (message,) = client.chunks
    assert not message.frames and len(message.frames_compressed) == FRAMES
    size = sum(
        len(part.data) for part in [*message.frames_compressed, *message.visibility_compressed]
    )
    assert size < 32 * 2**20 < HEIGHT * WIDTH * 3 * FRAMES
    chunk = convert.chunk_from_message(message)
    assert chunk.frames.shape == (FRAMES, HEIGHT, WIDTH, 3)
    truth = photograph_like()
    error = chunk.frames[0].astype(float) - (truth + 1)
    assert 10 * np.log10(255**2 / np.square(error).mean()) > 34
    raw = client.received['imagined/image'][0]
    np.testing.assert_array_equal(np.asarray(raw.data).reshape(HEIGHT, WIDTH, 3), truth + 1)
    print(f'a chunk of {FRAMES} frames of {HEIGHT}x{WIDTH} took {size / 2**20:.1f} MiB')


def test_too_large_chunk_ends_its_request(client, start_node):
    node = start_node(
        instant={'height': HEIGHT, 'width': WIDTH, 'new_frames': 8},
        compression__format='none',
        limits__max_message_bytes=2**24,
    )
    client.connect()
    large_seed(client)
    client.send('trajectory', trajectory(8, request_id='raw'))
    node.wait_for(
        "request 'raw' failed: ValueError: chunk 0 of 8 frames of 704x1280 takes 27.5 MiB (none)"
    )
    assert not client.chunks
