"""Training of the world model on encoded clips, by flow matching on the target frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from jaxtyping import Float
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

from mirage_model.camera import Cameras, concatenate
from mirage_model.clip import labels, load_clip
from mirage_model.data.latents import load_latents, read_index
from mirage_model.memory import Memory, Pixels
from mirage_model.memory.latent import MemoryConfig
from mirage_model.memory.registry import create_memory
from mirage_model.metrics import psnr
from mirage_model.model.codec import Codec
from mirage_model.model.conditioning import read_scene, side_input
from mirage_model.model.history import choose_references, visible_voxels
from mirage_model.model.resampler import Resampler
from mirage_model.model.sampler import Scheduler, sample_chunk, tiny_scheduler
from mirage_model.model.side_branch import SideInput
from mirage_model.model.text import PromptEncoder
from mirage_model.training.config import WorldModelConfig
from mirage_model.training.simulated_memory import SingleFrameLatents, count_imagined, fill, write
from mirage_model.training.stages import (
    WorldModel,
    begin_stage,
)
from mirage_model.training.trainer import Objective, StepResult
from mirage_model.write_filter import filtered_pixels, write_mask

Velocity = Callable[..., Tensor]
"""Called as `WorldModel.forward`."""


@dataclass(frozen=True, kw_only=True)
class ChunkBatch:
    """Chunks to predict, and what the model is given."""

    target: Float[Tensor, 'b c k h w']
    """Clean latents, the context frame first."""
    context: Float[Tensor, 'b c h w']
    """Latents of the context frame, which may be imagined ones."""
    references: Float[Tensor, 'b c r h w']
    """Clean latents of other frames of the place."""
    preceding: Float[Tensor, 'b c p h w']
    """Clean latents of the frames before the context."""
    side: Tensor | None
    """Input of the side branch."""
    texts: list[Tensor]
    """Embeddings of the captions as a list of one, empty for the model's own text."""
    names: list[str]
    """Names of the clips."""

    def with_context(self, latents: Tensor) -> Tensor:
        return torch.cat([self.context[:, :, None], latents[:, :, 1:]], dim=2)

    def noisy(self, noise: Tensor, sigma: Float[Tensor, ' b']) -> Tensor:
        """Return the target at a noise level, with the clean context."""
        return self.with_context(torch.lerp(self.target, noise, per_sample(sigma)))

    def velocity(
        self,
        model: Velocity,
        noisy: Tensor,
        sigma: Float[Tensor, ' b'],
        *,
        own_text: bool = False,
    ) -> Tensor:
        """Return the velocity of the chunk, by the captions or by the model's own text."""
        times = (1000 * sigma)[:, None].repeat(1, noisy.shape[2])
        times[:, 0] = 0
        given = (self.side,) if own_text else (self.side, *self.texts)
        before, after = self.references.shape[2], self.preceding.shape[2]
        if not before + after:
            return model(noisy, times, *given)
        velocity = model(
            torch.cat([self.references, noisy, self.preceding], dim=2),
            F.pad(times, (before, after)),
            *given,
            references=before,
        )
        return velocity[:, :, : noisy.shape[2]]


def per_sample(values: Float[Tensor, ' b']) -> Float[Tensor, 'b 1 1 1 1']:
    return values.view(-1, 1, 1, 1, 1)


@dataclass(kw_only=True)
class _Past:
    """Earlier latent frames that a chunk attends to."""

    references: Tensor
    """Latents (r, c, h, w), from the largest overlap on."""
    preceding: Tensor
    """Latents (p, c, h, w) of the frames before the context."""
    cameras: Cameras
    """Cameras of the preceding frames."""


@dataclass(kw_only=True)
class _Scene:
    """A clip, its memory, and the chunk to predict."""

    video: Tensor
    """Latents of all chunks, (chunks, c, k, h, w)."""
    frames: SingleFrameLatents
    chunk: int
    memory: Memory
    kind: str
    """Kind of context in the memory, one of `KINDS`."""
    context: Tensor
    """Latents (c, h, w) of the chunk's first frame."""
    past: _Past | None = None

    def cameras(self, chunk: int) -> Cameras:
        new = self.video.shape[2] - 1
        return self.frames.cameras[chunk * new : (chunk + 1) * new + 1]


