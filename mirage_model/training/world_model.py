"""Train the world model on encoded clips, by flow matching on the target frames.

``python -m mirage_model.training.world_model --latents DIR --clips DIR --codec DIR --run DIR --stage STAGE``

Stages: 'backbone' trains the backbone as an image-to-video model with no memory; 'side_branch' freezes it
and trains the side branch; 'adapter' adds LoRA on the self-attention and trains it with the side branch;
'joint' trains backbone and side branch at once. ``--config wan22_5b --dry-run`` says what training at
that size takes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.torch import load_file
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from mirage_model.camera import Cameras, rays
from mirage_model.clip import load_clip
from mirage_model.data.latents import describe_latents, load_latents, read_index
from mirage_model.labels import labels
from mirage_model.memory import Memory, Pixels
from mirage_model.memory.latent import MemoryConfig
from mirage_model.memory.registry import create_memory
from mirage_model.metrics import psnr
from mirage_model.model.codec import Codec
from mirage_model.model.resampler import Resampler, load_resampler, read_first_guess
from mirage_model.model.sampler import sample_chunk, tiny_scheduler
from mirage_model.model.side_branch import side_input
from mirage_model.training import dry_run
from mirage_model.training.configuration import SOURCES, configure
from mirage_model.training.context import Stills, fill, write
from mirage_model.training.model import (
    TRAINED,
    WorldModel,
    WorldModelConfig,
    begin_stage,
    build,
    start_from,
)
from mirage_model.training.trainer import StepResult, checkpoints, fit, processes
from mirage_model.write_filter import filtered_pixels, write_mask

Velocity = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""As `WorldModel.forward`."""


@dataclass(kw_only=True)
class _Scene:
    """A clip, what of it is remembered, and the chunk that is to be predicted from ``context``.

    ``video`` holds all its chunks, (chunks, c, k, h, w); ``context`` is (c, h, w).
    """

    video: Tensor
    stills: Stills
    chunk: int
    memory: Memory
    kind: str
    context: Tensor

    def cameras(self, chunk: int) -> Cameras:
        new = self.video.shape[2] - 1
        return self.stills.cameras[chunk * new : (chunk + 1) * new + 1]


