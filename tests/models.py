"""Tiny networks of the real classes with random weights, and a model folder of them."""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderKLWan, WanTransformer3DModel
from tokenizers import Tokenizer, models, pre_tokenizers
import torch
from transformers import (
    AutoModelForDepthEstimation,
    BertTokenizer,
    DepthAnythingConfig,
    Dinov2Config,
    EdgeTamVideoConfig,
    EdgeTamVideoModel,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    PreTrainedTokenizerFast,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam3TrackerVideoConfig,
    Sam3TrackerVideoModel,
    SwinConfig,
    UMT5Config,
    UMT5EncoderModel,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from mirage_model.io import write_json
from mirage_model.model.backbone import Backbone
from mirage_model.model.checkpoint import ModelConfig, save_model
from mirage_model.model.codec import BlockAutoencoder, Codec
from mirage_model.model.resampler import Resampler
from mirage_model.model.sampler import tiny_scheduler
from mirage_model.model.side_branch import SideBranch, SideBranchConfig, SideInput
from mirage_model.perception.embedded import Network, NetworkConfig, save_network

HEIGHT, WIDTH, CHANNELS, CHUNK_FRAMES = 32, 48, 4, 9


def small_vae(seed: int = 0) -> AutoencoderKLWan:
    torch.manual_seed(seed)
    return AutoencoderKLWan(
        base_dim=8,
        z_dim=CHANNELS,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[True, True],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=8,
        scale_factor_temporal=4,
        latents_mean=[0.1] * CHANNELS,
        latents_std=[0.5] * CHANNELS,
    )


def small_blocks(seed: int = 0) -> BlockAutoencoder:
    """Return a block codec whose decoder is the transpose of its encoder."""
    torch.manual_seed(seed)
    vae = BlockAutoencoder(
        z_dim=CHANNELS, latents_mean=[0.1] * CHANNELS, latents_std=[0.5] * CHANNELS
    )
    basis = torch.linalg.qr(torch.randn(48, CHANNELS)).Q.T.view(CHANNELS, 3, 4, 4).contiguous()
    with torch.no_grad():
        vae.encoder.weight.copy_(basis)
        vae.decoder.weight.copy_(basis)
        vae.encoder.bias.zero_()
        vae.decoder.bias.zero_()
    return vae


def small_backbone(seed: int = 0, *, side_input: SideInput = 'mirage') -> Backbone:
    torch.manual_seed(seed)
    wan = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=8,
        freq_dim=16,
        ffn_dim=32,
        num_layers=3,
    )
    config = SideBranchConfig(layers=(0, 2), head=16, input=side_input)
    return Backbone(wan, SideBranch(wan, config))


def save_small_model(folder: Path, seed: int = 0) -> Path:
    """Write a model folder whose side branch is not zero, so that the memory affects the
    output.
    """
    backbone = small_backbone(seed)
    with torch.no_grad():
        for projection in backbone.side_branch.proj_out:
            projection.weight.normal_(std=0.5)
    save_model(
        folder,
        config=ModelConfig(
            name='small-random',
            height=HEIGHT,
            width=WIDTH,
            chunk_frames=CHUNK_FRAMES,
            frame_rate=8.0,
            steps=2,
            splat_size=3,
        ),
        vae=small_vae(seed),
        backbone=backbone,
        scheduler=tiny_scheduler(),
        text=torch.randn(1, 8),
    )
    # an untrained network must not classify all pixels as sky or dynamic objects
    config = NetworkConfig(
        widths=(8, 8, 8, 8), sky_threshold=1.0, moving_threshold=1.0, max_error_ratio=1e9
    )
    save_network(folder / 'perception', Network(config))
    return folder


def save_first_guess_model(folder: Path, seed: int = 0) -> Path:
    """Write a model folder of a block codec and a resampler, without a transformer."""
    torch.manual_seed(seed)
    save_model(
        folder,
        config=ModelConfig(
            name='small-guess',
            height=HEIGHT,
            width=WIDTH,
            chunk_frames=CHUNK_FRAMES,
            frame_rate=8.0,
            steps=1,
            splat_size=3,
            prediction='first_guess',
        ),
        vae=small_blocks(seed),
        backbone=None,
        scheduler=None,
        text=None,
        resampler=Resampler.of_codec(Codec(small_blocks(seed)), (8,)),
    )
    config = NetworkConfig(
        widths=(8, 8, 8, 8), sky_threshold=1.0, moving_threshold=1.0, max_error_ratio=1e9
    )
    save_network(folder / 'perception', Network(config))
    return folder


