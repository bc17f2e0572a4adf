"""Cases of depth images for the readers of messages."""

from __future__ import annotations

from dataclasses import replace

from bag_messages import camera_info, compressed, compressed_depth, image, transforms
from message_cases import GREY, METRES, MILLIMETRES, RGB, TIME, Case, info
import numpy as np

PATCHY = METRES.copy()
PATCHY[::3], PATCHY[1::3, ::2], PATCHY[2::3, 1::2] = np.inf, np.nan, -np.inf
EDGE = METRES * np.nan
EDGE[1, 1] = 2.5
EMPTY = 'none of 12x16 pixels has a measurement'
LARGE = np.full((24, 32), 2.5, np.float32)
DEPTHS = [
    Case(
        'depth of another frame',
        depth=image(TIME, METRES, '32FC1', frame='depth'),
        rejection="depth: in frame 'depth', the image in 'camera': it must be registered",
    ),
    Case(
        'depth of another frame, meant',
        depth=image(TIME, METRES, '32FC1', frame='depth'),
        accept=('depth_frame',),
    ),
    Case(
        'depth without a frame',
        depth=image(TIME, METRES, '32FC1', frame=''),
        doubt='depth: frame_id is empty',
    ),
    Case('depth with a slash', depth=image(TIME, METRES, '32FC1', frame='/camera')),
    Case(
        'millimetres in floats',
        depth=image(TIME, METRES * 1000, '32FC1'),
        rejection='a median of 2500 m',
    ),
    Case(
        'far depth that is meant',
        depth=image(TIME, METRES * 1000, '32FC1'),
        metres=2500.0,
        accept=('depth_unit',),
    ),
    Case(
        'metres in integers',
        depth=image(TIME, MILLIMETRES // 1000, '16UC1'),
        rejection='a median of 0.002 m',
    ),
    Case('depth of 99 m', depth=image(TIME, METRES * 0 + 99, '32FC1'), metres=99.0),
    Case('depth of 4 cm', depth=image(TIME, METRES * 0 + 0.04, '32FC1'), metres=0.04),
    Case(
        'depth of another camera',
        depth=image(TIME, LARGE, '32FC1', frame='depth'),
        depth_info=replace(
            info(k=(20, 20, 15.5, 11.5), height=24, width=32),
            header=camera_info(TIME, frame='depth').header,
        ),
        static=transforms(0.0, ('camera', 'depth', 0.5)),
    ),
    Case(
        'depth of a higher resolution',
        depth=image(TIME, LARGE, '32FC1'),
        depth_info=info(k=(40, 40, 15.5, 11.5), height=24, width=32),
    ),
    Case(
        'depth of a lower resolution',
        depth=image(TIME, METRES[::2, ::2], '32FC1'),
        depth_info=info(k=(10, 10, 3.5, 2.5), height=6, width=8),
    ),
    Case(
        'registered depth of a lower resolution alone',
        depth=image(TIME, METRES[::2, ::2], '32FC1'),
        rejection='depth: 6x8, the image is 12x16: it must be registered',
    ),
    Case(
        'registered depth with K of the depth camera',
        depth_info=info(k=(15, 15, 7.5, 5.5)),
        doubt='its camera_info has fx 15 and cx 7.5 for 16 px, that of the image fx 20',
    ),
    Case(
        'registered depth with the size of the depth camera',
        depth_info=info(k=(20, 20, 15.5, 11.5), height=24, width=32),
        doubt='cx 15.5 for 32 px',
    ),
    Case(
        'registered depth with another K, meant',
        depth_info=info(k=(15, 15, 7.5, 5.5)),
        accept=('depth_camera',),
    ),
    Case('registered depth and its own camera_info', depth_info=camera_info(TIME)),
    Case(
        'registered depth with camera_info of the depth camera',
        depth_info=camera_info(TIME, frame='depth', f=15.0),
    ),
    Case(
        'depth of a frame without its camera_info',
        depth=image(TIME, LARGE, '32FC1', frame='third'),
        depth_info=replace(
            info(k=(20, 20, 15.5, 11.5), height=24, width=32),
            header=camera_info(TIME, frame='depth').header,
        ),
        static=transforms(0.0, ('camera', 'depth', 0.5)),
        rejection="depth: in frame 'third', the image in 'camera': it must be registered",
    ),
    Case(
        'depth that misses the image',
        depth=image(TIME, METRES, '32FC1', frame='depth'),
        depth_info=camera_info(TIME, frame='depth'),
        static=transforms(0.0, ('camera', 'depth', 50.0)),
        metres=np.nan,
        doubt='of 192 measurements in .depth. none falls into',
    ),
    Case(
        'depth of another camera without a transform',
        depth=image(TIME, METRES, '32FC1', frame='depth'),
        depth_info=camera_info(TIME, frame='depth'),
        rejection="no transforms join 'depth' to 'camera'",
    ),
    Case(
        'depth of another size than its camera_info',
        depth=image(TIME, LARGE, '32FC1'),
        depth_info=camera_info(TIME),
        rejection='depth: 24x32, its camera_info is of 12x16',
    ),
    Case(
        'depth whose camera is not calibrated',
        depth=image(TIME, METRES, '32FC1', frame='depth'),
        depth_info=camera_info(TIME, frame='depth', f=0.0),
        rejection='a calibrated camera',
    ),
    Case(
        'empty depth',
        depth=replace(image(TIME, METRES, '32FC1'), height=0),
        rejection='depth: empty',
    ),
    *(
        Case(f'{name} {order}', depth=image(TIME, stored, name, padding=6, big=order == 'big'))
        for order in ('little', 'big')
        for name, stored in {'16UC1': MILLIMETRES, 'mono16': MILLIMETRES, '32FC1': METRES}.items()
    ),
    *(
        Case(
            f'depth of {value}',
            depth=image(TIME, METRES * value, '32FC1'),
            metres=np.nan,
            doubt=EMPTY,
        )
        for value in (np.nan, np.inf, 0.0, -1.0)
    ),
    Case('zero 16UC1', depth=image(TIME, MILLIMETRES * 0, '16UC1'), metres=np.nan, doubt=EMPTY),
    Case(
        'depth of NaN that is meant',
        depth=image(TIME, METRES * np.nan, '32FC1'),
        metres=np.nan,
        accept=('depth_empty',),
    ),
    Case(
        'infinite and NaN among metres',
        depth=image(TIME, PATCHY, '32FC1'),
        metres=np.where(np.isfinite(PATCHY), PATCHY, np.nan),
    ),
    Case('one measurement', depth=image(TIME, EDGE, '32FC1'), metres=EDGE),
    Case(
        'one measurement in millimetres',
        depth=image(TIME, EDGE * 1000, '32FC1'),
        rejection='a median of 2500 m',
    ),
    *(
        Case(form, depth=compressed_depth(TIME, MILLIMETRES, form))
        for form in ('16UC1; compressedDepth png', '16UC1; compressedDepth')
    ),
    *(
        Case(form, depth=compressed_depth(TIME, MILLIMETRES, form, 6200.0, 20.0))
        for form in ('32FC1; compressedDepth png', '32FC1; compressedDepth')
    ),
    *(
        Case(form, depth=compressed(TIME, MILLIMETRES, form=form))
        for form in (
            '16UC1; png compressed ',
            'mono16; png compressed',
            '16UC1; png compressed 16UC1',
        )
    ),
    Case(
        'depth of 8 bits as plain PNG',
        depth=compressed(TIME, GREY[..., 0], form='16UC1; png compressed '),
        rejection='without a PNG of 16 bits',
    ),
    *(
        Case(
            f'depth as {form}',
            depth=compressed(TIME, GREY[..., 0], ending='.jpg', form=form),
            rejection=f"depth: format '{form}' is not one of .*JPEG and 8 bits keep no metres",
        )
        for form in ('mono8; jpeg compressed ', '16UC1; jpeg compressed ', 'jpeg')
    ),
    Case(
        'depth in decimetres of 8 bits',
        depth=image(TIME, GREY, 'mono8'),
        rejection="depth: encoding 'mono8' is not one of",
    ),
    Case(
        'compressedDepth without its parameters',
        depth=compressed_depth(TIME, MILLIMETRES, '32FC1; compressedDepth png'),
        rejection='with the parameters 0 and 0',
    ),
    Case(
        'compressedDepth of RVL',
        depth=compressed_depth(TIME, MILLIMETRES, '16UC1; compressedDepth rvl'),
        rejection="depth: format '16UC1; compressedDepth rvl' is not one of",
    ),
    Case(
        'depth as plain PNG',
        depth=compressed_depth(TIME, MILLIMETRES, 'png'),
        rejection="depth: format 'png' is not one of",
    ),
    Case(
        'depth as colours',
        depth=image(TIME, RGB, 'rgb8'),
        rejection="depth: encoding 'rgb8' is not one of",
    ),
    Case(
        'depth of another size',
        depth=image(TIME, METRES[:6], '32FC1'),
        rejection='depth: 6x16, the image is 12x16: it must be registered',
    ),
]
