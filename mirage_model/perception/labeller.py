"""Segment dynamic objects and sky by words, around any perception.

Grounding DINO finds boxes of the words, SAM 2, SAM 3 or EdgeTAM follows their masks over the
frames, and Qwen3-VL may add words from what it sees. All run through transformers, from local
folders.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
import re
from typing import TypeAlias

from jaxtyping import Bool, Float, Int
import torch
from torch import Tensor
from torch.nn import functional as F

from mirage_model.camera import Cameras
from mirage_model.io import read_json
from mirage_model.memory import Readout
from mirage_model.perception import Estimate, Perception

Colours: TypeAlias = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and deviation of red, green and blue that a network takes out of its input."""
_IMAGENET: Colours = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF: Colours = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_MAX_WORDS = 20
_QUESTION = (
    'Name each kind of thing in this image that moves or could be moved within a minute, such as '
    'people, animals, vehicles or doors. Answer with singular nouns, separated by commas.'
)


@dataclass(frozen=True, kw_only=True)
class LabellerConfig:
    """Content of ``labeller.json``."""

    dynamic: tuple[str, ...] = ('person', 'animal', 'car', 'bicycle', 'cart', 'robot', 'door')
    """Words of dynamic objects."""

    sky: tuple[str, ...] = ('sky',)
    """Words of the sky; empty to leave the sky to the perception."""

    min_score: float = 0.3
    """Smallest score of a box, in 0..1."""

    detect_every: int = 4
    """Frames between two detections; between them boxes are followed in both directions."""

    detector_side: int = 800
    """Shorter side of the detector's image [px]."""

    vocabulary_period: float = 30.0
    """Time after which the vision-language model names the dynamic objects again [s]."""

    def __post_init__(self) -> None:
        if not self.dynamic:
            raise ValueError('dynamic: no words, at least one is needed')
        for name in ('detect_every', 'detector_side'):
            if not getattr(self, name) >= 1:
                raise ValueError(f'{name}: {getattr(self, name)} is too small, 1 is the least')


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Masks of n frames."""

    moving: Bool[Tensor, 'n h w']
    """True on dynamic objects."""

    sky: Bool[Tensor, 'n h w']
    """True in the sky."""


class Labeller:
    """Detector, tracker and optional vision-language model.

    A folder holds ``labeller.json``, ``detector/`` (Grounding DINO), ``tracker/`` (SAM 2, SAM 3
    or EdgeTAM video) and optionally ``vocabulary/`` (Qwen3-VL), each in transformers' layout.
    """

    def __init__(self, folder: Path) -> None:
        """Load a folder.

        Raises:
            ValueError: A file is missing or does not fit.
        """
        from transformers import AutoTokenizer, GroundingDinoForObjectDetection

        self.config = _read_config(folder / 'labeller.json')
        for name in ('detector', 'tracker'):
            if not (folder / name / 'config.json').is_file():
                raise ValueError(f'{folder / name}: config.json is missing')
        local = {'local_files_only': True, 'use_safetensors': True}
        self.detector = GroundingDinoForObjectDetection.from_pretrained(
            folder / 'detector', **local
        ).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder / 'detector', local_files_only=True)
        self.tracker, self._session, self._colours = _load_tracker(folder / 'tracker')
        vocabulary = folder / 'vocabulary'
        self.vocabulary = Vocabulary(vocabulary) if vocabulary.is_dir() else None
        self._words: tuple[str, ...] = self.config.dynamic
        self._named_at: float | None = None

    def to(self, device: torch.device | str) -> None:
        """Move the networks to a device."""
        self.detector.to(device)
        self.tracker.to(device)
        if self.vocabulary is not None:
            self.vocabulary.model.to(device)

    @torch.inference_mode()
    def label(self, frames: Float[Tensor, 'n 3 h w'], times: Float[Tensor, 'n']) -> Labels:
        """Segment consecutive frames.

        Args:
            frames: RGB in 0..1.
            times: Times of the frames [s].
        """
        dynamic = self._dynamic_words(frames[0], float(times[0]))
        words = dynamic + self.config.sky
        shape = (len(frames), *frames.shape[-2:])
        moving = torch.zeros(shape, dtype=torch.bool, device=frames.device)
        sky = torch.zeros_like(moving)
        for index in range(0, len(frames), self.config.detect_every):
            boxes, found = self._detect(frames[index], words)
            if not len(boxes):
                continue
            window, masks = self._follow(frames, index, boxes)
            is_sky = found >= len(dynamic)
            moving[window] |= masks[~is_sky].any(dim=0)
            sky[window] |= masks[is_sky].any(dim=0)
        return Labels(moving=moving, sky=sky & ~moving)

    def _dynamic_words(self, frame: Float[Tensor, '3 h w'], time: float) -> tuple[str, ...]:
        """Return the configured words and those of the vision-language model, asked at times."""
        if self.vocabulary is None:
            return self.config.dynamic
        age = None if self._named_at is None else time - self._named_at
        if age is None or not 0 <= age < self.config.vocabulary_period:
            named = self.vocabulary.name(frame)
            known = (*self.config.dynamic, *self.config.sky)
            self._words = self.config.dynamic + tuple(word for word in named if word not in known)
            self._named_at = time
        return self._words

    def _detect(
        self, frame: Float[Tensor, '3 h w'], words: tuple[str, ...]
    ) -> tuple[Float[Tensor, 'k 4'], Int[Tensor, 'k']]:
        """Return boxes in 0..1 as (left, top, right, bottom), and the index of each box's word."""
        device = self.detector.device
        ids, word_of = [self.tokenizer.cls_token_id], [-1]
        (dot,) = self.tokenizer.encode('.', add_special_tokens=False)
        for index, word in enumerate(words):
            tokens = self.tokenizer.encode(word.lower(), add_special_tokens=False)
            ids += [*tokens, dot]
            word_of += [index] * len(tokens) + [-1]
        input_ids = torch.tensor([[*ids, self.tokenizer.sep_token_id]], device=device)
        scale = self.config.detector_side / min(frame.shape[1:])
        size = [round(side * scale) for side in frame.shape[1:]]
        pixels = _normalised(frame[None].to(device), size, _IMAGENET)
        output = self.detector(
            pixel_values=pixels,
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            pixel_mask=torch.ones(1, *size, dtype=torch.long, device=device),
        )
        owners = torch.tensor([*word_of, -1], device=device)
        by_token = output.logits[0, :, : len(owners)].sigmoid()
        by_word = torch.stack(
            [by_token[:, owners == index].amax(dim=1) for index in range(len(words))], dim=1
        )
        score, found = by_word.max(dim=1)
        kept = score >= self.config.min_score
        centre, extent = output.pred_boxes[0, kept].float().split(2, dim=1)
        boxes = torch.cat([centre - extent / 2, centre + extent / 2], dim=1).clamp(0, 1)
        return boxes, found[kept]

    def _follow(
        self, frames: Float[Tensor, 'n 3 h w'], index: int, boxes: Float[Tensor, 'k 4']
    ) -> tuple[slice, Bool[Tensor, 'k m h w']]:
        """Return the window around frame ``index`` and the boxes' masks in it."""
        device, dtype = self.tracker.device, self.tracker.dtype
        reach = self.config.detect_every - 1
        window = slice(max(0, index - reach), min(len(frames), index + reach + 1))
        height, width = frames.shape[-2:]
        size = self.tracker.config.image_size
        size = [size, size] if isinstance(size, int) else list(size)
        session = self._session(
            video=_normalised(frames[window].to(device), size, self._colours),
            video_height=height,
            video_width=width,
            inference_device=device,
            inference_state_device=device,
            video_storage_device=device,
            dtype=dtype,
        )
        start = index - window.start
        corners = boxes.view(-1, 1, 1, 2, 2) * boxes.new_tensor([size[1], size[0]])
        for number, box in enumerate(corners.to(device)):
            session.add_point_inputs(
                session.obj_id_to_idx(number),
                start,
                {
                    'point_coords': box,
                    # the labels of the corners of a box
                    'point_labels': torch.tensor([[[2, 3]]], dtype=torch.int32, device=device),
                },
            )
        session.obj_with_new_inputs = list(range(len(boxes)))
        length = window.stop - window.start
        masks = torch.zeros(len(boxes), length, height, width, dtype=torch.bool)
        masks = masks.to(frames.device)
        for reverse in (False, True):
            for output in self.tracker.propagate_in_video_iterator(
                session, start_frame_idx=start, max_frame_num_to_track=reach, reverse=reverse
            ):
                logits = F.interpolate(output.pred_masks.float(), (height, width), mode='bilinear')
                masks[:, output.frame_idx] = (logits[:, 0] > 0).to(frames.device)
        return window, masks


