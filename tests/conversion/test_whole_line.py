"""Official files are imported and answer a request with a prompt and a labeller."""

from __future__ import annotations

from dataclasses import replace

from diffusers import AutoencoderKLWan, UniPCMultistepScheduler
from folders import WORDS, save_branch, save_wan
from models import save_small_labeller
import numpy as np
from published import TINY, lora, random_state, side_branch, transformer, umt5, vae
import pytest
import reference
import torch

from mirage_model.camera import Cameras, unproject
from mirage_model.conversion import names
from mirage_model.conversion.command import main
from mirage_model.conversion.config import ImportCommand
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.model.checkpoint import load_model
from mirage_model.model.codec import WAN22_STATISTICS, WAN22_VAE
from mirage_model.model.rollout import RolloutInput, on_latent_grid, rollouts
from mirage_model.model.text import TextCondition
from mirage_model.write_filter import write_frames

HEIGHT, WIDTH, STEPS, PROMPT = 64, 96, 3, 'a quiet hall with red doors'


def cameras_along(count: int) -> Cameras:
    K = torch.tensor([[60.0, 0.0, 47.5], [0.0, 60.0, 31.5], [0.0, 0.0, 1.0]])
    pose = torch.eye(4).repeat(count, 1, 1)
    pose[:, 0, 3] = 0.03 * torch.arange(count)
    return Cameras(
        K=K.repeat(count, 1, 1),
        world_from_camera=pose,
        times=torch.arange(count, dtype=torch.float64) / 16,
        height=HEIGHT,
        width=WIDTH,
    )


class PublishedWan:
    """The published networks on their own tensors; what has a slow reference is that one."""

    def __init__(self) -> None:
        self.state = random_state(transformer(TINY))
        published = random_state(lora(TINY, 3), 4)
        for name, down in published.items():
            if '.lora_A.' in name:
                layer = name.removeprefix('pipe.dit.').replace('.lora_A', '')
                up = published[name.replace('lora_A', 'lora_B')]
                self.state[layer] = self.state[layer] + up @ down
        self.branch = random_state(side_branch(TINY, 2), 3)
        arguments = {**WAN22_VAE, **WAN22_STATISTICS, 'base_dim': 4, 'decoder_base_dim': 4}
        self.vae = AutoencoderKLWan(**arguments).eval()
        self.vae.load_state_dict(names.vae(random_state(vae(base=4, decoder_base=4), 1)))
        statistics = (torch.tensor(v).view(1, 48, 1, 1, 1) for v in WAN22_STATISTICS.values())
        self.mean, self.std = statistics

    def text(self, prompt: str) -> torch.Tensor:
        state = random_state(
            umt5(words=len(WORDS), dim=TINY.text, heads=2, hidden=24, layers=2), 2
        )
        embedding = reference.umt5(state, [WORDS.index(word) for word in prompt.split()], heads=2)
        return torch.cat([embedding, torch.zeros(512 - len(embedding), TINY.text)])

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """Return latents (c, k, h, w) of frames (n, 3, H, W)."""
        z = self.vae.encode(frames.movedim(1, 0)[None] * 2 - 1).latent_dist.mode()
        return ((z - self.mean) / self.std)[0]

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        frames = self.vae.decode(latents[None] * self.std + self.mean).sample[0].movedim(0, 1)
        return ((frames + 1) / 2).clamp(0, 1)

    def denoise(self, context, noise, references, preceding, scene, text):
        """Return the latents (c, k, h, w) of a chunk, its context first."""
        scheduler = UniPCMultistepScheduler(
            prediction_type='flow_prediction', use_flow_sigmas=True, flow_shift=1.0
        )
        scheduler.set_timesteps(sigmas=np.array(reference.schedule(STEPS, 5.0)[0][:-1]))
        video = scene.shape[1]
        white = self.encode(torch.ones(4 * (video - 1) + 1, 3, HEIGHT, WIDTH))
        target, r, p = noise, references.shape[1], preceding.shape[1]
        for timestep in scheduler.timesteps:
            time = float(timestep)
            velocity = reference.velocity(
                self.state,
                torch.cat([references, context, target, preceding], dim=1),
                [0.0] * (r + 1) + [time] * target.shape[1] + [0.0] * p,
                text,
                heads=TINY.heads,
                references=r,
                branch=self.branch,
                side=torch.cat([scene, white]),
                branch_layers=(0, 2),
            )
            moved = velocity[:, 1 : 1 + target.shape[1]]
            target = scheduler.step(moved[None], timestep, target[None], return_dict=False)[0][0]
        return torch.cat([context, target], dim=1)


