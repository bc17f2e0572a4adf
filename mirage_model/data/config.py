"""Configurations of data sources, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BagConfig:
    """Topics and frames of a ROS bag."""

    image: str
    """Topic of rectified images, raw or compressed."""
    camera_info: str
    """Topic of the images' camera_info."""
    pose: str
    """Topic of PoseStamped, PoseWithCovarianceStamped, Odometry or transforms (/tf)."""
    depth: str = ''
    """Topic of depth registered to the images; empty for a bag without depth."""
    world_frame: str = 'map'
    """Fixed frame of the poses, where they come from transforms."""
    transforms_static: str = '/tf_static'
    """Topic of static transforms, read where the bag has it."""
    base_frame: str = 'base_link'
    """Frame that base_from_camera is mounted on, where poses come from transforms."""
    base_from_camera: tuple[float, ...] = ()
    """Camera on the base: x y z [m] and quaternion x y z w; empty for a mount in the transforms or
    camera poses."""
    tolerance: float = 0.02
    """Largest difference between the stamps of an image and its depth [s]."""
    pose_gap: float = 0.5
    """Longest time from an image to the stamps of each transform before and after it [s]."""
