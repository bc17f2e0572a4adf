"""Configurations of data sources, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import UseAppendAction, arg

from mirage_model.options import (
    Checked,
    Count,
    Doubtful,
    Finite,
    InputFile,
    InputFolder,
    InputPath,
    Mount,
    Name,
    NotNegative,
    Positive,
)


@dataclass(frozen=True, kw_only=True)
class BagConfig(Checked):
    """Topics and frames of a ROS bag."""

    image: Name
    """Topic of rectified images, raw or compressed."""
    camera_info: Name
    """Topic of the images' camera_info."""
    pose: Name
    """Topic of PoseStamped, PoseWithCovarianceStamped, Odometry or transforms (/tf)."""
    depth: str = ''
    """Topic of depth, registered to the images or with its camera_info; empty for a bag without
    depth."""
    depth_camera_info: str = ''
    """Topic of the depth's camera_info, to register depth of another camera; empty for depth that
    is registered."""
    world_frame: Name = 'map'
    """Fixed frame of the poses, where they come from transforms."""
    transforms: str = '/tf'
    """Topic of transforms, read where the bag has it."""
    transforms_static: str = '/tf_static'
    """Topic of static transforms, read where the bag has it."""
    base_frame: Name = 'base_link'
    """Frame that base_from_camera is mounted on, and of poses that name no child frame."""
    base_from_camera: Mount = ()
    """Camera on the base: x y z [m] and quaternion x y z w; empty for a mount in the
    transforms."""
    tolerance: NotNegative = 0.02
    """Largest difference between the stamps of an image and its depth [s]."""
    pose_gap: Positive = 0.5
    """Longest time from an image to the stamps of each transform before and after it [s]."""
    accept: Doubtful = ()
    """Doubtful inputs that are meant as they are, by the names that warnings give."""


@dataclass(frozen=True, kw_only=True)
class RecordConfig(Checked):
    """Length, size and rate of recorded clips; Doom is recorded at the defaults alone."""

    frames: Count = 65
    """Frames of a clip."""
    height: Count = 96
    """Height of the frames [px]."""
    width: Count = 160
    """Width of the frames [px]."""
    rate: Positive = 8.0
    """Frames per second."""
    photographs: InputFolder | None = None
    """Folder of pictures that cover most surfaces of houses; None has procedural textures alone.
    """


@dataclass(frozen=True, kw_only=True)
class RecordCommand(Checked):
    """Record clips of simulated trajectories.

    A clip's scene, trajectory and dynamic objects depend on its number alone.
    """

    split: Literal['train', 'validation', 'test']
    """Split to record."""
    out: Path
    """Folder with one folder per split; an interrupted recording continues.

    Both worlds may share it.
    """
    world: Literal['doom', 'rooms'] = 'doom'
    """World to record: maps of Freedoom, or generated houses."""
    clips: Count = 800
    """Number of clips."""
    workers: Count = 2
    """Processes."""
    record: Annotated[RecordConfig, arg(name='')] = RecordConfig()


@dataclass(frozen=True, kw_only=True)
class PrepareCommand(Checked):
    """Prepare clips for training: estimate missing depth and labels, and encode latents.

    A clip goes to train/, validation/ or test/ by its scene. report.json lists clips that were
    left out, and why.
    """

    out: Path
    """Folder of the latents; an interrupted preparation continues."""
    clips: UseAppendAction[tuple[InputFolder, ...]] = ()
    """Folder of recorded clips; may be repeated."""
    realestate10k: tuple[InputFolder, InputFolder] | None = None
    """Folder of RealEstate10K text files, and folder with one folder of frames per sequence."""
    vipe: UseAppendAction[tuple[tuple[InputFile, InputFolder], ...]] = ()
    """Video, and folder of its ViPE results; may be repeated."""
    colmap: UseAppendAction[tuple[tuple[InputFolder, InputFolder], ...]] = ()
    """Folder of frames, and folder of their COLMAP model; may be repeated."""
    frame_rate: Positive = 30.0
    """Frames per second of the frames of a COLMAP model."""
    tum: UseAppendAction[tuple[tuple[InputFolder, InputFile], ...]] = ()
    """Folder of frames (rgb.txt, or images named by their stamp), and its trajectory; may be
    repeated."""
    intrinsics: tuple[Positive, Positive, Finite, Finite] | None = None
    """fx fy cx cy of the frames of --tum [px]; the centre of the first pixel is (0, 0)."""
    depth_scale: Positive = 5000.0
    """Numbers to the metre in the depth images of --tum."""
    bag: UseAppendAction[tuple[InputPath, ...]] = ()
    """ROS bag, which needs the topics below; may be repeated."""
    image: str = ''
    """Topic of rectified images, raw or compressed."""
    camera_info: str = ''
    """Topic of the images' camera_info."""
    pose: str = ''
    """Topic of poses, odometry or transforms."""
    depth: str = ''
    """Topic of depth, registered to the images or with its camera_info; empty for a bag without
    depth."""
    depth_camera_info: str = ''
    """Topic of the depth's camera_info, to register depth of another camera; empty for depth that
    is registered."""
    base_frame: Name = 'base_link'
    """Frame that base_from_camera is mounted on, and of poses that name no child frame."""
    base_from_camera: Mount = ()
    """Camera on the base: x y z [m] and quaternion x y z w; empty for a mount in the
    transforms."""
    accept: Doubtful = ()
    """Doubtful inputs of bags that are meant as they are, by the names that warnings give."""
    model: InputFolder | None = None
    """Model folder with perception and codec; None for mirage-tiny.

    Its sizes are the defaults below.
    """
    labeller: InputFolder | None = None
    """Folder of a labeller of dynamic objects and sky; None for that of the model, if any."""
    codec: InputFolder | None = None
    """VAE folder that replaces the codec of the model."""
    height: Count | None = None
    """Height of the frames [px]."""
    width: Count | None = None
    """Width of the frames [px]."""
    rate: Positive | None = None
    """Frames per second."""
    chunk_frames: Count | None = None
    """Frames of a chunk, the context frame included."""
    frames: Count = 65
    """Most frames of a clip."""
    splits: InputFile | None = None
    """JSON file with the scenes of validation and test; None for those of the simulated worlds."""
    save_clips: Path | None = None
    """Folder in which the completed clips are kept; None keeps the latents alone."""
    device: str = 'cpu'
    """Device, such as cpu or cuda."""
    workers: Count = 2
    """Processes; take 1 with a GPU."""