def save_depth_anything(folder: Path, kind: str) -> None:
    torch.manual_seed(0)
    backbone = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        out_indices=[1, 2],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=16,
        reassemble_factors=[1, 0.5],
        neck_hidden_sizes=[8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
        depth_estimation_type=kind,
        max_depth=20 if kind == 'metric' else None,
    )
    AutoModelForDepthEstimation.from_config(config).save_pretrained(folder)


def save_text_encoder(folder: Path) -> Path:
    """Write a UMT5 encoder in Wan's layout, tiny and random, of eight channels."""
    torch.manual_seed(0)
    config = UMT5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    UMT5EncoderModel(config).save_pretrained(folder / 'text_encoder')
    words = {'<pad>': 0, '</s>': 1, '<unk>': 2, 'a': 3, 'quiet': 4, 'room': 5, 'blurred': 6}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token='<unk>'))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token='<pad>', eos_token='</s>', unk_token='<unk>'
    ).save_pretrained(folder / 'tokenizer')
    return folder


DETECTOR_WORDS = {
    'person': 5,
    'animal': 6,
    'sky': 7,
    '[UNK]': 100,
    '[CLS]': 101,
    '[SEP]': 102,
    '.': 1012,
}


SAM2_VISION = {
    'model_type': 'sam2_vision_model',
    'backbone_config': {
        'model_type': 'sam2_hiera_det_model',
        'hidden_size': 8,
        'num_attention_heads': 1,
        'blocks_per_stage': [1, 1, 2, 1],
        'embed_dim_per_stage': [8, 16, 24, 32],
        'num_attention_heads_per_stage': [1, 1, 1, 1],
        'window_size_per_stage': [8, 4, 2, 2],
        'window_positional_embedding_background_size': [4, 4],
        'image_size': [64, 64],
        'global_attention_blocks': [3],
    },
    'backbone_channel_list': [32, 24, 16, 8],
    'backbone_feature_sizes': [[16, 16], [8, 8], [4, 4]],
    'fpn_hidden_size': 128,
}


def save_small_labeller(folder: Path, words: tuple[str, ...] = ('person', 'animal')) -> Path:
    """Write a labeller of the real classes whose detector finds one of its boxes everywhere."""
    torch.manual_seed(0)
    detector = GroundingDinoForObjectDetection(
        GroundingDinoConfig(
            backbone_config=SwinConfig(
                image_size=64,
                window_size=4,
                embed_dim=16,
                depths=[1, 1, 1, 1],
                num_heads=[1, 1, 2, 2],
                out_features=['stage2', 'stage3', 'stage4'],
            ),
            text_config={
                'model_type': 'bert',
                'hidden_size': 16,
                'num_hidden_layers': 1,
                'num_attention_heads': 2,
                'intermediate_size': 16,
                'vocab_size': 1100,
                'max_position_embeddings': 64,
            },
            d_model=32,
            encoder_layers=1,
            encoder_ffn_dim=16,
            encoder_attention_heads=2,
            decoder_layers=2,
            decoder_ffn_dim=16,
            decoder_attention_heads=2,
            num_queries=4,
            num_feature_levels=3,
            encoder_n_points=2,
            decoder_n_points=2,
            max_text_len=32,
        )
    )
    detector.save_pretrained(folder / 'detector')
    by_id = {number: word for word, number in DETECTOR_WORDS.items()}
    vocabulary = [by_id.get(number, f'[unused{number}]') for number in range(1100)]
    (folder / 'detector' / 'vocab.txt').write_text('\n'.join(vocabulary))
    BertTokenizer(str(folder / 'detector' / 'vocab.txt')).save_pretrained(folder / 'detector')
    tracker = Sam2VideoModel(
        Sam2VideoConfig(
            vision_config=SAM2_VISION,
            prompt_encoder_config={
                'hidden_size': 128,
                'image_size': 64,
                'patch_size': 16,
                'mask_input_channels': 4,
            },
            mask_decoder_config={
                'hidden_size': 128,
                'mlp_dim': 16,
                'num_attention_heads': 2,
                'iou_head_hidden_dim': 16,
                'num_hidden_layers': 1,
            },
            image_size=64,
            memory_attention_hidden_size=128,
            memory_attention_num_layers=1,
            memory_attention_num_attention_heads=1,
            memory_attention_feed_forward_hidden_size=16,
            memory_attention_rope_feat_sizes=[4, 4],
            memory_encoder_hidden_size=128,
            mask_downsampler_embed_dim=128,
            memory_fuser_embed_dim=128,
            memory_fuser_intermediate_dim=16,
            memory_fuser_num_layers=1,
        )
    )
    tracker.save_pretrained(folder / 'tracker')
    write_json(
        folder / 'labeller.json',
        {'dynamic': words, 'detect_every': 3, 'detector_side': 64, 'min_score': 0.3},
    )
    return folder


