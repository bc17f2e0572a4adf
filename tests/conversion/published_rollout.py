"""A rollout of the published networks at tiny size, by slow references of the tests' own writing.

The memory, the write filter and the perception are those of the repository; the steps of UniPC are
diffusers'. Everything else is written here once more.
"""

from __future__ import annotations

from collections.abc import Iterator

from diffusers import UniPCMultistepScheduler
from folders import WORDS
import numpy as np
from published import TINY, lora, random_state, side_branch, transformer, umt5, vae
import reference
import torch
from torch import Tensor
from vae_reference import Vae

from mirage_model.camera import Cameras, resized, unproject
from mirage_model.memory.latent import LatentMemory
from mirage_model.model.checkpoint import Model
from mirage_model.model.codec import WAN22_STATISTICS
from mirage_model.write_filter import write_frames

STRIDE = 16


class PublishedWan:
    """The published networks on their own tensors."""

    def __init__(self) -> None:
        self.state = random_state(transformer(TINY))
        published = random_state(lora(TINY, 3), 4)
        for name, down in published.items():
            if '.lora_A.' in name:
                layer = name.removeprefix('pipe.dit.').replace('.lora_A', '')
                up = published[name.replace('lora_A', 'lora_B')]
                self.state[layer] = self.state[layer] + up @ down
        self.branch = random_state(side_branch(TINY, 2), 3)
        self.vae = Vae(random_state(vae(base=4, decoder_base=4), 1))
        statistics = (torch.tensor(v).view(1, 48, 1, 1, 1) for v in WAN22_STATISTICS.values())
        self.mean, self.std = statistics

    def text(self, prompt: str) -> Tensor:
        state = random_state(
            umt5(words=len(WORDS), dim=TINY.text, heads=2, hidden=24, layers=2), 2
        )
        embedding = reference.umt5(state, [WORDS.index(word) for word in prompt.split()], heads=2)
        return torch.cat([embedding, torch.zeros(512 - len(embedding), TINY.text)])

    def encode(self, frames: Tensor) -> Tensor:
        """Return latents (c, k, h, w) of frames (n, 3, H, W)."""
        z = self.vae.encode(frames.movedim(1, 0)[None] * 2 - 1)
        return ((z - self.mean) * (1 / self.std))[0]

    def decode(self, latents: Tensor) -> Tensor:
        frames = self.vae.decode(latents[None] / (1 / self.std) + self.mean)[0].movedim(0, 1)
        return ((frames + 1) / 2).clamp(0, 1)

    def denoise(
        self,
        context: Tensor,
        noise: Tensor,
        references: Tensor,
        preceding: Tensor,
        scene: Tensor,
        text: Tensor,
        *,
        steps: int,
    ) -> Tensor:
        """Return the latents (c, k, h, w) of a chunk, its context first."""
        scheduler = UniPCMultistepScheduler(
            prediction_type='flow_prediction', use_flow_sigmas=True, flow_shift=1.0
        )
        scheduler.set_timesteps(sigmas=np.array(reference.schedule(steps, 5.0)[0][:-1]))
        video, height, width = scene.shape[1:]
        white = torch.ones(4 * (video - 1) + 1, 3, height * STRIDE, width * STRIDE)
        side = torch.cat([scene, self.encode(white)])
        target, r, p = noise, references.shape[1], preceding.shape[1]
        for timestep in scheduler.timesteps:
            times = [0.0] * (r + 1) + [float(timestep)] * target.shape[1] + [0.0] * p
            velocity = reference.velocity(
                self.state,
                torch.cat([references, context, target, preceding], dim=1),
                times,
                text,
                heads=TINY.heads,
                references=r,
                branch=self.branch,
                side=side,
                branch_layers=(0, 2),
            )
            moved = velocity[:, 1 : 1 + target.shape[1]]
            target = scheduler.step(moved[None], timestep, target[None], return_dict=False)[0][0]
        return torch.cat([context, target], dim=1)


def voxels_of(memory: LatentMemory, camera: Cameras) -> set[tuple[int, ...]]:
    readout = memory.readout(camera, latents=False)
    points = unproject(readout.depth, camera)[readout.visible]
    return {tuple(v) for v in (points / 0.1).floor().int().tolist()}


@torch.no_grad()
def published_rollout(
    model: Model,
    memory: LatentMemory,
    frame: Tensor,
    cameras: Cameras,
    *,
    prompt: str,
    steps: int,
    generator: torch.Generator,
) -> Iterator[Tensor]:
    """Yield the new frames (8, 3, H, W) of each chunk of nine frames, and write them.

    Args:
        model: Gives the perception, and the stride of its codec.
        frame: The seed frame (1, 3, H, W).
        cameras: Its camera, then those of the new frames.
    """
    published = PublishedWan()
    text = published.text(prompt)
    height, width = cameras.height // STRIDE, cameras.width // STRIDE
    latents: list[Tensor] = []
    scenes: list[Tensor] = []
    seen: list[set[tuple[int, ...]]] = []
    for number in range((len(cameras) - 1) // 8):
        chunk = cameras[8 * number : 8 * number + 9]
        grid = resized(chunk[::4], height, width)
        readout = memory.readout(grid)
        scene = readout.latents.movedim(1, 0)
        assert readout.visible[1:].any()
        encoded = published.encode(frame)
        preceding = torch.stack(latents[-3:-1], dim=1) if latents else encoded[:, :0]
        before = torch.stack(scenes[-3:-1], dim=1) if latents else encoded[:, :0]
        wanted = set().union(*(voxels_of(memory, grid[i : i + 1]) for i in range(3)))
        seen += [
            voxels_of(memory, resized(cameras[4 * i : 4 * i + 1], height, width))
            for i in range(len(seen), len(latents))
        ]
        overlaps = [len(wanted & frames) / len(wanted | frames) for frames in seen]
        order = sorted(range(len(overlaps)), key=lambda i: -overlaps[i])
        chosen = [latents[i] for i in order if overlaps[i] >= 0.04][:4]
        references = torch.stack(chosen, dim=1) if chosen else encoded[:, :0]
        assert (references.shape[1] > 0) == (preceding.shape[1] > 0) == (number > 0)
        noise = torch.randn(48, 2, height, width, generator=generator)
        made = published.denoise(
            encoded, noise, references, preceding, torch.cat([scene, before], 1), text, steps=steps
        )
        frames = published.decode(made)[1:]
        yield frames
        first = 0 if number == 0 else 1
        latents += list(made.unbind(1))[first:]
        scenes += list(scene.unbind(1))[first:]
        last = frames[3::4]
        estimate = model.perception.estimate(last, chunk[4::4], readout[1:])
        new = made[:, 1:].movedim(1, 0)
        write_frames(memory, last, estimate, codec=model.codec, observed=False, latents=new)
        frame = frames[-1:]
