"""Frames as files: GIF and mp4."""

import io

import numpy as np
from PIL import Image

from support.system import atomic

# Pixels of a video, 2048 frames of 64x64: noise, which compresses worst, takes 12 MB.
LARGEST = 2**23


def shorten(frames):
    """The first of `frames` [T, H, W, 3]: those that have `LARGEST` pixels."""
    height, width = frames.shape[1:3]
    return frames[: max(1, LARGEST // (height * width))]


def enlarge(frames, factor=2):
    """[L, H, W, 3] to [L, factor*H, factor*W, 3]."""
    return frames.repeat(factor, 1).repeat(factor, 2)


def encode_gif(frames, fps):
    """`frames` [T, H, W, 3] uint8 as the bytes of a looping GIF."""
    # Median cut, which is Pillow's own choice, gives rare colours to their neighbours
    # (yellow shows as pink), and takes ten times as long for files twice as large.
    images = [
        Image.fromarray(frame).quantize(method=Image.Quantize.FASTOCTREE)
        for frame in np.asarray(frames)
    ]
    buffer = io.BytesIO()
    images[0].save(
        buffer,
        'gif',
        save_all=True,
        append_images=images[1:],
        duration=1000 / fps,
        loop=0,
    )
    return buffer.getvalue()


def encode_mp4(frames, fps):
    """`frames` [T, H, W, 3] uint8, H and W even, as the bytes of an mp4 file."""
    import imageio.v3  # Only here: a run writes GIFs.

    return imageio.v3.imwrite(
        '<bytes>',
        frames,
        extension='.mp4',
        plugin='FFMPEG',
        fps=fps,
        codec='libx264',
        macro_block_size=2,
    )


def write(path, frames, fps):
    """Write `frames` as a GIF or an mp4, by the suffix; it is whole or absent."""
    encode = encode_gif if path.suffix == '.gif' else encode_mp4
    atomic.write(path, encode(frames, fps))
