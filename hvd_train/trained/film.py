"""Writes the pictures of an episode as a file that moves: GIF by Pillow, or MP4 by FFmpeg."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvd_train.data.files import import_extra
from hvd_train.errors import UserError

Frame = NDArray[np.uint8]
"""A picture, `(height, width, 3)`."""
MOST_PIXELS = 2**30
"""Bound of the pixels of a GIF, all of which are in memory until it is written: 1 GB."""


def write(frames: Iterator[Frame], path: Path, rate: float) -> int:
    """Write `frames`, `rate` of them in a second, and return their number.

    `path` ends in .gif or .mp4; the file is not complete if this raises. A GIF has equal
    consecutive frames as one that is shown longer. Raise UserError if a package is missing or there
    are too many frames for a GIF.
    """
    first = next(frames)
    make = _gif if path.suffix.lower() == ".gif" else _mp4
    return make(first, chain([first], frames), path, rate)


def _gif(first: Frame, frames: Iterator[Frame], path: Path, rate: float) -> int:
    image = import_extra("PIL.Image", "agents")
    most, number = MOST_PIXELS // first[..., 0].size, 0

    def images() -> Iterator[Any]:
        nonlocal number
        for frame in frames:
            if number == most:
                raise UserError(
                    f"--render: the episode has more than {most} pictures, the most for a GIF of this size; take .mp4"
                )
            number += 1
            yield image.fromarray(frame)

    made = images()
    next(made).save(path, save_all=True, append_images=made, duration=1000 / rate, loop=0)
    return number


def _mp4(first: Frame, frames: Iterator[Frame], path: Path, rate: float) -> int:
    ffmpeg = import_extra("imageio_ffmpeg", "agents").get_ffmpeg_exe()
    height, width, _ = first.shape
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{rate}", "-i", "-"]
    # Players show only this format of colours, in which width and height are even.
    coded = ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-f", "mp4"]
    command = [ffmpeg, "-loglevel", "error", *raw, *coded, "-y", str(path)]
    number = 0
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors) as process:
            assert process.stdin is not None
            try:
                for frame in frames:
                    process.stdin.write(np.ascontiguousarray(frame).data)
                    number += 1
            except BrokenPipeError:
                pass  # FFmpeg has ended, and says why
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines() or [f"exit code {process.returncode}"]
            raise UserError(f"--render: FFmpeg cannot write {path.name}: {said[-1]}")
    return number