class WorldModelObjective:
    def __init__(
        self,
        model: WorldModel,
        config: WorldModelConfig,
        latents: Path,
        clips: Path,
        codec: Codec,
        resampler: Resampler | None = None,
    ):
        """``latents`` and ``clips`` each hold train/ and validation/."""
        self.module = model
        self.config = config
        self.codec = codec
        self.resampler = resampler
        if config.prediction == 'first_guess' and resampler is None:
            raise ValueError("prediction: 'first_guess' needs a resampler, give its folder")
        self.chunks = read_index(latents / 'train')
        validation = read_index(latents / 'validation')
        for index in (self.chunks, validation):
            if not len(index):
                raise ValueError(f'no encoded clips in {index.folder}')
        chosen = validation.shards[: config.validation_clips]
        self.validation = [validation.path(shard) for shard in chosen]
        self.clips = clips
        for path in self.validation:
            if not (clips / 'validation' / path.name).is_file():
                raise ValueError(
                    f'{clips / "validation" / path.name} is missing: give the folder of the clips '
                    'that the latents were made of'
                )
        begin_stage(model, config)

    def step(
        self, module: Velocity, rng: np.random.Generator, generator: torch.Generator, step: int
    ) -> StepResult:
        config = self.config
        chosen = [
            self.chunks.chunk(int(i)) for i in rng.integers(len(self.chunks), size=config.batch)
        ]
        imagined = config.context.imagined_now(step, config.batch)
        scenes = [
            self._scene(path, chunk, rng, after=i < imagined)
            for i, (path, chunk) in enumerate(chosen)
        ]
        if imagined:
            self._imagine(module, scenes[:imagined], rng)
        x = self._stack([scene.video[scene.chunk] for scene in scenes])
        u = torch.rand(len(x), generator=generator, device=x.device)
        sigma = config.shift * u / (1 + (config.shift - 1) * u)
        noise = torch.randn(x.shape, generator=generator, device=x.device)
        noisy = torch.lerp(x, noise, sigma.view(-1, 1, 1, 1, 1))
        noisy[:, :, 0] = self._stack([scene.context for scene in scenes])
        times = (1000 * sigma)[:, None].repeat(1, x.shape[2])
        times[:, 0] = 0
        side = self._sides(
            [(scene.memory, scene.cameras(scene.chunk), scene.context) for scene in scenes]
        )
        velocity = module(noisy, times, side)
        error = (velocity - (noise - x))[:, :, 1:].square()
        if config.prediction == 'first_guess':
            # the error of the clean latents that the velocity leads to
            error = error * sigma.view(-1, 1, 1, 1, 1).square()
        return StepResult(loss=error.mean(), logs={}, names=[path.stem for path, _ in chosen])

    @torch.no_grad()
    def validate(self, writer: SummaryWriter | None, step: int) -> dict[str, float]:
        """PSNR of first chunks imagined from a seed with true depth, with and without the memory."""
        self.module.eval()
        scores, pictures = {'memory': [], 'empty': [], 'repeat_seed': [], 'codec': []}, []
        for path in self.validation:
            video, stills = self._read(path)
            first = video[0].to(self.codec.device)
            frames = load_clip(self.clips / 'validation' / path.name).frames
            frames = frames.permute(0, 3, 1, 2).float() / 255
            stride = self.codec.temporal_stride
            truth = frames[1 : (first.shape[1] - 1) * stride + 1]
            shown = {
                'repeat_seed': frames[:1].expand_as(truth),
                'codec': self.codec.decode(first[None])[0, 1:].cpu(),
            }
            for name, kind in (('memory', self.config.memory), ('empty', 'none')):
                memory = self._memory(kind)
                seed = stills[:1]
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
                    self._sides([(memory, stills.cameras[: first.shape[1]], video[0, :, 0])]),
                    latent_frames=first.shape[1],
                    steps=self.config.sampler_steps,
                    seed=0,
                )
                frames = self.codec.decode(latents.to(first.device))[0, 1:]
                shown[name] = frames.clamp(0, 1).cpu()
            for name, frames in shown.items():
                scores[name].append(psnr(frames, truth))
            rows = [truth, shown['memory'], shown['empty']]
            pictures.append(
                torch.cat([row[stride - 1 :: stride].movedim(0, 2).flatten(2) for row in rows], 1)
            )
        if writer is not None:
            writer.add_image('truth_memory_empty', torch.cat(pictures[:4], dim=1), step)
        self.module.train()
        return {f'{name}_psnr_db': float(np.mean(values)) for name, values in scores.items()}

    def _read(self, path: Path) -> tuple[Tensor, Stills]:
        """Latents of a clip's chunks (chunks, c, k, h, w), and its stills."""
        tensors, cameras = load_latents(path)
        stills = Stills(
            latents=tensors['stills'].float(),
            depth=tensors['depth'],
            valid=tensors['valid'],
            cameras=cameras,
        )
        if self.config.memory in ('latent', 'none') and self.config.dynamic_filter:
            return tensors['video'].float(), stills
        clip = load_clip(self.clips / path.parent.name / path.name)
        at = slice(0, len(stills) * self.codec.temporal_stride, self.codec.temporal_stride)
        known = labels(clip, at, dynamic_filter=self.config.dynamic_filter)
        depth, valid = write_mask(known, height=cameras.height, width=cameras.width)
        stills = replace(stills, depth=depth, valid=valid)
        if self.config.memory not in ('latent', 'none'):
            frames = clip.frames[at].permute(0, 3, 1, 2).float() / 255
            stills = replace(stills, pixels=filtered_pixels(frames, known))
        return tensors['video'].float(), stills

    def _scene(self, path: Path, chunk: int, rng: np.random.Generator, *, after: bool) -> _Scene:
        """A chunk of a clip with the memory that it finds; ``after`` another, the memory that finds.

        A clip's first chunk, which no other is before, then gives way to a later one. Raises ValueError
        for a clip of one chunk.
        """
        video, stills = self._read(path)
        if after and len(video) < 2:
            raise ValueError(
                f'{path}: one chunk alone; training on what the model imagined itself takes clips '
                'of two at least: encode longer clips, or set context.imagined to 0'
            )
        if after and chunk == 0:
            chunk = int(rng.integers(1, len(video)))
        scene = _Scene(
            video=video,
            stills=stills,
            chunk=chunk,
            memory=self._memory(self.config.memory),
            kind='empty',
            context=video[chunk, :, 0],
        )
        if self.config.stage != 'backbone':
            now = (chunk - int(after)) * (video.shape[2] - 1)
            scene.kind = fill(scene.memory, stills, now=now, rng=rng, config=self.config.context)
        return scene

    @torch.no_grad()
    def _imagine(self, module: Velocity, scenes: list[_Scene], rng: np.random.Generator) -> None:
        """Let the model imagine the chunk before, from where its own memory and the true frames end.

        When running, its latents are written as they are, and its last frame is decoded and encoded
        again as context. That would cost more than the imagining itself, `dry_run.operations`, so here
        the error that the model made, its latents minus the true ones, is carried over to the true
        stills, from which the codec's clips differ little. Their depth stays the true one, with the
        noise of an imagined one.
        """
        before = [scene.video[scene.chunk - 1] for scene in scenes]
        sides = [
            (scene.memory, scene.cameras(scene.chunk - 1), true[:, 0])
            for scene, true in zip(scenes, before, strict=True)
        ]
        imagined = self._sample(
            module,
            torch.stack(before)[:, :, :1],
            self._sides(sides),
            latent_frames=before[0].shape[1],
            steps=self.config.context.imagined_steps,
            seed=int(rng.integers(2**62)),
        ).cpu()
        for scene, true, made in zip(scenes, before, imagined, strict=True):
            new = true.shape[1] - 1
            own = scene.stills[(scene.chunk - 1) * new + 1 : scene.chunk * new + 1]
            own = replace(own, latents=own.latents + (made - true)[:, 1:].movedim(1, 0))
            if own.pixels is not None:
                frames = self.codec.decode_images(own.latents.to(self.codec.device))
                pixels = Pixels(frames=frames.clamp(0, 1).cpu(), depth=own.pixels.depth)
                own = replace(own, pixels=pixels)
            if scene.kind != 'empty':
                write(scene.memory, own, observed=False, rng=rng, config=self.config.context)
            scene.context = own.latents[-1]

    def _sample(
        self,
        module: Velocity,
        context: Tensor,
        side: Tensor | None,
        *,
        latent_frames: int,
        steps: int,
        seed: int,
    ) -> Tensor:
        """Chunks (b, c, k, h, w) by the module as training calls it, which brings its text itself."""
        scheduler = tiny_scheduler()
        context = context.to(self.module.text.device)
        return sample_chunk(
            lambda latents, times, text, side: module(latents, times, side),
            type(scheduler).from_config(scheduler.config, flow_shift=self.config.shift),
            context=context,
            latent_frames=latent_frames,
            side=side,
            text=context.new_empty(len(context), 0, 0),
            steps=steps,
            generator=torch.Generator().manual_seed(seed),
        )

    def _memory(self, name: str) -> Memory:
        config = MemoryConfig(channels=self.codec.channels, splat_size=self.config.splat_size)
        return create_memory(name, config, self.codec)

    @torch.no_grad()
    def _sides(self, views: list[tuple[Memory, Cameras, Tensor]]) -> Tensor | None:
        """Return the side inputs of chunks, each from memory, cameras and latents of its context frame.

        None where the side branch stays out.
        """
        if self.config.stage == 'backbone':
            return None
        sides = []
        for memory, cameras, context in views:
            readout = read_first_guess(self.resampler, memory, cameras, context[None])
            sides.append(side_input(readout[None], rays(cameras, cameras[0])[None])[0])
        return self._stack(sides)

    def _stack(self, parts: list[Tensor]) -> Tensor:
        return torch.stack(parts).to(self.module.text.device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--config',
        default='tiny',
        help=f'{" or ".join(SOURCES)}, or a JSON file with what differs, as a run folder has it',
    )
    parser.add_argument('--dry-run', action='store_true', help='say what it takes, and end')
    parser.add_argument('--latents', type=Path)
    parser.add_argument('--clips', type=Path)
    parser.add_argument('--codec', type=Path)
    parser.add_argument(
        '--resampler', type=Path, help='folder; the model then corrects its first guess'
    )
    parser.add_argument('--run', type=Path)
    parser.add_argument('--backbone', type=Path, help='diffusers folder of a trained transformer')
    parser.add_argument('--text', type=Path, help='embedding.safetensors of a prompt')
    parser.add_argument('--stage', choices=tuple(TRAINED))
    parser.add_argument('--steps', type=int)
    parser.add_argument('--batch', type=int)
    parser.add_argument(
        '--from', dest='start', type=Path, help='checkpoint, or model folder, to start from'
    )
    parser.add_argument('--precision', choices=('no', 'bf16'))
    parser.add_argument('--compile', action='store_true', help='a minute first, then faster steps')
    arguments = parser.parse_args()
    config, trainer = configure(
        arguments.config,
        stage=arguments.stage,
        steps=arguments.steps,
        batch=arguments.batch,
        precision=arguments.precision,
    )
    if arguments.resampler is not None:
        config = replace(config, prediction='first_guess')
    if arguments.dry_run:
        print(dry_run.report(config))
        return
    for name in ('latents', 'clips', 'codec', 'run'):
        if getattr(arguments, name) is None:
            parser.error(f'training needs --{name}')
    if config.size != 'tiny' and arguments.backbone is None and arguments.start is None:
        parser.error(f'{config.size} is not trained from nothing: give --backbone or --from')
    text = None if arguments.text is None else load_file(arguments.text)['embedding'].float()
    model = build(config, seed=trainer.seed, backbone=arguments.backbone, text=text)
    if arguments.start is not None:
        try:
            start_from(model, arguments.start)
        except ValueError as error:
            parser.error(str(error))
    if arguments.compile:
        side_branch = model.backbone.side_branch
        for part in (*model.backbone.wan.blocks, *side_branch.blocks, side_branch.head):
            if part is not None:
                part.compile(dynamic=False)
    codec = Codec.from_folder(arguments.codec, device=str(processes().device))
    data = describe_latents(arguments.latents, arguments.codec)
    resampler = None if arguments.resampler is None else load_resampler(arguments.resampler)
    objective = WorldModelObjective(
        model, config, arguments.latents, arguments.clips, codec, resampler
    )
    fit(
        objective,
        trainer,
        arguments.run,
        full_config={
            'world_model': asdict(config),
            'backbone': dict(model.backbone.wan.config),
            'data': data,
        },
    )
    if processes().is_main_process:
        print(f'last checkpoint: {checkpoints(arguments.run)[-1]}')


if __name__ == '__main__':
    main()
