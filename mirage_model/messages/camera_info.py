"""sensor_msgs/CameraInfo: intrinsics, and the images that belong to them."""

from __future__ import annotations

from dataclasses import dataclass
import math
from typing import Any

import cv2
from jaxtyping import Float32, Float64, UInt8
import numpy as np

from mirage_model.messages.depth_registration import DepthCamera, register_depth
from mirage_model.messages.doubts import Doubts
from mirage_model.messages.images import depth_from_image, image_size, rgb_from_image
from mirage_model.messages.poses import frame_name

WIDEST, NARROWEST = 170.0, 5.0
"""Field of view above which no image is rectified, and below which one is doubtful [degrees]."""
OFF_CENTRE = 0.15
"""Distance of the principal point from the centre that is doubtful, as a share of the size."""
DISTORTED = 1.0
"""Displacement by the distortion from which an image must have been rectified [px]."""
SAME = 1e-3
"""Relative difference of intrinsics of one camera."""
SAME_NUMBERS = 1e-6
"""Relative difference of intrinsics that do not vary."""
NEAR, FAR = 0.03, 100.0
"""Medians of depth outside of which its unit is doubtful [m]."""
_PINHOLES = ('', 'plumb_bob', 'rational_polynomial')
"""Distortion models that are a pinhole where all coefficients are zero."""
_REGISTER = (
    'it must be registered to the image, or the camera_info of the depth and a transform between '
    'the two frames must be there'
)


@dataclass(frozen=True, kw_only=True)
class RectifiedCamera:
    """Camera of rectified images."""

    frame: str
    """Frame of the header."""
    size: tuple[int, int]
    """Height and width [px]."""
    K: Float64[np.ndarray, '3 3']
    frame_from_camera: Float64[np.ndarray, '4 4']
    """Pose of the camera in its frame; a translation for the second camera of a stereo pair."""


