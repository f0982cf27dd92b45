"""How the whole suite shows an image: upright, 8-bit RGB, with white behind transparency.

Orientation: the EXIF orientation is applied, as in `datasets`, TRL and browsers. Gold boxes are in pixels of
the upright image.

Depth: 16-bit images are divided by 257, the full range of the type, and 12-bit ones by their own range.
32-bit integers and floats have no fixed range: values within [0, 1] are scaled by 255; others are stretched
from the image's minimum to its maximum. An image with values that are not finite, or with a single value
outside [0, 1], has no range and is refused. (Pillow's own conversion clips all of these at 255, which turns
them white.) If a TIFF file defines zero as white, they are inverted; Pillow does this only for 8 bits.

Transparency: drawings are often black on a transparent background, which would turn black as well without the
alpha channel. qwen_vl_utils and transformers' own processors also put white behind them.
"""

import contextlib
import io
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # the command line starts without it
    from PIL.Image import Image

FORMAT = 2
"""Version of what `to_rgb` returns. 2: upright, and 16 and 32 bits are scaled; 1: neither."""
FILE_BYTES = 1 << 28
"""The largest image file to read, in bytes."""
_TURNED = range(2, 9)
"""The EXIF orientations that change an image."""
_BROKEN = 0


class UnreadableError(ValueError):
    """An image file that cannot be read; the message is the reason, without the file's name."""


def to_rgb(image: "Image") -> "Image":
    """An image as the suite shows it (see the module): mode RGB, upright; a new image with its pixels read.

    Raises:
        UnreadableError: 32-bit values without a range.
        OSError, SyntaxError, PIL.Image.DecompressionBombError: the file behind it is damaged.
    """
    from PIL import Image, ImageOps

    kind, turned = image.format, orientation(image)
    tags = dict(getattr(image, "tag_v2", None) or {})  # of a TIFF file; loading drops some
    _load(image, turned)
    upright = ImageOps.exif_transpose(image) if turned in _TURNED else image
    if upright.mode[0] in "IF":
        return _scaled(upright, kind, tags).convert("RGB")
    if is_transparent(upright):
        opaque = upright.convert("RGBA")
        rgb = Image.new("RGB", opaque.size, "white")
        rgb.paste(opaque, mask=opaque.getchannel("A"))
        return rgb
    rgb = upright.convert("RGB")
    if turned == _BROKEN:
        rgb.info.pop("exif", None)  # other readers would fail on it
    return rgb


def _load(image: "Image", turned: int) -> None:
    """Reads the pixels of a file.

    Pillow memory-maps an uncompressed TIFF file that it opened by path, and assumes the upright image's row
    length: an image stored on its side is garbled.
    """
    if image.format != "TIFF" or turned not in (5, 6, 7, 8):
        image.load()
        return
    file: Any = image
    name, file.filename = file.filename, ""  # without it, Pillow reads the file
    try:
        image.load()
    finally:
        file.filename = name