class Vocabulary:
    """Qwen3-VL, which names what could move in an image."""

    def __init__(self, folder: Path, *, max_new_tokens: int = 64) -> None:
        """Load a folder in transformers' layout with safetensors."""
        from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
            Qwen2VLImageProcessorPil,
        )

        self.model = Qwen3VLForConditionalGeneration.from_pretrained(
            folder, local_files_only=True, use_safetensors=True
        ).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.processor = Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True)
        self.max_new_tokens = max_new_tokens

    def name(self, frame: Float[Tensor, '3 h w']) -> tuple[str, ...]:
        """Return the words of what could move in a frame of RGB in 0..1."""
        image = frame.clamp(0, 1).mul(255).round().byte().movedim(0, -1).cpu().numpy()
        inputs = self.processor(images=[image], return_tensors='pt')
        count = int(inputs['image_grid_thw'].prod()) // self.processor.merge_size**2
        text = (
            '<|im_start|>user\n<|vision_start|>'
            + '<|image_pad|>' * count
            + f'<|vision_end|>{_QUESTION}<|im_end|>\n<|im_start|>assistant\n'
        )
        ids = torch.tensor([self.tokenizer.encode(text, add_special_tokens=False)])
        image_token = self.model.config.image_token_id
        device = self.model.device
        answer = self.model.generate(
            input_ids=ids.to(device),
            attention_mask=torch.ones_like(ids).to(device),
            mm_token_type_ids=(ids == image_token).int().to(device),
            pixel_values=inputs['pixel_values'].to(device, self.model.dtype),
            image_grid_thw=inputs['image_grid_thw'].to(device),
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
        )
        return words_of(self.tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True))


