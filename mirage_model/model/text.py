"""Embeddings of prompts.

Models that were trained with text, such as Wan2.2, need them; the embedding of a small model is
learned.
"""

from __future__ import annotations

from dataclasses import dataclass
import hashlib
import html
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
import torch
from torch import Tensor
from torch.nn import functional as F

from mirage_model.io import written_whole

TOKENS = 512
"""Length of an embedding of Wan [tokens]."""
MAX_KEPT = 32
"""Embeddings that stay in memory."""
_PARTS = ('text_encoder', 'tokenizer')
MAX_STORED = 4096
"""Embeddings of requests that a model folder takes."""


@dataclass(frozen=True, kw_only=True)
class TextCondition:
    """Text that a rollout is conditioned on."""

    text: Float[Tensor, 'words dim']
    """Embedding of the prompt."""

    negative: Float[Tensor, 'words dim'] | None = None
    """Embedding that guidance leads away from; None computes no guidance."""

    guidance: float = 1.0
    """Weight of the difference that the prompt makes; 1 is no guidance."""

    @property
    def calls(self) -> int:
        """Number of evaluations of the network in a denoising step."""
        return 1 if self.negative is None else 2


class PromptEncoder:
    """Embeds prompts with UMT5 and keeps each embedding in a folder.

    The encoder is loaded when the first prompt comes that the folder lacks.
    """

    def __init__(
        self,
        encoder: Path,
        store: Path,
        *,
        tokens: int = TOKENS,
        max_stored: int | None = MAX_STORED,
        device: torch.device | str = 'cpu',
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Create an encoder of a folder with ``text_encoder/`` and ``tokenizer/``, which may be
        missing.

        Args:
            store: Folder of the embeddings; a folder that cannot be written is only read.
            tokens: Length of an embedding.
            max_stored: Embeddings that the folder takes; None for any number.
            dtype: Type of the encoder's weights and of new embeddings.
        """
        self._folder, self._store, self._tokens = encoder, store, tokens
        self._device, self._dtype = torch.device(device), dtype
        self._max_stored = max_stored
        self._kept: dict[str, Tensor] = {}
        self._loaded: tuple[Any, torch.nn.Module] | None = None

    @property
    def has_encoder(self) -> bool:
        """Return whether the folder has the encoder."""
        return all((self._folder / name).is_dir() for name in _PARTS)

    def to(self, device: torch.device | str) -> None:
        """Move the encoder and the embeddings in memory."""
        self._device = torch.device(device)
        self._kept = {prompt: kept.to(device) for prompt, kept in self._kept.items()}
        if self._loaded is not None:
            self._loaded[1].to(device)

    def embed(self, prompt: str) -> Float[Tensor, 'words dim']:
        """Return the embedding of a prompt, zero after the prompt's end, as Wan expects it.

        Raises:
            ValueError: The prompt is too long, or the folder has neither its embedding nor an
                encoder.
        """
        prompt = clean(prompt)
        if prompt not in self._kept:
            path = self._store / f'{hashlib.sha256(prompt.encode()).hexdigest()}.safetensors'
            embedding = _read(path)
            if embedding is None:
                embedding = self._encode(prompt)
                self._save(path, embedding, prompt)
            padded = F.pad(embedding, (0, 0, 0, self._tokens - len(embedding)))
            if len(self._kept) == MAX_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[prompt] = padded.to(self._device)
        return self._kept[prompt]

    @torch.no_grad()
    def _encode(self, prompt: str) -> Float[Tensor, 'tokens dim']:
        """Return the embedding of a prompt without padding, on the CPU."""
        tokenizer, encoder = self._load(prompt)
        tokens = tokenizer(
            prompt, padding='max_length', max_length=self._tokens, return_tensors='pt'
        )
        if tokens.input_ids.shape[1] > self._tokens:
            raise ValueError(
                f'prompt: {prompt[:60]!r}... has {tokens.input_ids.shape[1]} tokens, '
                f'at most {self._tokens} are allowed'
            )
        mask = tokens.attention_mask
        hidden = encoder(tokens.input_ids.to(self._device), mask.to(self._device))
        return hidden.last_hidden_state[0, : int(mask.sum())].cpu()

    def _load(self, prompt: str) -> tuple[Any, torch.nn.Module]:
        if self._loaded is None:
            for name in _PARTS:
                if not (self._folder / name).is_dir():
                    raise ValueError(
                        f'prompt: {prompt[:60]!r} has no embedding in {self._store} and '
                        f'{self._folder / name} is missing, add the encoder or leave the prompt '
                        'empty'
                    )
            from transformers import AutoTokenizer, UMT5EncoderModel

            tokenizer = AutoTokenizer.from_pretrained(
                self._folder / 'tokenizer', local_files_only=True
            )
            encoder = UMT5EncoderModel.from_pretrained(
                self._folder / 'text_encoder',
                local_files_only=True,
                use_safetensors=True,
                dtype=self._dtype,
            )
            self._loaded = tokenizer, encoder.eval().to(self._device)
        return self._loaded

    def _save(self, path: Path, embedding: Tensor, prompt: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stored = sum(1 for _ in path.parent.iterdir())
            if self._max_stored is None or stored < self._max_stored:
                with written_whole(path) as part:
                    save_file({'embedding': embedding.contiguous()}, part, {'prompt': prompt})
        except OSError:
            pass  # a read-only folder: the embedding stays in memory


def clean(prompt: str) -> str:
    """Return a prompt without HTML entities and with single spaces, as Wan cleans it."""
    return ' '.join(html.unescape(html.unescape(prompt)).split())


def _read(path: Path) -> Float[Tensor, 'tokens dim'] | None:
    """Return a stored embedding; None if it is missing or damaged."""
    try:
        return load_file(path)['embedding']
    except (OSError, SafetensorError, KeyError):
        return None
