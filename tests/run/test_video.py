"""Videos: their colours, their length."""

import io

import numpy as np
import pytest
from PIL import Image, ImageSequence

from support.run import logger, video


def test_colours_of_videos():
    """One pixel of yellow among thousands of red and green is yellow."""
    ramp = np.arange(64, dtype=np.uint8) * 4
    frames = np.zeros((3, 64, 64, 3), np.uint8)
    frames[:, :32, :, 0] = ramp
    frames[:, 32:, :, 1] = ramp
    for i in range(3):
        frames[i, 10 + i, 5] = 200, 200, 0
    shown = Image.open(io.BytesIO(video.encode_gif(frames, 20)))
    for i, image in enumerate(ImageSequence.Iterator(shown)):
        pixels = np.asarray(image.convert('RGB')).astype(int)
        assert np.abs(pixels - frames[i]).max() <= 32
    assert i == 2 and shown.info['duration'] == 50


@pytest.mark.parametrize('shape, most', [((64, 64), 2048), ((192, 384), 113)])
def test_videos_have_a_bound(tmp_path, shape, most):
    noise = np.random.default_rng(0).integers(0, 256, (50, *shape, 3), np.uint8)
    frames = noise[np.arange(3000 if shape == (64, 64) else 300) % 50]
    written = logger.Logger(tmp_path)
    written.video(7, 'eval', frames)
    written.video(8, 'eval', frames[:20])
    written.close()
    long, short = sorted((tmp_path / 'videos').iterdir())
    assert Image.open(long).n_frames == most and Image.open(short).n_frames == 20
    (events,) = tmp_path.glob('events.*')
    assert 5e6 < long.stat().st_size < 13e6 and events.stat().st_size < 14e6