def voxels_of(memory: LatentMemory, camera: Cameras) -> set[tuple[int, ...]]:
    readout = memory.readout(camera, latents=False)
    points = unproject(readout.depth, camera)[readout.visible]
    return {tuple(v) for v in (points / 0.1).floor().int().tolist()}


@pytest.mark.slow
@torch.no_grad()
def test_imported_model_equals_the_reference_rollout(tmp_path):
    """Two chunks of a request with a prompt and a labeller agree within 1e-4."""
    wan = save_wan(tmp_path / 'wan', pickled=True)
    official = save_branch(tmp_path / 'official', blocks=2)
    out = tmp_path / 'model'
    sizes = {'height': HEIGHT, 'width': WIDTH, 'chunk_frames': 9, 'steps': STEPS}
    command = ImportCommand(
        source='official', folder=official, wan=wan, out=out, precision='float32', **sizes
    )
    assert main(command) == 0
    labeller = save_small_labeller(tmp_path / 'labeller')
    model = load_model(out, labeller=labeller)
    published = PublishedWan()

    cameras = cameras_along(17)
    frame = torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(5))
    depth = torch.full((1, HEIGHT, WIDTH), 2.0)
    text = TextCondition(text=model.prompts.embed(PROMPT))
    expected_text = published.text(PROMPT)
    torch.testing.assert_close(text.text, expected_text, atol=1e-5, rtol=1e-5)

    def seeded() -> LatentMemory:
        memory = LatentMemory(MemoryConfig(channels=48))
        estimate = model.perception.estimate(frame, cameras[:1])
        estimate = replace(
            estimate,
            depth=depth,
            confidence=torch.ones_like(depth),
            sky=torch.zeros_like(estimate.sky),
            moving=torch.zeros_like(estimate.moving),
        )
        write_frames(memory, frame, estimate, codec=model.codec, observed=True)
        return memory

    path = RolloutInput(
        memory=seeded(),
        frame=frame,
        camera=cameras[:1],
        cameras=cameras[1:],
        generator=torch.Generator().manual_seed(9),
    )
    chunks = [chunk.frames for _, chunk in rollouts(model, [path], steps=STEPS, text=text)]

    memory, generator = seeded(), torch.Generator().manual_seed(9)
    context, latents, scenes, seen = frame, [], [], []
    for number in range(2):
        chunk = cameras[8 * number : 8 * number + 9]
        grid = on_latent_grid(chunk[::4], model)
        readout = memory.readout(grid)
        scene = readout.latents.movedim(1, 0)
        assert readout.visible[1:].any()
        encoded = published.encode(context)
        preceding = torch.stack(latents[-3:-1], dim=1) if latents else encoded[:, :0]
        before = torch.stack(scenes[-3:-1], dim=1) if latents else encoded[:, :0]
        wanted = set().union(*(voxels_of(memory, grid[i : i + 1]) for i in range(3)))
        seen += [
            voxels_of(memory, on_latent_grid(cameras[4 * i : 4 * i + 1], model))
            for i in range(len(seen), len(latents))
        ]
        overlaps = [len(wanted & frames) / len(wanted | frames) for frames in seen]
        order = sorted(range(len(overlaps)), key=lambda i: -overlaps[i])
        chosen = [latents[i] for i in order if overlaps[i] >= 0.04][:4]
        references = torch.stack(chosen, dim=1) if chosen else encoded[:, :0]
        assert (references.shape[1] > 0) == (preceding.shape[1] > 0) == (number == 1)
        noise = torch.randn(48, 2, 4, 6, generator=generator)
        made = published.denoise(
            encoded, noise, references, preceding, torch.cat([scene, before], 1), expected_text
        )
        frames = published.decode(made)[1:]
        torch.testing.assert_close(chunks[number], frames, atol=1e-4, rtol=0.0)
        first = 0 if number == 0 else 1
        latents += list(made.unbind(1))[first:]
        scenes += list(scene.unbind(1))[first:]
        last = frames[3::4]
        estimate = model.perception.estimate(last, chunk[4::4], readout[1:])
        new = made[:, 1:].movedim(1, 0)
        write_frames(memory, last, estimate, codec=model.codec, observed=False, latents=new)
        context = frames[-1:]