def words_of(answer: str) -> tuple[str, ...]:
    """Return the distinct words of a list separated by commas or lines, without long phrases."""
    words = (
        re.sub(r'[^a-z -]', '', part.lower()).strip(' -') for part in re.split(r'[,;\n]', answer)
    )
    distinct = dict.fromkeys(word for word in words if word and len(word.split()) <= 3)
    return tuple(distinct)[:_MAX_WORDS]


class LabelledPerception:
    """A perception with the dynamic objects and the sky of a labeller beside its own."""

    segments_dynamic = True

    def __init__(self, perception: Perception, labeller: Labeller) -> None:
        self.perception = perception
        self.labeller = labeller
        self.estimates_cameras = perception.estimates_cameras

    def to(self, device: torch.device | str) -> None:
        self.perception.to(device)
        self.labeller.to(device)

    def estimate(
        self, frames: Float[Tensor, 'n 3 h w'], cameras: Cameras, readout: Readout | None = None
    ) -> Estimate:
        estimate = self.perception.estimate(frames, cameras, readout)
        labels = self.labeller.label(frames, cameras.times)
        sky = estimate.sky | labels.sky
        return replace(
            estimate,
            depth=estimate.depth.masked_fill(labels.sky, torch.nan),
            sky=sky,
            moving=(estimate.moving & ~labels.sky) | labels.moving,
            moving_probability=estimate.moving_probability.masked_fill(labels.moving, 1.0),
        )


def _normalised(
    frames: Float[Tensor, 'n 3 h w'], size: list[int], colours: Colours
) -> Float[Tensor, 'n 3 H W']:
    """Return frames of a size, with a mean and a deviation of the colours removed."""
    pixels = F.interpolate(frames, size, mode='bilinear', antialias=True)
    mean, std = (pixels.new_tensor(value)[:, None, None] for value in colours)
    return (pixels - mean) / std


def _read_config(path: Path) -> LabellerConfig:
    fields = read_json(path)
    try:
        words = {name: tuple(fields[name]) for name in ('dynamic', 'sky') if name in fields}
        return LabellerConfig(**{**fields, **words})
    except (TypeError, ValueError) as error:
        allowed = ', '.join(asdict(LabellerConfig()))
        raise ValueError(f'{path}: not valid, {error}; the fields are {allowed}') from None


def _load_tracker(folder: Path):
    """Return the tracker of a folder, the class of its sessions, and its colours.

    A folder of SAM 3 holds a detector too, which is left out.
    """
    from transformers import (
        AutoConfig,
        EdgeTamVideoModel,
        Sam2VideoModel,
        Sam3TrackerVideoModel,
    )
    from transformers.models.edgetam_video.modeling_edgetam_video import (
        EdgeTamVideoInferenceSession,
    )
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession
    from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import (
        Sam3TrackerVideoInferenceSession,
    )

    sam3 = (Sam3TrackerVideoModel, Sam3TrackerVideoInferenceSession, _HALF)
    trackers = {
        'sam2_video': (Sam2VideoModel, Sam2VideoInferenceSession, _IMAGENET),
        'edgetam_video': (EdgeTamVideoModel, EdgeTamVideoInferenceSession, _IMAGENET),
        'sam3_video': sam3,
        'sam3_tracker_video': sam3,
    }
    kind = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
    if kind not in trackers:
        raise ValueError(f'{folder}: a model of type {kind!r}, allowed are {sorted(trackers)}')
    model, session, colours = trackers[kind]
    loaded = model.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    return loaded.eval(), session, colours
