"""Cases for the readers of messages, and the results that both must give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from bag_messages import (
    HEIGHT,
    WIDTH,
    camera_info,
    compressed,
    image,
    pose_message,
)
import numpy as np

TIME = 100.0
RGB = np.full((HEIGHT, WIDTH, 3), (200, 100, 50), np.uint8)
BGR = RGB[..., ::-1]
GREY = RGB[..., :1]
ALPHA = np.full((HEIGHT, WIDTH, 1), 7, np.uint8)
METRES = np.full((HEIGHT, WIDTH), 2.5, np.float32)
MILLIMETRES = np.full((HEIGHT, WIDTH), 2500, np.uint16)
MOUNT = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)


def wide(pixels: np.ndarray) -> np.ndarray:
    """Return the values in 16 bits."""
    return pixels.astype(np.uint16) * 257


def mosaic(pattern: str) -> np.ndarray:
    values = [RGB[0, 0, 'rgb'.index(letter)] for letter in pattern]
    return np.tile(np.array(values, np.uint8).reshape(2, 2), (HEIGHT // 2, WIDTH // 2))


def yuv(first: int, second: int) -> np.ndarray:
    return np.tile(np.array([first, second], np.uint8), (HEIGHT, WIDTH, 1))


@dataclass(frozen=True)
class Case:
    """Messages of one observation at `TIME`, and the results that both readers must give.

    ``rejection`` is a pattern of the error and ``doubt`` one of the warning; ``sent`` are the
    times of the poses, ``delay`` the seconds until a bag gets the other messages, ``bag`` options
    of `BagConfig` and ``node`` parameters of the node.
    """

    name: str
    image: Any = field(default_factory=lambda: image(TIME, RGB, 'rgb8'))
    info: Any = field(default_factory=lambda: camera_info(TIME))
    depth: Any = field(default_factory=lambda: image(TIME, METRES, '32FC1'))
    pose: Callable[[float], Any] = lambda time: pose_message(time, time - 90)
    static: Any = None
    depth_info: Any = None
    sent: tuple[float, ...] = (TIME - 0.25, TIME + 0.25)
    delay: float = 0.003
    colour: tuple[int, int, int] = (200, 100, 50)
    error: int = 0
    f: float = 20.0
    fy: float = 0.0
    cx: float = 7.5
    cy: float = 5.5
    metres: Any = 2.5
    x: float = 10.0
    rejection: str = ''
    doubt: str = ''
    accept: tuple[str, ...] = ()
    bag: dict = field(default_factory=dict)
    node: dict = field(default_factory=dict)


def info(*, distortion: str = 'plumb_bob', k=None, p=None, d=None, **fields) -> Any:
    """Return a changed camera_info; ``k`` is fx, fy, cx, cy of K and of P."""
    message = camera_info(TIME)
    changed: dict[str, Any] = {'distortion_model': distortion, **fields}
    if k is not None:
        fx, fy, cx, cy = k
        changed['k'] = np.array([fx, 0, cx, 0, fy, cy, 0, 0, 1], np.float64)
        changed['p'] = np.array([fx, 0, cx, 0, 0, fy, cy, 0, 0, 0, 1, 0], np.float64)
    if p is not None:
        changed['p'] = np.array(p, np.float64)
    if d is not None:
        changed['d'] = np.array(d, np.float64)
    return replace(message, **changed)


def region(x: int, y: int, columns: int, rows: int, **fields) -> Any:
    """A camera_info with a region of interest."""
    roi = replace(camera_info(TIME).roi, x_offset=x, y_offset=y, height=rows, width=columns)
    return info(roi=roi, **fields)


NO_P = np.zeros(12)
PAIR = [20, 0, 7.5, -2.0, 0, 20, 5.5, 0, 0, 0, 1, 0]
"""P of the right camera of a stereo pair with a baseline of 0.1 m."""
OUTSIDE = 'far outside of the image'
WIDE = 'a field of view of 1[78]'

CAMERAS = [
    Case('K is the identity', info=info(k=(1, 1, 0, 0)), rejection='calibrated'),
    Case('K is normalised', info=info(k=(0.6, 1.0, 0.5, 0.5)), rejection=WIDE),
    Case('K is normalised, tele', info=info(k=(0.69, 0.69, 0.5, 0.5)), rejection=WIDE),
    Case('K of 1920x1080', info=info(k=(1400, 1400, 960, 540)), rejection=OUTSIDE),
    Case('K scaled twice', info=info(k=(320, 240, 120, 66)), rejection=OUTSIDE),
    Case('cx of -100', info=info(k=(20, 20, -100, 5.5)), rejection=OUTSIDE),
    Case('NaN in K', info=info(k=(np.nan, 20, 7.5, 5.5)), rejection='calibrated camera'),
    Case('infinite fx', info=info(k=(np.inf, 20, 7.5, 5.5)), rejection='calibrated camera'),
    Case('negative fx', info=info(k=(-20, 20, 7.5, 5.5)), rejection='calibrated camera'),
    Case('fy of 0', info=info(k=(20, 0, 7.5, 5.5)), rejection='calibrated camera'),
    Case('skew', info=info(p=[20, 1, 7.5, 0, 0, 20, 5.5, 0, 0, 0, 1, 0]), rejection='calibrated'),
    Case(
        'P of zero scale',
        info=info(p=[20, 0, 7.5, 0, 0, 20, 5.5, 0, 0, 0, 0, 0]),
        rejection='calibrated',
    ),
    Case('P over other K', info=info(k=(25, 25, 8, 6), p=camera_info(TIME).p)),
    Case('tele lens', info=info(k=(400, 400, 7.5, 5.5)), f=400.0, doubt='a field of view of 2.29'),
    Case(
        'tele lens that is meant',
        info=info(k=(400, 400, 7.5, 5.5)),
        f=400.0,
        accept=('field_of_view',),
    ),
    Case(
        'centre of a picture half as large',
        info=info(k=(20, 20, 3.75, 5.5)),
        cx=3.75,
        doubt='cx is 3.75 px for 16 px, far from the centre',
    ),
    Case(
        'centre of a picture twice as large',
        info=info(k=(20, 20, 15.5, 5.5)),
        cx=15.5,
        doubt='cx is 15.5 px for 16 px, far from the centre',
    ),
    Case('centre beside the picture', info=info(k=(20, 20, 20, 5.5)), cx=20.0, doubt='far from'),
    Case(
        'centre of a crop that is meant',
        info=info(k=(20, 20, 12, 5.5)),
        cx=12.0,
        accept=('principal_point',),
    ),
    Case('centre a pixel off', info=info(k=(20, 20, 8.5, 5.5)), cx=8.5),
    Case(
        'pixels not square', info=info(k=(20, 50, 7.5, 5.5)), fy=50.0, doubt='fx is 20 px and fy'
    ),
    Case(
        'pixels not square, meant',
        info=info(k=(20, 50, 7.5, 5.5)),
        fy=50.0,
        accept=('pixel_aspect',),
    ),
    Case('pixels of Doom', info=info(k=(20, 24, 7.5, 5.5)), fy=24.0),
    Case('P repeats K with distortion', info=info(d=[1.0, 0, 0, 0, 0]), doubt='not be rectified'),
    Case('distortion that is meant', info=info(d=[1.0, 0, 0, 0, 0]), accept=('distortion',)),
    Case('distortion below a pixel', info=info(d=[0.05, 0, 0, 0, 0])),
    Case(
        'rectified with other P',
        info=info(d=[1.0, 0, 0, 0, 0], k=(25, 25, 8, 6), p=camera_info(TIME).p),
    ),
    Case(
        'eight coefficients',
        info=info(distortion='rational_polynomial', d=[1.0] + [0] * 7),
        doubt='rational_polynomial',
    ),
    Case('eight zeros without P', info=info(distortion='rational_polynomial', d=[0] * 8, p=NO_P)),
    Case('no model and no P', info=info(distortion='', d=[], p=NO_P)),
    Case(
        'fisheye that repeats K',
        info=info(distortion='equidistant', d=[0] * 4, k=(8, 8, 7.5, 5.5)),
        f=8.0,
        doubt="'equidistant' displaces",
    ),
    Case(
        'fisheye without P',
        info=info(distortion='equidistant', d=[0] * 4, p=NO_P),
        rejection='rectified images are needed',
    ),
    Case(
        'rectified fisheye',
        info=info(distortion='equidistant', d=[0.1] * 4, k=(9, 9, 7, 5), p=camera_info(TIME).p),
    ),
    Case('unknown model', info=info(distortion='fov', d=[0.5]), doubt="distortion 'fov'"),
    Case('right camera of a pair', info=info(p=PAIR), x=10.1, doubt=r'P\[0,3\] is -2'),
    Case('right camera that is meant', info=info(p=PAIR), x=10.1, accept=('baseline',)),
    Case('baseline of NaN', info=info(p=[*PAIR[:3], np.nan, *PAIR[4:]]), rejection='column'),
    Case(
        'camera without a frame',
        info=camera_info(TIME, frame=''),
        image=image(TIME, RGB, 'rgb8', frame=''),
        rejection='frame_id is empty',
    ),
    Case('camera without a size', info=info(width=0), rejection='image size 12x0'),
    Case(
        'binning of two',
        info=info(binning_x=2, binning_y=2, height=24, width=32, k=(40, 40, 15, 11)),
    ),
    Case(
        'binning of rows alone',
        info=info(binning_y=2, height=24, k=(20, 40, 7.5, 11)),
    ),
    Case(
        'binning of a second camera',
        info=info(
            binning_x=2,
            binning_y=2,
            height=24,
            width=32,
            p=[40, 0, 15, -4.0, 0, 40, 11, 0, 0, 0, 1, 0],
        ),
        x=10.1,
        doubt='P.0,3. is -4',
    ),
    Case(
        'binning of an image of odd size',
        info=info(binning_x=2, binning_y=2, height=25, width=33, k=(40, 40, 15, 11)),
    ),
    Case(
        'binning of four with size and K of the binned image',
        info=info(binning_x=4, binning_y=4, k=(5, 5, 1.5, 1)),
        rejection='image: 12x16, its camera_info is of 3x4, after its binning',
    ),
    Case(
        'binning of two with K of the binned image',
        info=info(binning_x=2, binning_y=2, height=24, width=32, k=(20, 20, 7.5, 5.5)),
        f=10.0,
        cx=3.75,
        cy=2.75,
        doubt='cx is 3.75 px for 16 px, far from the centre',
    ),
    Case(
        'region of an image that is cropped',
        info=region(4, 3, 16, 12, height=40, width=64, k=(20, 20, 11.5, 8.5)),
    ),
    Case(
        'region of a binned image',
        info=region(
            4, 6, 32, 24, height=60, width=40, k=(40, 40, 19, 17), binning_x=2, binning_y=2
        ),
    ),
    Case(
        'region of an image that is not cropped',
        info=region(4, 3, 8, 6),
        rejection='image: 12x16, its camera_info is of 6x8, after its binning and region',
    ),
    Case(
        'region beyond the camera',
        info=region(4, 0, 16, 12),
        rejection='the width of the region is 16 px from 4 px on, that of the camera 16 px',
    ),
    Case(
        'region without a size',
        info=region(4, 3, 0, 0),
        rejection='the height of the region is 0 px from 3 px on',
    ),
    Case(
        'image halved without binning',
        info=info(binning_x=1, binning_y=1),
        image=image(TIME, RGB[::2, ::2], 'rgb8'),
        rejection='image: 6x8, its camera_info is of 12x16',
    ),
    Case('P without K', info=info(k=(0, 0, 0, 0), p=camera_info(TIME).p)),
    Case('P without K and without a model', info=info(k=(0,) * 4, p=camera_info(TIME).p, d=[])),
    Case(
        'P without K for another size',
        info=info(k=(0, 0, 0, 0), p=camera_info(TIME).p),
        image=image(TIME, RGB[:6], 'rgb8'),
        rejection='image: 6x16, its camera_info is of 12x16',
    ),
    Case('neither P nor K', info=info(k=(0, 0, 0, 0), d=[]), rejection='calibrated'),
    Case('binning of one', info=info(binning_x=1, binning_y=1)),
    Case(
        'region of the whole image',
        info=region(0, 0, 16, 12),
    ),
    Case('slash in camera_info', info=camera_info(TIME, frame='/camera')),
    Case('P before K', info=camera_info(TIME, d=0.1)),
    Case('K without P', info=camera_info(TIME, p=0.0, f=21.0), f=21.0),
    Case(
        'distorted', info=camera_info(TIME, p=0.0, d=0.1), rejection='rectified images are needed'
    ),
    Case('uncalibrated', info=camera_info(TIME, f=0.0), rejection='a calibrated camera'),
]
IMAGES = [
    *(
        Case(name, image=image(TIME, pixels, name, padding=5))
        for name, pixels in {
            'rgb8': RGB,
            'bgr8': BGR,
            'rgba8': np.dstack([RGB, ALPHA]),
            'bgra8': np.dstack([BGR, ALPHA]),
        }.items()
    ),
    *(
        Case(f'{name} {order}', image=image(TIME, wide(pixels), name, big=order == 'big'))
        for order in ('little', 'big')
        for name, pixels in {
            'rgb16': RGB,
            'bgr16': BGR,
            'rgba16': np.dstack([RGB, ALPHA]),
            'bgra16': np.dstack([BGR, ALPHA]),
        }.items()
    ),
    *(
        Case(name, image=image(TIME, pixels, name), colour=(200, 200, 200))
        for name, pixels in {'mono8': GREY, '8UC1': GREY, 'mono16': wide(GREY)}.items()
    ),
    *(
        Case(f'bayer_{pattern}{bits}', image=image(TIME, pixels, f'bayer_{pattern}{bits}'))
        for pattern in ('rggb', 'bggr', 'gbrg', 'grbg')
        for bits, pixels in ((8, mosaic(pattern)), (16, wide(mosaic(pattern))))
    ),
    # grey of brightness 120 has (120 - 16) * 255 / 219 = 121 in RGB
    *(
        Case(name, image=image(TIME, yuv(*pair), name), colour=(121, 121, 121), error=1)
        for name, pair in {
            'uyvy': (128, 120),
            'yuv422': (128, 120),
            'yuyv': (120, 128),
            'yuv422_yuy2': (120, 128),
        }.items()
    ),
    *(
        Case(
            f'{name} of height {height}',
            image=image(
                TIME,
                np.repeat(np.uint8([120] * HEIGHT + [128] * (HEIGHT // 2))[:, None], WIDTH, 1),
                name,
                height=height,
            ),
            colour=(121, 121, 121),
            error=1,
        )
        for name in ('nv12', 'nv21')
        for height in (HEIGHT, HEIGHT * 3 // 2)
    ),
    Case('PNG', image=compressed(TIME, RGB)),
    Case('JPEG', image=compressed(TIME, RGB, ending='.jpg', form='jpeg'), error=4),
    Case('8UC3', image=image(TIME, RGB, '8UC3'), rejection="image: encoding '8UC3' is not one of"),
    Case('TIFF', image=compressed(TIME, RGB, ending='.tiff', form='tiff'), rejection="not 'tiff'"),
    Case('rows too short', image=image(TIME, RGB[..., :2], 'rgb8'), rejection='in rows of 32'),
    Case('image of another size', image=image(TIME, RGB[:6], 'rgb8'), rejection='image: 6x16'),
    Case(
        'image of another frame',
        image=image(TIME, RGB, 'rgb8', frame='left'),
        rejection="image: in frame 'left', its camera_info in 'camera'",
    ),
    Case('leading slash', image=image(TIME, RGB, 'rgb8', frame='/camera')),
    Case('byte order of bytes', image=image(TIME, RGB, 'rgb8', big=True)),
    Case(
        'empty image', image=replace(image(TIME, RGB, 'rgb8'), height=0), rejection='image: empty'
    ),
    Case(
        'truncated image',
        image=replace(image(TIME, RGB, 'rgb8'), data=np.zeros(7, np.uint8)),
        rejection='7 bytes in rows of 48',
    ),
    Case(
        'image without a frame',
        image=image(TIME, RGB, 'rgb8', frame=''),
        rejection="image: in frame '', its camera_info in 'camera'",
    ),
    Case('written 111 s after its stamp', delay=111.0),
    Case('written 111 s before its stamp', delay=-99.0),
    Case('JPEG that says png', image=compressed(TIME, RGB, ending='.jpg', form='png'), error=4),
    Case(
        'format of image_transport',
        image=compressed(TIME, RGB, ending='.jpg', form='rgb8; jpeg compressed bgr8'),
        error=4,
    ),
    Case(
        'grey PNG',
        image=compressed(TIME, GREY[..., 0], form='mono8; png compressed'),
        colour=(200, 200, 200),
    ),
    Case(
        'empty PNG',
        image=replace(compressed(TIME, RGB), data=np.zeros(0, np.uint8)),
        rejection="not 'png' data",
    ),
    Case(
        'half a PNG',
        image=replace(compressed(TIME, RGB), data=compressed(TIME, RGB).data[:20]),
        rejection="not 'png' data",
    ),
    Case('encoding without a name', image=image(TIME, RGB, ''), rejection="encoding ''"),
]