def _scaled(image: "Image", kind: str | None, tags: Mapping[int, Any]) -> "Image":
    """A gray image of 16 or 32 bits as one of 8; `kind` is the file's format, `tags` a TIFF file's."""
    import numpy as np
    from PIL import Image

    # Bits per sample, photometric interpretation and sample format: Pillow's modes leave them open.
    bits, inverted, signs = tags.get(258), tags.get(262) == 0, tags.get(339, (1,))
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        values = values.astype(np.uint32)
        largest = 4095 if bits == (12,) else 65535
        grey = ((values * 255 + largest // 2) // largest).astype(np.uint8)
        grey = 255 - grey if inverted else grey
        clear = image.info.get("transparency")
        return Image.fromarray(grey if clear is None else np.where(values == clear, np.uint8(255), grey))
    if (bits, signs) == ((32,), (1,)) and image.mode == "I":  # which Pillow reads as signed
        values = values.astype(np.int32).view(np.uint32)
    values = values.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise UnreadableError("its pixels are not all finite numbers")
    if image.mode == "I" and kind in ("PNG", "PPM"):  # at most 16 bits
        low, high = 0.0, 65535.0
    elif 0 <= low and high <= 1:
        low, high = 0.0, 1.0
    elif low == high:
        raise UnreadableError(f"all of its pixels are {low:g}, which gives no range to scale by")
    shares = (values - low) / (high - low)
    return Image.fromarray(np.rint((1 - shares if inverted else shares) * 255).astype(np.uint8))


def is_plain(image: "Image") -> bool:
    """Whether an image holds exactly the RGB pixels that `to_rgb` returns."""
    return image.mode == "RGB" and not is_transparent(image) and orientation(image) == 1


def is_transparent(image: "Image") -> bool:
    """Whether an image has an alpha channel, or a transparent color (PNG and GIF)."""
    return "A" in image.getbands() or "transparency" in image.info


def orientation(image: "Image") -> int:
    """An image's EXIF orientation: 1 (upright) to 8; 0 if the EXIF data is damaged, and is ignored."""
    from PIL import ExifTags

    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001 - Pillow raises many kinds of errors for damaged EXIF data
        return _BROKEN
    return found if found in _TURNED else 1


def upright_box(box: Sequence[float], orientation: int, size: tuple[int, int]) -> list[float]:
    """Converts a box from pixels of an image as encoded to those of the upright image, of `size` (w, h).

    `orientation` is the image's EXIF orientation, 1 to 8.
    """
    x1, y1, x2, y2 = box
    width, height = size
    if orientation in (5, 6, 7, 8):  # rows become columns
        x1, y1, x2, y2 = y1, x1, y2, x2
    if orientation in (2, 3, 6, 7):
        x1, x2 = width - x2, width - x1
    if orientation in (3, 4, 7, 8):
        y1, y2 = height - y2, height - y1
    return [x1, y1, x2, y2]


class Read(NamedTuple):
    """An image file, opened once."""

    shown: "Image"  # as `to_rgb` shows it
    plain: bool  # whether the file holds exactly these pixels (`is_plain`)
    frames: int  # frames or pages of a GIF, WebP, PNG or TIFF file; 1 for others


def read(content: bytes) -> Read:
    """What an image file shows; `UnreadableError` if it is not an image, is damaged or truncated."""
    from PIL import Image

    try:
        with strictly(), Image.open(io.BytesIO(content)) as image:
            if image.format == "EPS":
                raise UnreadableError("is PostScript, a program that Pillow would run with Ghostscript")
            plain = is_plain(image)  # loading a TIFF file applies its orientation and drops the tag
            return Read(to_rgb(image), plain, _frames(image))
    except Exception as error:  # Pillow's decoders raise many kinds of errors for damaged files
        raise UnreadableError(reason(error)) from error


def opened(source: object) -> "Image":
    """An image as tasks give it: open, the path of a file, or the content of one.

    Raises:
        UnreadableError: the source is of another kind, or the file does not exist.
        OSError, SyntaxError, PIL.Image.DecompressionBombError: the file is damaged.
    """
    from PIL import Image

    if isinstance(source, Image.Image):
        return source
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        raise UnreadableError("it is a web address; download it first")
    if not isinstance(source, str | Path | bytes):
        raise UnreadableError(f"a {type(source).__name__} is neither an image nor a path")
    if isinstance(source, bytes):
        return Image.open(io.BytesIO(source))
    path = str(source).removeprefix("file://")
    try:
        image: Any = Image.open(io.BytesIO(file_bytes(Path(path))))
    except UnreadableError as error:
        raise UnreadableError(f"{path} {error}") from error
    image.filename = path  # for those who store the file
    return image  # type: ignore[no-any-return]


def reason(error: Exception) -> str:
    """The reason why an image file cannot be read, without the address of an object in memory."""
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "not an image that Pillow can read"
    return str(error) or type(error).__name__


def _frames(image: "Image") -> int:
    try:
        return int(getattr(image, "n_frames", 1)) if image.format in ("GIF", "WEBP", "PNG", "TIFF") else 1
    except Exception:  # noqa: BLE001 - see `read`; a frame behind the first one is damaged
        return 1


def differs_in_former(content: bytes) -> bool:
    """Whether older versions of the suite (`FORMAT` 1) showed other pixels of an image file."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:  # Pillow rotates TIFF files itself
            return image.mode[0] in "IF" or (image.format != "TIFF" and orientation(image) in _TURNED)
    except Exception:  # noqa: BLE001 - see `read`
        return False


def file_bytes(path: Path) -> bytes:
    """The content of an image file, if regular and within `FILE_BYTES`; otherwise `UnreadableError`."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UnreadableError("is not a regular file")
        # A pipe that replaced the file meanwhile would block.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            # Not FILE_BYTES + 1 at once: Python would allocate them for every image.
            most = min(status.st_size, FILE_BYTES) + 1
            content = file.read(most) if stat.S_ISREG(status.st_mode) else b""
    except FileNotFoundError as error:
        raise UnreadableError("does not exist") from error
    except OSError as error:
        raise UnreadableError(f"cannot be read ({error.strerror or error})") from error
    if len(content) > FILE_BYTES:
        raise UnreadableError(f"is larger than {FILE_BYTES >> 20} MiB")
    return content


@contextlib.contextmanager
def strictly() -> Iterator[None]:
    """Makes Pillow refuse truncated images; lmms-eval makes the whole process accept them."""
    from PIL import ImageFile

    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