def image_size_from_camera_info(message: Any) -> tuple[int, int]:
    """Return height and width of the image: of the region of interest, divided by the binning.

    Raises:
        ValueError: The size is zero, or the region is not inside of the camera's.
    """
    region, sizes = message.roi, []
    whole = not (region.x_offset or region.y_offset or region.height or region.width)
    for axis, length, offset, part, binning in (
        ('height', message.height, region.y_offset, region.height, message.binning_y),
        ('width', message.width, region.x_offset, region.width, message.binning_x),
    ):
        if whole:
            part = length
        elif not 0 < part <= length - offset:
            raise ValueError(
                f'camera_info: the {axis} of the region is {part} px from {offset} px on, that of '
                f'the camera {length} px: the region must be in pixels of the whole camera'
            )
        sizes.append(part // max(binning, 1))
    height, width = sizes
    if height == 0 or width == 0:
        raise ValueError(f'camera_info: image size {height}x{width}')
    return height, width


def K_from_camera_info(message: Any) -> Float64[np.ndarray, '3 3']:
    """Return the intrinsics of the rectified image: the left of P, or K where P is zero and
    nothing is distorted.

    Both are of the whole camera. A region of interest moves them and binning scales them, as
    image_geometry's PinholeCameraModel does.

    Raises:
        ValueError: The camera is not calibrated or not rectified, or the intrinsics cannot be
            those of an image of this size.
    """
    size = image_size_from_camera_info(message)
    K = _calibrated_K(message)
    K[0, 2] -= message.roi.x_offset
    K[1, 2] -= message.roi.y_offset
    K[0] /= max(message.binning_x, 1)
    K[1] /= max(message.binning_y, 1)
    for axis, name in enumerate('xy'):
        focal, centre = float(K[axis, axis]), float(K[axis, 2])
        length = size[1 - axis]
        if _field_of_view(focal, length) > WIDEST:
            raise ValueError(
                f'camera_info: f{name} is {focal:.6g} px for {length} px, a field of view of '
                f'{_field_of_view(focal, length):.1f} degrees: K and P must be in pixels of this '
                'rectified image'
            )
        if not -length <= centre <= 2 * length:
            raise ValueError(
                f'camera_info: c{name} is {centre:.6g} px for {length} px, the principal point is '
                'far outside of the image: K and P must be in pixels of this image'
            )
    return K


def _calibrated_K(message: Any) -> Float64[np.ndarray, '3 3']:
    """Return the rectified intrinsics of the whole camera."""
    if message.p[0]:
        K = np.array(message.p, np.float64).reshape(3, 4)[:, :3].copy()
    elif not any(message.d) and message.distortion_model in _PINHOLES:
        K = np.array(message.k, np.float64).reshape(3, 3)
    else:
        raise ValueError(
            f"camera_info: distorted ('{message.distortion_model}') and without P, rectified "
            'images are needed'
        )
    pinhole = np.array([[K[0, 0], 0, K[0, 2]], [0, K[1, 1], K[1, 2]], [0, 0, 1]])
    wrong = not np.isfinite(K).all() or (K != pinhole).any() or (K == np.eye(3)).all()
    if wrong or K[0, 0] <= 0 or K[1, 1] <= 0:
        raise ValueError(f'camera_info: not the intrinsics of a calibrated camera: {K.tolist()}')
    return K


def read_camera(message: Any, doubts: Doubts) -> RectifiedCamera:
    """Return the camera of a camera_info.

    Raises:
        ValueError: `K_from_camera_info` rejects it, or its frame has no name.
    """
    K = K_from_camera_info(message)
    frame, size = frame_name(message.header.frame_id), image_size_from_camera_info(message)
    if not frame:
        raise ValueError('camera_info: frame_id is empty, it must name the camera')
    for axis, name in enumerate('xy'):
        focal, centre, length = float(K[axis, axis]), float(K[axis, 2]), size[1 - axis]
        if _field_of_view(focal, length) < NARROWEST:
            doubts.warn(
                'field_of_view',
                f'camera_info: f{name} is {focal:.6g} px for {length} px, a field of view of '
                f'{_field_of_view(focal, length):.2f} degrees: K may be of another resolution',
            )
        if abs(centre - (length - 1) / 2) > OFF_CENTRE * length:
            doubts.warn(
                'principal_point',
                f'camera_info: c{name} is {centre:.6g} px for {length} px, far from the centre: K '
                'may be of another resolution',
            )
    if not 2 / 3 <= K[0, 0] / K[1, 1] <= 3 / 2:
        doubts.warn(
            'pixel_aspect',
            f'camera_info: fx is {K[0, 0]:.6g} px and fy {K[1, 1]:.6g}: K may be normalised or of '
            'another aspect',
        )
    _check_rectified(message, _calibrated_K(message), doubts)
    frame_from_camera = np.eye(4)
    if message.p[0] and (message.p[3] or message.p[7]):
        baseline = [-message.p[3] / message.p[0], -message.p[7] / message.p[5]]
        if not np.isfinite(baseline).all():
            raise ValueError(f'camera_info: P has the fourth column {message.p[3::4]}')
        frame_from_camera[:2, 3] = baseline
        doubts.warn(
            'baseline',
            f'camera_info: P[0,3] is {message.p[3]:.6g} and P[1,3] {message.p[7]:.6g}, so the '
            f"camera is taken to be {baseline[0]:.4f} m right and {baseline[1]:.4f} m below '"
            f"{frame}', as the second of a stereo pair; send zeros if the frame is its own",
        )
    return RectifiedCamera(frame=frame, size=size, K=K, frame_from_camera=frame_from_camera)


def same_camera(message: Any, other: Any) -> bool:
    """Return whether two camera_infos differ in nothing but their stamps and last digits."""
    names = ('height', 'width', 'binning_x', 'binning_y', 'distortion_model')
    region = ('x_offset', 'y_offset', 'height', 'width')
    return (
        frame_name(message.header.frame_id) == frame_name(other.header.frame_id)
        and all(getattr(message, name) == getattr(other, name) for name in names)
        and all(getattr(message.roi, name) == getattr(other.roi, name) for name in region)
        and all(
            len(getattr(message, name)) == len(getattr(other, name))
            and np.allclose(getattr(message, name), getattr(other, name), rtol=SAME_NUMBERS)
            for name in 'dkp'
        )
    )


def _field_of_view(focal: float, length: int) -> float:
    """Return the angle in degrees that an image of ``length`` pixels covers."""
    return math.degrees(2 * math.atan(length / 2 / focal))


def _check_rectified(message: Any, K: Float64[np.ndarray, '3 3'], doubts: Doubts) -> None:
    """Warn where P repeats K although lens distortion would displace pixels visibly."""
    k = np.array(message.k, np.float64).reshape(3, 3)
    fisheye = message.distortion_model not in _PINHOLES
    if not (fisheye or any(message.d)) or not np.allclose(k, K, rtol=1e-9):
        return
    displacement = _displacement(K, np.array(message.d, np.float64), message, fisheye=fisheye)
    if not displacement <= DISTORTED:
        doubts.warn(
            'distortion',
            f"camera_info: P equals K, and distortion '{message.distortion_model}' displaces "
            f'pixels by up to {displacement:.1f} px: the image may not be rectified (image_proc '
            'rectifies)',
        )


def _displacement(
    K: Float64[np.ndarray, '3 3'], d: Float64[np.ndarray, 'n'], message: Any, *, fisheye: bool
) -> float:
    """Return the largest displacement by the distortion at the border [px]; infinity where it
    is not known."""
    x, y = (np.linspace(0, length - 1, 9) for length in (message.width, message.height))
    pixels = np.array([(a, b) for a in x for b in y])
    rays = np.column_stack([(pixels - K[:2, 2]) / np.diag(K)[:2], np.ones(len(pixels))])
    project = cv2.fisheye.projectPoints if fisheye else cv2.projectPoints
    coefficients = np.zeros(4) if fisheye and not len(d) else d
    try:
        if fisheye:
            rays = rays[:, None]
        distorted, _ = project(rays, np.zeros(3), np.zeros(3), K, coefficients)
    except cv2.error:
        return math.inf
    return float(np.abs(distorted.reshape(-1, 2) - pixels).max())


def read_image(
    message: Any, *, camera_frame: str, size: tuple[int, int], max_pixels: int | None = None
) -> UInt8[np.ndarray, 'h w 3']:
    """Return the colours of an image whose camera_info has this frame and this (height, width).

    Raises:
        ValueError: The image is in another frame or of another size, has more than ``max_pixels``
            pixels, or cannot be decoded.
    """
    check_image_frame(message.header.frame_id, camera_frame)
    found = image_size(message, 'image', max_pixels=max_pixels)
    if found != size:
        raise ValueError(
            f'image: {found[0]}x{found[1]}, its camera_info is of {size[0]}x{size[1]}, after its '
            'binning and region of interest'
        )
    return rgb_from_image(message)


def check_image_frame(frame: str, camera_frame: str) -> None:
    """Raise ValueError where an image names another frame than its camera_info."""
    frame, camera_frame = frame_name(frame), frame_name(camera_frame)
    if not frame or frame != camera_frame:
        raise ValueError(f"image: in frame '{frame}', its camera_info in '{camera_frame}'")


def read_depth(
    message: Any,
    *,
    camera: RectifiedCamera,
    doubts: Doubts,
    depth_camera: DepthCamera | None = None,
    max_pixels: int | None = None,
) -> Float32[np.ndarray, 'h w']:
    """Return the metres of a depth image at the pixels of the images of ``camera``.

    Depth in the camera's frame and size is registered already. Other depth is registered where
    ``depth_camera`` is of its frame.

    Raises:
        ValueError: The depth is not registered and cannot be, has more than ``max_pixels`` pixels,
            cannot be decoded, or its unit is doubtful and not accepted.
    """
    found = image_size(message, 'depth', max_pixels=max_pixels)
    frame = frame_name(message.header.frame_id)
    registered = frame == camera.frame and found == camera.size
    if depth_camera is not None and depth_camera.frame != frame:
        depth_camera = None
    if not registered and depth_camera is None:
        check_depth_frame(frame, camera.frame, doubts)
        if found != camera.size:
            height, width = camera.size
            raise ValueError(
                f'depth: {found[0]}x{found[1]}, the image is {height}x{width}: {_REGISTER}'
            )
    depth = depth_from_image(message)
    _check_unit(depth, doubts)
    if registered and depth_camera is not None:
        _check_registered_camera(depth_camera, camera, doubts)
    if registered or depth_camera is None:
        return depth
    if found != depth_camera.size:
        height, width = depth_camera.size
        raise ValueError(f'depth: {found[0]}x{found[1]}, its camera_info is of {height}x{width}')
    seen = register_depth(depth, depth_camera, K=camera.K, size=camera.size)
    if np.isfinite(depth).any() and not np.isfinite(seen).any():
        doubts.warn(
            'depth_empty',
            f"depth: of {np.isfinite(depth).sum()} measurements in '{frame}' none falls into the "
            f"image of '{camera.frame}', so there is no depth: K or the transform between the two "
            'may be wrong',
        )
    return seen


def _check_registered_camera(
    depth_camera: DepthCamera, camera: RectifiedCamera, doubts: Doubts
) -> None:
    """Warn where registered depth has a camera_info of another camera, as of the depth sensor."""
    same = depth_camera.size == camera.size
    if same and np.allclose(depth_camera.K, camera.K, rtol=SAME):
        return
    doubts.warn(
        'depth_camera',
        f"depth: in the frame and size of the image, '{camera.frame}', but its camera_info has fx "
        f'{depth_camera.K[0, 0]:.6g} and cx {depth_camera.K[0, 2]:.6g} for '
        f'{depth_camera.size[1]} px, that of the image fx {camera.K[0, 0]:.6g} and cx '
        f'{camera.K[0, 2]:.6g} for {camera.size[1]} px: the depth is taken as registered, with K '
        'of the image',
    )


def check_depth_frame(frame: str, camera_frame: str, doubts: Doubts) -> None:
    """Raise ValueError where depth that is not registered here names another frame than the image;
    warn where it names none."""
    frame = frame_name(frame)
    if not frame:
        doubts.warn('depth_frame', f"depth: frame_id is empty, '{camera_frame}' is assumed")
    elif frame != camera_frame:
        doubts.reject(
            'depth_frame', f"depth: in frame '{frame}', the image in '{camera_frame}': {_REGISTER}"
        )


def _check_unit(depth: Float32[np.ndarray, 'h w'], doubts: Doubts) -> None:
    sample = depth[::4, ::4]
    if not np.isfinite(sample).any():
        sample = depth
    sample = sample[np.isfinite(sample)]
    if not len(sample):
        doubts.warn(
            'depth_empty',
            f'depth: none of {depth.shape[0]}x{depth.shape[1]} pixels has a measurement, all are '
            'NaN, infinite, zero or negative',
        )
        return
    median = float(np.median(sample))
    if not NEAR <= median <= FAR:
        doubts.reject(
            'depth_unit',
            f'depth: a median of {median:.4g} m, 32FC1 must be in metres and 16UC1 in millimetres',
        )
