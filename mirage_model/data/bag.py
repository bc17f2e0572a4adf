"""Clips from a ROS bag: rectified images with their camera_info, poses, and depth where there is
any.

Messages are read as the node reads them, by `mirage_model.messages`. Messages that cannot be used
are left out, and so are those after the clock was set back; `Bag.broken` has the reasons. All
stamps, poses and intrinsics are read in one pass, and images by their place in the bag.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
import logging
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
import numpy as np
import torch

from mirage_model.camera import Cameras, check_cameras
from mirage_model.clip import Clip
from mirage_model.data.bag_index import BagIndex, IndexReader
from mirage_model.data.bag_storage import BagStorage
from mirage_model.data.config import BagConfig
from mirage_model.data.sources import Layout, Listing, Part, cut
from mirage_model.image_fit import fit_depth, fit_image, fit_K
from mirage_model.messages.camera_info import read_depth, read_image
from mirage_model.messages.doubts import Doubts
from mirage_model.messages.poses import seconds

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bag:
    """One bag, a folder or a file, as a source of clips.

    The scene is its name without .mcap or .db3.
    """

    path: Path
    config: BagConfig
    layout: Layout

    @property
    def scene(self) -> str:
        """Return the name of the bag."""
        path = self.path.resolve()
        return path.stem if path.suffix in ('.mcap', '.db3') else path.name

    @cached_property
    def recorded(self) -> Bag:
        """Return the same bag with its images at the size that they were recorded at."""
        height, width = self._index.camera.size
        bag = replace(self, layout=replace(self.layout, height=height, width=width))
        for name in ('_index', '_doubts', '_storage'):  # the bag is not read again
            bag.__dict__[name] = getattr(self, name)
        return bag

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without open files; a worker process opens the bag once for itself."""
        left = ('_storage', 'recorded')
        return {name: value for name, value in self.__dict__.items() if name not in left}

    @property
    def camera_frame(self) -> str:
        """Return the optical frame of the camera."""
        return self._index.camera.frame

    @property
    def world_frame(self) -> str:
        """Return the fixed frame of the poses."""
        return self._index.world_frame

    @property
    def stamps(self) -> Float[np.ndarray, 'n']:
        """Return the stamps of the usable images [s]."""
        return self._index.stamps

    @property
    def nanoseconds(self) -> Int[np.ndarray, 'n']:
        """Return the exact stamps of the usable images [ns]."""
        return self._index.nanoseconds

    @property
    def world_from_camera(self) -> Float[np.ndarray, 'n 4 4']:
        """Return the poses of the usable images."""
        return self._index.world_from_camera

    @property
    def K(self) -> Float[np.ndarray, '3 3']:
        """Return the intrinsics of the first usable image as it was recorded."""
        return self._index.K[0]

    @property
    def K_of_images(self) -> Float[np.ndarray, 'n 3 3']:
        """Return the intrinsics of the usable images as they were recorded."""
        return self._index.K

    @property
    def doubts(self) -> list[str]:
        """Return the warnings of doubtful inputs so far."""
        return list(self._doubts.warnings.values())

    @property
    def broken(self) -> list[str]:
        """Return why messages are left out that cannot be used.

        They are part of the listing too.
        """
        return self._index.broken

    def listing(self) -> Listing:
        """Return the clips of the bag, and the reasons for what is left out."""
        index = self._index
        rows = list(range(len(index.stamps)))
        listing = cut(self.scene, self.scene, index.stamps, self.layout, rows)
        images = [
            (f'{self.scene} (images)', self.scene, reason)
            for reason in index.left_out + index.broken + self.doubts
        ]
        return Listing(parts=listing.parts, left_out=images + listing.left_out)

    def load(self, part: Part) -> Clip:
        """Return a clip; doubts about its images are logged.

        Raises ValueError that names the topic and the time of an image that cannot be used.
        """
        index, rows, known = self._index, list(part.rows), len(self.doubts)
        camera, height, width = index.camera, self.layout.height, self.layout.width
        depth = np.full((len(rows), height, width), np.nan, np.float32)

        def frame_of(message: Any) -> np.ndarray:
            image = read_image(message, camera_frame=camera.frame, size=camera.size)
            return fit_image(image, height, width)

        stamps, logged = index.stamps[rows], index.logged[rows]
        frames = self._images(self.config.image, stamps, logged, frame_of)
        if self.config.depth:
            stamps, logged = index.depth_stamps[rows], index.depth_logged[rows]
            # another camera than the image's: registered to the image's own K
            cameras_at = {
                stamp: replace(camera, K=K) for stamp, K in zip(stamps.tolist(), index.K[rows])
            }

            def depth_of(message: Any) -> np.ndarray:
                metres = read_depth(
                    message,
                    camera=cameras_at[seconds(message.header.stamp)],
                    doubts=self._doubts,
                    depth_camera=index.depth_camera,
                )
                return fit_depth(metres, height, width)

            depth[:] = self._images(self.config.depth, stamps, logged, depth_of)
            for doubt in self.doubts[known:]:
                logger.warning('%s: %s: %s', self.path, self.config.depth, doubt)
        K = fit_K(index.K[rows], camera.size, height, width)
        cameras = Cameras(
            K=torch.from_numpy(K).float(),
            world_from_camera=torch.from_numpy(index.world_from_camera[rows]).float(),
            times=torch.from_numpy(index.stamps[rows]),
            height=height,
            width=width,
        )
        return Clip(
            name=part.name,
            frames=torch.from_numpy(np.stack(frames)),
            cameras=check_cameras(cameras),
            depth=torch.from_numpy(depth),
            sky=torch.zeros(depth.shape, dtype=torch.bool),
            moving=torch.zeros(depth.shape, dtype=torch.bool),
            scene=part.scene,
            labelled=False,
        )

    @cached_property
    def _doubts(self) -> Doubts:
        return Doubts(self.config.accept, parameter='accept')

    @cached_property
    def _storage(self) -> BagStorage:
        return BagStorage(self.path)

    @cached_property
    def _index(self) -> BagIndex:
        return IndexReader(self.path, self._storage, self.config, self._doubts).read()

    def _images(
        self,
        topic: str,
        stamps: Float[np.ndarray, 'n'],
        logged: Int[np.ndarray, 'n'],
        read: Callable[[Any], np.ndarray],
    ) -> list[np.ndarray]:
        """Return the images with these stamps, read and fitted by ``read``, in this order."""
        images, wanted, times = {}, set(stamps.tolist()), set(logged.tolist())
        span = int(logged.min()), int(logged.max()) + 1
        for stored in self._storage.messages([topic], start=span[0], stop=span[1]):
            if stored.logged not in times:
                continue
            try:
                message = self._storage.read(stored)
            except ValueError:
                continue  # another message of that time; the index has none that is broken
            stamp = seconds(message.header.stamp)
            if stamp not in wanted:
                continue
            try:
                images[stamp] = read(message)
            except ValueError as error:
                raise ValueError(f'{self.path}: {topic} at {stamp:.6f}: {error}') from None
        return [images[stamp] for stamp in stamps.tolist()]
