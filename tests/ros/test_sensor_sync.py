"""Matching of images, camera_info and depth by stamps."""

from __future__ import annotations

from builtin_interfaces.msg import Time
from processes import seed_messages
import pytest
from std_msgs.msg import Header

from mirage_ros.sensor_sync import BUFFER, SensorSync


def test_newest_complete_set_in_any_order():
    seeds = SensorSync(use_depth=True, tolerance=0.02, max_pixels=10**6)
    with pytest.raises(ValueError, match='image: none was received'):
        seeds.newest()
    first, second = seed_messages(stamp=1), seed_messages(stamp=2)
    seeds.add_depth(first[2])
    seeds.add_image(first[0])
    with pytest.raises(ValueError, match='camera_info: none was received within 0.02 s'):
        seeds.newest()
    seeds.add_camera_info(first[1])
    assert seeds.newest() == first
    seeds.add_image(second[0])
    seeds.add_camera_info(second[1])
    assert seeds.newest() == first
    seeds.add_depth(second[2])
    assert seeds.newest() == second


def test_stamps_within_the_tolerance():
    image, info, depth = seed_messages()
    info.header = Header(frame_id='camera', stamp=Time(sec=1, nanosec=15_000_000))
    depth.header = Header(frame_id='camera', stamp=Time(sec=1, nanosec=30_000_000))
    strict, loose = (
        SensorSync(use_depth=True, tolerance=t, max_pixels=10**6) for t in (0.02, 0.05)
    )
    for seeds in (strict, loose):
        seeds.add_image(image)
        seeds.add_camera_info(info)
        seeds.add_depth(depth)
    with pytest.raises(ValueError, match='depth: none was received .* within 0.02 s'):
        strict.newest()
    assert loose.newest()[2] is depth


def test_depth_is_not_required_without_use_depth():
    seeds = SensorSync(use_depth=False, tolerance=0.0, max_pixels=10**6)
    image, info, _ = seed_messages()
    seeds.add_image(image)
    seeds.add_camera_info(info)
    assert seeds.newest() == (image, info, None)


def test_unreadable_messages_leave_the_good_ones():
    seeds = SensorSync(use_depth=False, tolerance=0.0, max_pixels=10**6)
    image, info, depth = seed_messages()
    seeds.add_image(image)
    seeds.add_camera_info(info)
    for add, message in ((seeds.add_image, depth), (seeds.add_depth, image)):
        with pytest.raises(ValueError, match='encoding'):
            add(message)
    assert seeds.newest()[0] is image


def test_buffers_are_bounded():
    seeds = SensorSync(use_depth=False, tolerance=0.0, max_pixels=10**6)
    seeds.add_camera_info(seed_messages(stamp=1)[1])
    for stamp in range(1, BUFFER + 2):
        seeds.add_image(seed_messages(stamp=stamp)[0])
    with pytest.raises(ValueError, match='camera_info: none'):
        seeds.newest()


def test_images_that_are_too_large_are_not_kept():
    image, info, depth = seed_messages()
    pixels = image.height * image.width
    seeds = SensorSync(use_depth=True, tolerance=0.02, max_pixels=pixels - 1)
    seeds.add_camera_info(info)
    for add, message in ((seeds.add_image, image), (seeds.add_depth, depth)):
        with pytest.raises(ValueError, match=f'more than limits.max_pixels, {pixels - 1}'):
            add(message)
    with pytest.raises(ValueError, match='image: none was received'):
        seeds.newest()
