"""From an image file to a tensor of one mode, size and scale.

- An EXIF orientation is applied.
- Palettes become colours. Transparency is composed over white.
- 8-bit values are divided by 255, and 16-bit grey values by 65535, without rounding to 8 bits.
  Floats stay as they are.
- Grey of colours is the luma of ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B.
- Of several pages or frames, the first counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor

from hvd_train.data.files import import_extra
from hvd_train.data.value_checks import Array
from hvd_train.errors import UserError, nearest

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".pgm", ".ppm", ".pnm", ".pbm")
Mode = Literal["rgb", "grey"]
Resize = Literal["stretch", "crop", "pad"]
Size = tuple[int, int]
"""Height and width in pixels."""

CHANNELS = {"rgb": 3, "grey": 1}
NAMED = {
    "none": ([0.0], [1.0]),
    "half": ([0.5], [0.5]),
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}
"""Mean and standard deviation of each channel."""

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
    8: "ROTATE_90",
}  # fmt: skip
"""What makes an image of each EXIF orientation upright, in the words of Pillow."""


@dataclass(frozen=True)
class ImageDecoder:
    """Makes float32 tensors (channels, height, width) of image files.

    `size` None keeps the size of a file. `mean` and `std` have one value for each channel, or one
    for all, in the scale of 0 to 1.
    """

    mode: Mode
    size: Size | None
    resize: Resize
    mean: Sequence[float]
    std: Sequence[float]

    @classmethod
    def of(cls, fitted: Mapping[str, Any]) -> ImageDecoder:
        """Return the decoder that a document such as the one in `data.json` describes."""
        own = fitted["files"]
        size = tuple(own["size"]) if own["size"] else None
        return cls(own["mode"], size, own["resize"], own["mean"], own["std"])

    @property
    def document(self) -> dict[str, Any]:
        size = None if self.size is None else list(self.size)
        return {
            "mode": self.mode, "size": size, "resize": self.resize, "mean": list(self.mean), "std": list(self.std)
        }  # fmt: skip

    @property
    def facts(self) -> dict[str, Any]:
        return {"kind": "images"}

    @property
    def remedy(self) -> str:
        return "data.size resizes all files"

    def __call__(self, file: str) -> Tensor:
        return self.decode(file, file)

    def decode(self, content: str | BinaryIO, name: str) -> Tensor:
        """Return the image in a file or a stream.

        Raise UserError, which begins with `name`, if it is damaged.
        """
        pillow = import_extra("PIL.Image", "images")
        try:
            with pillow.open(content) as image:
                pixels = np.asarray(self._pixels(image))
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        except Exception as error:  # the decoders of Pillow raise what their code meets in damaged files
            raise UserError(f"{name}: not a readable image: {_reason(error)}") from error
        x = self._scaled(pixels)
        if pixels.dtype.kind == "f" and not np.isfinite(x).all():
            raise UserError(f"{name}: found a pixel that is not finite, expected finite numbers")
        return torch.from_numpy(x)

    def _pixels(self, image: Any) -> Any:
        orientation = _orientation(image)
        if image.format == "JPEG":
            self._draft(image, sideways=orientation > 4)
        if orientation in _UPRIGHT:
            image = image.transpose(getattr(import_extra("PIL.Image", "images").Transpose, _UPRIGHT[orientation]))
        image = _plain(image, "L" if self.mode == "grey" else "RGB")
        return image if self.size is None else fit(image, self.size, self.resize)

    def _draft(self, image: Any, *, sideways: bool) -> None:
        """Let the JPEG decoder leave out what resizing would, and the colours of a grey image."""
        width, height = image.size
        if self.size is not None:
            height, width = drafted((height, width), self.size[::-1] if sideways else self.size, self.resize)
        image.draft("L" if self.mode == "grey" else None, (width, height))

    def _scaled(self, pixels: Array) -> Array:
        """Return pixels in 0 to 255 as normalised channels."""
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (self.mean, self.std))
        planes = pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)
        x = np.empty((CHANNELS[self.mode], *pixels.shape[:2]), np.float32)
        np.multiply(planes, 1 / (255 * std), out=x)
        x -= mean / std
        return x


def sides(wanted: int | list[int] | None) -> Size | None:
    """Return height and width; UserError for a list that is not [height, width]."""
    if wanted is None:
        return None
    if isinstance(wanted, int):
        return wanted, wanted
    if len(wanted) != 2:
        raise UserError(f"data.size: {wanted}, expected one side in pixels, or [height, width]")
    return wanted[0], wanted[1]


def normalisation(wanted: str | dict[str, list[float]], mode: Mode) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of a name in `NAMED`, or of {mean: ..., std: ...}.

    Raise UserError for other keys, for a number of values that is not 1 or that of the channels,
    and for a standard deviation that is not positive.
    """
    if isinstance(wanted, dict):
        for key in wanted:
            if key not in {"mean", "std"}:
                raise UserError(f"data.normalise: unknown key '{key}'{nearest(key, ('mean', 'std'))}")
        mean, std = wanted.get("mean", [0.0]), wanted.get("std", [1.0])
    else:
        mean, std = NAMED[wanted]
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in {1, CHANNELS[mode]} or not all(map(math.isfinite, values)):
            raise UserError(
                f"data.normalise: {name} is {values}, expected one finite number, or {CHANNELS[mode]} for mode: {mode}"
            )
    if min(std) <= 0:
        raise UserError(f"data.normalise: std is {std}, expected positive numbers")
    return list(mean), list(std)


