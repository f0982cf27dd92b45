"""How every part of the suite shows a picture: RGB, what is transparent white.

Drawings are often black on a transparent ground, which would turn black as well if the alpha channel were
dropped. qwen_vl_utils and transformers' own processors lay them on white, too.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line starts without it
    from PIL.Image import Image


def on_white(image: "Image") -> "Image":
    """An image in mode RGB, laid on white where it is transparent; a new image, with its pixels read."""
    if not is_transparent(image):
        return image.convert("RGB")
    from PIL import Image

    opaque = image.convert("RGBA")
    ground = Image.new("RGB", opaque.size, "white")
    ground.paste(opaque, mask=opaque.getchannel("A"))
    return ground


def is_plain(image: "Image") -> bool:
    """Whether an image holds just the RGB pixels that `on_white` gives."""
    return image.mode == "RGB" and not is_transparent(image)


def is_transparent(image: "Image") -> bool:
    """Whether an image has an alpha channel, or a colour that stands for nothing (of PNG and GIF)."""
    return "A" in image.getbands() or "transparency" in image.info
