from __future__ import annotations

from models import small_blocks, small_vae
import pytest
import torch

from mirage_model.model.codec import Codec


@pytest.fixture(scope='module')
def codec() -> Codec:
    return Codec(small_vae())


def test_single_frames_equal_the_plain_vae(codec: Codec):
    plain = small_vae().eval()
    frames = torch.rand(2, 1, 3, 32, 48)
    mode = plain.encode(frames.movedim(2, 1) * 2 - 1).latent_dist.mode()
    expected = (mode - 0.1) / 0.5
    torch.testing.assert_close(codec.encode(frames), expected, atol=1e-5, rtol=1e-4)
    decoded = (plain.decode(mode).sample.movedim(1, 2) + 1) / 2
    torch.testing.assert_close(codec.decode(codec.encode(frames)), decoded, atol=1e-4, rtol=1e-3)


def test_video_equals_the_plain_vae(codec: Codec):
    plain = small_vae().eval()
    frames = torch.rand(1, 9, 3, 32, 48)
    mode = plain.encode(frames.movedim(2, 1) * 2 - 1).latent_dist.mode()
    torch.testing.assert_close(codec.encode(frames), (mode - 0.1) / 0.5, atol=1e-4, rtol=1e-3)


def test_first_latent_frame_equals_single_frame_latent(codec: Codec):
    frames = torch.rand(1, 9, 3, 32, 48)
    stills = codec.encode_images(frames[0, :1])
    torch.testing.assert_close(codec.encode(frames)[:, :, 0], stills, atol=1e-5, rtol=1e-4)


def test_shapes_and_determinism(codec: Codec):
    frames = torch.rand(1, 9, 3, 32, 48)
    latents = codec.encode(frames)
    assert latents.shape == (1, 4, 3, 4, 6)
    assert codec.decode(latents).shape == frames.shape
    assert torch.equal(latents, codec.encode(frames))


@pytest.mark.parametrize('count', [0, 2, 4, 16])
def test_invalid_frame_counts_are_rejected(codec: Codec, count: int):
    with pytest.raises(ValueError, match=f'{count} frames'):
        codec.latent_frames(count)


def test_invalid_sizes_are_rejected(codec: Codec):
    with pytest.raises(ValueError, match='30x48'):
        codec.encode(torch.rand(1, 1, 3, 30, 48))


@pytest.fixture(scope='module')
def block_codec() -> Codec:
    return Codec(small_blocks())


def test_block_codec_has_a_latent_frame_for_each_frame(block_codec: Codec):
    frames = torch.rand(2, 3, 3, 32, 48)
    latents = block_codec.encode(frames)
    assert latents.shape == (2, 4, 3, 8, 12) and block_codec.latent_frames(7) == 7
    assert block_codec.decode(latents).shape == frames.shape
    for k in range(3):
        single = block_codec.encode_images(frames[:, k])
        torch.testing.assert_close(latents[:, :, k], single)


def test_block_codec_encodes_what_it_decoded(block_codec: Codec):
    latents = torch.randn(2, 4, 1, 8, 12)
    torch.testing.assert_close(
        block_codec.encode(block_codec.decode(latents)), latents, atol=1e-5, rtol=1e-4
    )


def test_block_codec_round_trips_through_a_folder(block_codec: Codec, tmp_path):
    block_codec.vae.save_pretrained(tmp_path)
    loaded = Codec.from_folder(tmp_path)
    frames = torch.rand(1, 2, 3, 32, 48)
    assert torch.equal(loaded.encode(frames), block_codec.encode(frames))
    assert (loaded.channels, loaded.spatial_stride, loaded.temporal_stride) == (4, 4, 1)


def test_unknown_autoencoder_class_is_rejected(tmp_path):
    small_blocks().save_pretrained(tmp_path)
    path = tmp_path / 'config.json'
    path.write_text(path.read_text().replace('BlockAutoencoder', 'AutoencoderKL'))
    with pytest.raises(ValueError, match="autoencoder 'AutoencoderKL' is unknown"):
        Codec.from_folder(tmp_path)