class WorldModelObjective(Objective):
    """Squared error of the velocity on all latent frames but the context."""

    module: WorldModel

    def __init__(
        self,
        model: WorldModel,
        config: WorldModelConfig,
        latents: Path,
        clips: Path,
        codec: Codec,
        resampler: Resampler | None = None,
        captions: PromptEncoder | None = None,
    ):
        """Read the index of the latents; ``latents`` and ``clips`` each hold train/ and
        validation/.

        Args:
            captions: Embeds the texts of the clips; None trains with the model's own text alone.
        """
        self.module = model
        self.captions = captions
        self.config = config
        self.codec = codec
        self.resampler = resampler
        if config.prediction == 'first_guess' and resampler is None:
            raise ValueError("prediction: 'first_guess' needs a resampler, give its folder")
        self.side_input: SideInput = model.backbone.side_branch.config.input
        if self.side_input == 'spatia':
            raise ValueError("from: a side branch of input 'spatia' cannot be trained here")
        self.chunks = read_index(latents / 'train')
        validation = read_index(latents / 'validation')
        for index in (self.chunks, validation):
            if not len(index):
                raise ValueError(f'{index.folder}: no encoded clips, prepare some first')
        chosen = validation.shards[: config.validation_clips]
        self.validation = [validation.path(shard) for shard in chosen]
        self._texts = {
            index.path(shard): shard.text
            for index in (self.chunks, validation)
            for shard in index.shards
        }
        self.clips = clips
        for path in self.validation:
            if not (clips / 'validation' / path.name).is_file():
                raise ValueError(
                    f'{clips / "validation" / path.name}: missing, give the folder of the clips '
                    'that the latents were made of'
                )
        begin_stage(model, config)

    def step(
        self, module: Velocity, rng: np.random.Generator, generator: torch.Generator, step: int
    ) -> StepResult:
        batch = self._batch(module, rng, step)
        loss = self.loss(module, batch, generator)
        return StepResult(loss=loss, logs={}, names=batch.names)

    def loss(self, module: Velocity, batch: ChunkBatch, generator: torch.Generator) -> Tensor:
        """Return the mean squared error of the velocity."""
        x, shift = batch.target, self.config.shift
        u = torch.rand(len(x), generator=generator, device=x.device)
        sigma = shift * u / (1 + (shift - 1) * u)
        noise = torch.randn(x.shape, generator=generator, device=x.device)
        velocity = batch.velocity(module, batch.noisy(noise, sigma), sigma)
        return self.mean_error(velocity, noise - x, sigma)

    def mean_error(self, velocity: Tensor, true: Tensor, sigma: Float[Tensor, ' b']) -> Tensor:
        """Return the mean squared error on all latent frames but the context."""
        error = (velocity - true)[:, :, 1:].square()
        if self.config.prediction == 'first_guess':
            # the error of the clean latents that the velocity leads to
            error = error * per_sample(sigma).square()
        return error.mean()

    def _batch(self, module: Velocity, rng: np.random.Generator, step: int) -> ChunkBatch:
        config = self.config
        chosen = [
            self.chunks.chunk(int(i)) for i in rng.integers(len(self.chunks), size=config.batch)
        ]
        imagined = count_imagined(config.context, step, config.batch)
        recalls = bool(config.references or config.preceding) and rng.random() < config.recall
        scenes = [
            self._scene(path, chunk, rng, continued=i < imagined, later=recalls)
            for i, (path, chunk) in enumerate(chosen)
        ]
        texts = self._embedded([path for path, _ in chosen], rng, config.caption_dropout)
        if recalls:
            self._recall(scenes)
        if imagined:
            own = [text[:imagined] for text in texts]
            self._imagine(module, scenes[:imagined], own, rng)
        target = self._stack([scene.video[scene.chunk] for scene in scenes])
        past = [scene.past for scene in scenes if scene.past is not None]
        none = target[:, :, :0]
        return ChunkBatch(
            target=target,
            context=self._stack([scene.context for scene in scenes]),
            references=self._stack([f.references.movedim(1, 0) for f in past]) if past else none,
            preceding=self._stack([f.preceding.movedim(1, 0) for f in past]) if past else none,
            side=self._sides(
                [
                    (scene.memory, scene.cameras(scene.chunk), scene.context, scene.past)
                    for scene in scenes
                ]
            ),
            texts=texts,
            names=[path.stem for path, _ in chosen],
        )

    def _embedded(
        self, paths: list[Path], rng: np.random.Generator, dropout: float
    ) -> list[Tensor]:
        """Return the embeddings (b, words, dim) of the clips' captions as a list of one, empty
        without captions.

        Dropped captions, and clips without one, take the model's own text.
        """
        if self.captions is None:
            return []
        rows = []
        for path in paths:
            text = '' if rng.random() < dropout else self._texts[path]
            rows.append(self.captions.embed(text) if text else self.module.text)
        device = self.module.text.device
        return [torch.stack([row.to(device).float() for row in rows])]

    @torch.no_grad()
    def validate(self, writer: SummaryWriter | None, step: int) -> dict[str, float]:
        """Return PSNR of first chunks generated from a seed with true depth, with and without
        memory."""
        self.module.eval()
        names = ('memory', 'empty', 'repeat_seed', 'codec')
        scores: dict[str, list[float]] = {name: [] for name in names}
        images = []
        for path in self.validation:
            video, singles = self._read(path)
            first = video[0].to(self.codec.device)
            frames = load_clip(self.clips / 'validation' / path.name).frames
            frames = frames.permute(0, 3, 1, 2).float() / 255
            stride = self.codec.temporal_stride
            truth = frames[1 : (first.shape[1] - 1) * stride + 1]
            predicted = {
                'repeat_seed': frames[:1].expand_as(truth),
                'codec': self.codec.decode(first[None])[0, 1:].cpu(),
            }
            for name, kind in (('memory', self.config.memory), ('empty', 'none')):
                memory = self._memory(kind)
                seed = singles[:1]
                memory.write(
                    seed.latents,
                    seed.depth,
                    seed.cameras,
                    valid=seed.valid,
                    observed=True,
                    pixels=seed.pixels,
                )
                latents = self._sample(
                    self.module,
                    video[:1, :, :1],
                    self._sides(
                        [(memory, singles.cameras[: first.shape[1]], video[0, :, 0], None)]
                    ),
                    self._embedded([path], np.random.default_rng(0), 0.0),
                    latent_frames=first.shape[1],
                    steps=self.config.sampler_steps,
                    seed=0,
                )
                frames = self.codec.decode(latents.to(first.device))[0, 1:]
                predicted[name] = frames.clamp(0, 1).cpu()
            for name, frames in predicted.items():
                scores[name].append(psnr(frames, truth))
            rows = [truth, predicted['memory'], predicted['empty']]
            images.append(
                torch.cat([row[stride - 1 :: stride].movedim(0, 2).flatten(2) for row in rows], 1)
            )
        if writer is not None:
            writer.add_image('truth_memory_empty', torch.cat(images[:4], dim=1), step)
        self.module.train()
        return {f'{name}_psnr_db': float(np.mean(values)) for name, values in scores.items()}

    def _read(self, path: Path) -> tuple[Tensor, SingleFrameLatents]:
        """Return latents of a clip's chunks (chunks, c, k, h, w) and its single-frame latents."""
        tensors, cameras = load_latents(path)
        singles = SingleFrameLatents(
            latents=tensors['stills'].float(),
            depth=tensors['depth'],
            valid=tensors['valid'],
            cameras=cameras,
        )
        if self.config.memory in ('latent', 'none') and self.config.dynamic_filter:
            return tensors['video'].float(), singles
        clip = load_clip(self.clips / path.parent.name / path.name)
        at = slice(0, len(singles) * self.codec.temporal_stride, self.codec.temporal_stride)
        known = labels(clip, at, dynamic_filter=self.config.dynamic_filter)
        depth, valid = write_mask(known, height=cameras.height, width=cameras.width)
        singles = replace(singles, depth=depth, valid=valid)
        if self.config.memory not in ('latent', 'none'):
            frames = clip.frames[at].permute(0, 3, 1, 2).float() / 255
            singles = replace(singles, pixels=filtered_pixels(frames, known))
        return tensors['video'].float(), singles

    def _scene(
        self,
        path: Path,
        chunk: int,
        rng: np.random.Generator,
        *,
        continued: bool,
        later: bool = False,
    ) -> _Scene:
        """Return a chunk of a clip with its memory.

        Args:
            continued: Return the memory of the chunk before instead, which the model then
                generates.
            later: Replace a clip's first chunk by a random later one, as ``continued`` does.

        Raises:
            ValueError: The clip has one chunk, and a later one is needed.
        """
        video, singles = self._read(path)
        if (continued or later) and len(video) < 2:
            raise ValueError(
                f'{path}: has one chunk, training on generated chunks, references or preceding '
                'frames needs two or more: encode longer clips, or set context.imagined, '
                'references and preceding to 0'
            )
        if (continued or later) and chunk == 0:
            chunk = int(rng.integers(1, len(video)))
        scene = _Scene(
            video=video,
            frames=singles,
            chunk=chunk,
            memory=self._memory(self.config.memory),
            kind='empty',
            context=video[chunk, :, 0],
        )
        if self.config.stage != 'backbone':
            now = (chunk - int(continued)) * (video.shape[2] - 1)
            scene.kind = fill(scene.memory, singles, now=now, rng=rng, config=self.config.context)
        return scene

    def _recall(self, scenes: list[_Scene]) -> None:
        """Give each scene its references and preceding frames, equally many for all."""
        config = self.config
        chosen = []
        for scene in scenes:
            frames, now = scene.frames, scene.chunk * (scene.video.shape[2] - 1)
            target = scene.cameras(scene.chunk)
            shown = slice(now, now + len(target))
            wanted = visible_voxels(frames.depth[shown], frames.valid[shown], target)
            voxels = [
                visible_voxels(
                    frames.depth[i : i + 1], frames.valid[i : i + 1], frames.cameras[i : i + 1]
                )
                for i in range(now)
            ]
            chosen.append(choose_references(wanted, voxels, config.references))
        references = min(len(indices) for indices in chosen)
        for scene, indices in zip(scenes, chosen, strict=True):
            before, now = scene.video[scene.chunk - 1], scene.chunk * (scene.video.shape[2] - 1)
            count = min(config.preceding, before.shape[1] - 1)
            scene.past = _Past(
                references=scene.frames.latents[indices[:references]],
                preceding=before[:, before.shape[1] - 1 - count : -1].movedim(1, 0),
                cameras=scene.frames.cameras[now - count : now],
            )

    @torch.no_grad()
    def _imagine(
        self,
        module: Velocity,
        scenes: list[_Scene],
        texts: list[Tensor],
        rng: np.random.Generator,
    ) -> None:
        """Generate the chunk before each scene's, write it to the memory, and set the context.

        A rollout writes its latents as they are, and decodes and encodes its last frame again.
        That costs more than generating the chunk (`dry_run.operations`). So the error of the
        generated latents is added to the true single-frame latents, which differ little from those
        of clips. Depth is the true one with the noise of a generated frame.
        """
        before = [scene.video[scene.chunk - 1] for scene in scenes]
        sides = [
            (scene.memory, scene.cameras(scene.chunk - 1), true[:, 0], None)
            for scene, true in zip(scenes, before, strict=True)
        ]
        imagined = self._sample(
            module,
            torch.stack(before)[:, :, :1],
            self._sides(sides),
            texts,
            latent_frames=before[0].shape[1],
            steps=self.config.context.imagined_steps,
            seed=int(rng.integers(2**62)),
        ).cpu()
        for scene, true, generated in zip(scenes, before, imagined, strict=True):
            new = true.shape[1] - 1
            frames = scene.frames[(scene.chunk - 1) * new + 1 : scene.chunk * new + 1]
            frames = replace(
                frames, latents=frames.latents + (generated - true)[:, 1:].movedim(1, 0)
            )
            if frames.pixels is not None:
                decoded = self.codec.decode_images(frames.latents.to(self.codec.device))
                pixels = Pixels(frames=decoded.clamp(0, 1).cpu(), depth=frames.pixels.depth)
                frames = replace(frames, pixels=pixels)
            if scene.kind != 'empty':
                write(scene.memory, frames, observed=False, rng=rng, config=self.config.context)
            scene.context = frames.latents[-1]

    def _sample(
        self,
        module: Velocity,
        context: Tensor,
        side: Tensor | None,
        texts: list[Tensor],
        *,
        latent_frames: int,
        steps: int,
        seed: int,
    ) -> Tensor:
        """Return generated chunks (b, c, k, h, w); the module adds its text itself."""
        context = context.to(self.module.text.device)
        return sample_chunk(
            lambda latents, times, text, side, references: module(latents, times, side, *texts),
            self.scheduler(),
            context=context,
            latent_frames=latent_frames,
            side=side,
            text=context.new_empty(len(context), 0, 0),
            steps=steps,
            generator=torch.Generator().manual_seed(seed),
        )

    def scheduler(self) -> Scheduler:
        """Return the scheduler that generates chunks."""
        scheduler = tiny_scheduler()
        return type(scheduler).from_config(scheduler.config, flow_shift=self.config.shift)

    def _memory(self, name: str) -> Memory:
        config = MemoryConfig(channels=self.codec.channels, splat_size=self.config.splat_size)
        return create_memory(name, config, self.codec)

    @torch.no_grad()
    def _sides(
        self, views: Sequence[tuple[Memory, Cameras, Tensor, _Past | None]]
    ) -> Tensor | None:
        """Return the inputs of the side branch; None in stage backbone.

        Args:
            views: Memory, cameras and latents of the context frame of each chunk, and its past.
        """
        if self.config.stage == 'backbone':
            return None
        sides = []
        for memory, cameras, context, past in views:
            kind, codec = self.side_input, self.codec
            read = partial(read_scene, kind, memory, codec=codec, resampler=self.resampler)
            scene = read(cameras, context[None])[1]
            if past is not None and len(past.cameras):
                scene = torch.cat([scene, read(past.cameras, past.preceding[:1])[1]])
                cameras = concatenate([cameras, past.cameras])
            sides.append(side_input(kind, scene, cameras, codec=codec)[0])
        return self._stack(sides)

    def _stack(self, parts: list[Tensor]) -> Tensor:
        return torch.stack(parts).to(self.module.text.device)