def save_small_tracker(folder: Path, kind: str) -> None:
    """Write a tracker of the real classes beside SAM 2's: 'edgetam_video' or
    'sam3_tracker_video'."""
    torch.manual_seed(0)
    prompts = {'hidden_size': 128, 'image_size': 64, 'patch_size': 16, 'mask_input_channels': 4}
    decoder = {
        'hidden_size': 128,
        'mlp_dim': 16,
        'num_attention_heads': 2,
        'iou_head_hidden_dim': 16,
        'num_hidden_layers': 1,
    }
    memory = {
        'memory_attention_hidden_size': 128,
        'memory_attention_num_layers': 1,
        'memory_encoder_hidden_size': 128,
        'mask_downsampler_embed_dim': 128,
        'memory_fuser_embed_dim': 128,
        'memory_fuser_intermediate_dim': 16,
        'memory_fuser_num_layers': 1,
    }
    if kind == 'edgetam_video':
        # the published backbone is one of timm's
        config = EdgeTamVideoConfig(
            vision_config=SAM2_VISION,
            prompt_encoder_config=prompts,
            mask_decoder_config=decoder,
            image_size=64,
            memory_attention_mlp_hidden_size=16,
            memory_attention_rope_feat_sizes=[4, 4],
            memory_attention_rope_k_sizes=[4, 4],
            perceiver_resampler_num_latents=16,
            perceiver_resampler_num_latents_2d=16,
            **memory,
        )
        EdgeTamVideoModel(config).save_pretrained(folder)
        return
    config = Sam3TrackerVideoConfig(
        vision_config={
            'model_type': 'sam3_vision_model',
            'backbone_config': {
                'model_type': 'sam3_vit_model',
                'hidden_size': 16,
                'intermediate_size': 16,
                'num_hidden_layers': 1,
                'num_attention_heads': 1,
                'image_size': 64,
                'patch_size': 16,
                'window_size': 2,
                'global_attn_indexes': [0],
                'pretrain_image_size': 64,
            },
            'fpn_hidden_size': 128,
        },
        prompt_encoder_config=prompts,
        mask_decoder_config=decoder,
        image_size=64,
        memory_attention_feed_forward_hidden_size=16,
        **memory,
    )
    Sam3TrackerVideoModel(config).save_pretrained(folder)


VOCABULARY_WORDS = (
    '<pad>',
    '<|im_start|>',
    '<|im_end|>',
    '<|vision_start|>',
    '<|image_pad|>',
    '<|vision_end|>',
    '<unk>',
    'forklift',
    'wheelchair',
    'balloon',
    ',',
)


def save_small_vocabulary(folder: Path) -> None:
    """Write a Qwen3-VL that knows three kinds of things and a comma."""
    torch.manual_seed(3)
    size = {'hidden_size': 16, 'intermediate_size': 16}
    config = Qwen3VLConfig(
        text_config={
            **size,
            'vocab_size': len(VOCABULARY_WORDS),
            'num_hidden_layers': 1,
            'num_attention_heads': 2,
            'num_key_value_heads': 1,
            'head_dim': 8,
            'rope_parameters': {
                'rope_type': 'default',
                'rope_theta': 10000.0,
                'mrope_section': [2, 1, 1],
                'mrope_interleaved': True,
            },
            'pad_token_id': 0,
        },
        vision_config={
            **size,
            'depth': 1,
            'num_heads': 2,
            'out_hidden_size': 16,
            'num_position_embeddings': 16,
            'deepstack_visual_indexes': [0],
        },
        image_token_id=VOCABULARY_WORDS.index('<|image_pad|>'),
        vision_start_token_id=VOCABULARY_WORDS.index('<|vision_start|>'),
        vision_end_token_id=VOCABULARY_WORDS.index('<|vision_end|>'),
        video_token_id=len(VOCABULARY_WORDS) - 1,
    )
    model = Qwen3VLForConditionalGeneration(config)
    with torch.no_grad():
        # so that one of the four is always likelier than a special token
        rows = model.lm_head.weight
        rows[:7] = 0
        rows[7::2] = -rows[8::2]
    model.save_pretrained(folder)
    ids = {word: number for number, word in enumerate(VOCABULARY_WORDS)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token='<unk>'))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token='<pad>',
        additional_special_tokens=list(VOCABULARY_WORDS[:7]),
    ).save_pretrained(folder)
    Qwen2VLImageProcessorPil(patch_size=16, merge_size=2, temporal_patch_size=2).save_pretrained(
        folder
    )