def fit(image: Any, size: Size, resize: Resize) -> Any:
    """Return a Pillow image of `size`, resized with the antialiased bilinear filter.

    `stretch` changes the ratio of the sides, `crop` cuts equal parts off both ends of the longer
    side, and `pad` adds black on both ends of the shorter one.
    """
    height, width = size
    if image.size == (width, height):
        return image
    bilinear = import_extra("PIL.Image", "images").Resampling.BILINEAR
    if resize == "stretch":
        return image.resize((width, height), bilinear)
    scale = _scale((image.height, image.width), size, resize)
    if resize == "crop":
        across, down = min(width / scale, image.width), min(height / scale, image.height)
        left, top = (image.width - across) / 2, (image.height - down) / 2
        return image.resize((width, height), bilinear, box=(left, top, left + across, top + down))
    inner = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), bilinear)
    canvas = import_extra("PIL.Image", "images").new(image.mode, (width, height))
    canvas.paste(inner, ((width - inner.width) // 2, (height - inner.height) // 2))
    return canvas


def drafted(image: Size, size: Size, resize: Resize) -> Size:
    """Return the smallest size that an image may be decoded to before it is fitted into `size`.

    It is twice the final one, so that the antialiasing filter determines the result.
    """
    if resize == "stretch":
        return 2 * size[0], 2 * size[1]
    scale = 2 * _scale(image, size, resize)
    return math.ceil(image[0] * scale), math.ceil(image[1] * scale)


def _scale(image: Size, size: Size, resize: Resize) -> float:
    ratios = size[0] / image[0], size[1] / image[1]
    return max(ratios) if resize == "crop" else min(ratios)


def _orientation(image: Any) -> int:
    """Return the EXIF orientation, 1 (upright) if there is none or the EXIF data are damaged."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # EXIF of cameras and editors is often malformed, and pixels are independent of it
        return 1


def _plain(image: Any, mode: str) -> Any:
    """Return an image of mode `mode`, or F for deep greys, whose pixels are in 0 to 255."""
    if image.mode == "F" or image.mode.startswith("I"):
        return _deep(image)
    if image.mode in {"LA", "La", "PA", "RGBA", "RGBa"} or "transparency" in image.info:
        image = image.convert("RGBA")
        white = import_extra("PIL.Image", "images").new("RGBA", image.size, "white")
        image = import_extra("PIL.Image", "images").alpha_composite(white, image)
    return image if image.mode == mode else image.convert(mode)


def _deep(image: Any) -> Any:
    values = np.asarray(image)
    if values.dtype.kind != "f" and (values.max() > 65535 or values.min() < 0):
        raise UserError(f"found the pixel {values.max()}, expected integers of 8 or 16 bits")
    scale = 255 if values.dtype.kind == "f" else 1 / 257
    return import_extra("PIL.Image", "images").fromarray(values.astype(np.float32) * np.float32(scale))


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
