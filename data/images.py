"""From the bytes of an image to pixels: decode, turn upright, fit into the square, augment.

What is left to chance is drawn first, as a `View`; the pixels follow from it alone.
"""

import contextlib
import io
import math
import os
import stat
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_DECODED_PIXELS = 64_000_000  # 192 MB as RGB, once in each decoding thread
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF")  # what is found under the name .jpg
# Of a person's own photos. Pillow reads more: EPS and PDF by starting another program, and formats
# that no camera or scanner writes, whose readers may take minutes over a damaged file.
PHOTO_FORMATS = (
    "JPEG", "MPO", "PNG", "WEBP", "GIF", "AVIF", "HEIF", "TIFF", "BMP", "JPEG2000", "PPM",
)  # fmt: skip
MAX_PHOTO_BYTES = 500_000_000  # what is larger is no photo, and would fill the memory
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# Ranges of gray values beyond 8 bits; what is in none is stretched from its least to its greatest.
GRAY_RANGES = (1, 255, 65535)
FILL = (124, 116, 104)  # where there is no picture: the mean color of ImageNet, RGB
MIN_CROP = 0.85  # side of a random crop, as a share of the picture's
# These four: haqishen/Google-Landmark-Recognition-2020-3rd-Place-Solution, dataset.py, which fills
# with black.
MAX_TURN = 10.0  # degrees, either way
MAX_RESCALE = 0.2  # larger or smaller, as a share
MAX_SHIFT = 0.2  # of the square's side, each way
ERASED_SIDE = 0.4  # of the erased box, as a share of the square's


class BadImageError(Exception):
    """An image that cannot be read; the message is the reason."""


@dataclass(frozen=True)
class View:
    """How one image is seen; the default is the whole of it, as it is."""

    crop: tuple = (0.0, 0.0, 1.0, 1.0)  # left, top, right, bottom, as shares of the sides
    is_mirrored: bool = False  # at last
    # Degrees counter-clockwise, scale, shift right, shift down of the square about its center;
    # shifts are shares of its side.
    geometry: tuple | None = None
    # Across, down of the erased box: 0 is at the left or top edge, just below 1 at the other.
    erased: tuple | None = None


PLAIN = View()


def draw_view(data, rng):
    """Draws how a train image is seen, a `View`, from what `recipes.Data` leaves to chance."""
    drawn = {}  # crop and mirror first, so that they do not depend on what else is on
    if data.augment:
        size = rng.uniform(MIN_CROP, 1, 2)
        offset = rng.uniform(size=2) * (1 - size)
        drawn |= {"crop": (*offset, *(offset + size)), "is_mirrored": rng.random() < 0.5}
    if data.geometry and rng.random() < data.geometry:
        turn, rescale, right, down = rng.uniform(-1, 1, 4)
        drawn["geometry"] = (
            MAX_TURN * turn, 1 + MAX_RESCALE * rescale, MAX_SHIFT * right, MAX_SHIFT * down,
        )  # fmt: skip
    if data.erase and rng.random() < data.erase:
        drawn["erased"] = tuple(rng.random(2))
    return View(**drawn)


def decode_image(data, image_size, keeps_aspect=False, view=PLAIN, formats=IMAGE_FORMATS):
    """Decodes one image and fits it into a square.

    JPEGs are decoded at a half, quarter or eighth of their size where that still covers the square.

    Args:
        data: bytes of the image, of one of Pillow's `formats`; or BadImageError.
        keeps_aspect: the longer side fills the square, and FILL what is left beside or above and
            below the picture; else both sides fill it, whatever the aspect ratio.

    Returns:
        (image_size, image_size, 3) uint8 RGB.
    """
    with _opened(data, formats) as image:
        image.draft("RGB", (image_size, image_size))
        square = _fit(_make_upright(image), image_size, keeps_aspect, view.crop)
    if view.geometry:
        square = _move(square, *view.geometry)
    if view.erased:
        side = round(ERASED_SIDE * image_size)
        left, top = (int(place * (image_size - side + 1)) for place in view.erased)
        square.paste(FILL, (left, top, left + side, top + side))
    pixels = np.asarray(square)
    return pixels[:, ::-1] if view.is_mirrored else pixels


def make_thumbnail(data, longest_side, formats=IMAGE_FORMATS):
    """Decodes an image to look at: RGB, upright, of so many pixels at most; or BadImageError."""
    with _opened(data, formats) as image:
        image.draft("RGB", (longest_side, longest_side))
        thumbnail = _make_upright(image)
        thumbnail.thumbnail((longest_side, longest_side))
    return thumbnail


def shrink_image(data, pixels, quality, formats=IMAGE_FORMATS):
    """Makes a picture small: the bytes of a JPEG, upright, RGB, without EXIF; or BadImageError.

    Its shorter side gets so many pixels. None is enlarged, and a JPEG that is upright, RGB and
    small already stays byte for byte.
    """
    with _opened(data, formats) as image:
        is_plain = image.format == "JPEG" and image.mode == "RGB" and "exif" not in image.info
        if is_plain and min(image.size) <= pixels:
            image.load()  # a damaged one shows here
            return data
        # As the network's own reading does, decode at a half, quarter or eighth where that is
        # enough: 1.7 times as fast, and no farther from what the network sees of the original.
        image.draft("RGB", shrunk_size(image.size, pixels))
        upright = _make_upright(image)
        small = upright.resize(shrunk_size(upright.size, pixels), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        # Full colour resolution: beside halved colours, the same bytes are worth 2 to 3 dB more
        # (benchmarks/small_pictures.py). Pillow would keep the original's comment.
        small.save(file, "JPEG", quality=quality, subsampling=0, comment=b"")
    return file.getvalue()


def check_photo(data):
    """Raises BadImageError unless the bytes begin a photo; its pixels are not decoded."""
    with _opened(data, PHOTO_FORMATS):
        pass


def read_photo(path):
    """Reads the bytes of a photo, and checks how they begin; or BadImageError."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe or a device may never end
            raise BadImageError("not a file")
        with open(path, "rb") as file:
            data = file.read(MAX_PHOTO_BYTES + 1)
    except OSError as error:
        raise BadImageError(error.strerror) from error
    if len(data) > MAX_PHOTO_BYTES:
        raise BadImageError(f"more than {MAX_PHOTO_BYTES / 1e6:.0f} MB")
    check_photo(data)
    return data


def register_heic():
    """Lets Pillow read photos of iPhones where the optional package pillow-heif is there."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()


def decode_whole(data):
    """Decodes one image at its own size and shape, upright: (height, width, 3) uint8 RGB."""
    with _opened(data) as image:
        return np.asarray(_make_upright(image))


def shrunk_size(size, pixels):
    """Gives the (width, height) of a picture whose shorter side is so many pixels at most."""
    shorter = min(size)
    return tuple(max(1, round(side * min(pixels, shorter) / shorter)) for side in size)


@contextlib.contextmanager
def _opened(data, formats=IMAGE_FORMATS):
    """Opens an image for the block; what goes wrong in it is a BadImageError."""
    if formats is PHOTO_FORMATS:
        Image.init()
        formats = [name for name in formats if name in Image.OPEN]  # HEIF takes another package
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            yield image
    except BadImageError:
        raise
    except UnidentifiedImageError as error:
        is_heic = data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS
        what = "HEIC, which takes pip install pillow-heif" if is_heic else "not an image"
        raise BadImageError(what if data else "empty") from error
    except Image.DecompressionBombError as error:
        raise BadImageError("too many pixels") from error
    except Exception as error:  # a reader of Pillow may raise anything of a damaged file
        reason = " ".join(str(error).split())
        raise BadImageError(reason or type(error).__name__) from error


def _make_upright(image):
    """Decodes an opened image: an RGB image, turned as EXIF or XMP says."""
    if image.width * image.height > MAX_DECODED_PIXELS:
        raise BadImageError(f"{image.width}x{image.height} pixels")
    image.load()
    with contextlib.suppress(Exception):  # damaged EXIF does not cost the picture
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16"):  # convert() would cut off all above 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        image = _to_8_bits(image)
    if image.mode != "RGB":
        image.info.pop("transparency", None)  # Pillow warns of what it leaves out
        image = image.convert("RGB")
    return image


def _to_8_bits(image):
    """Brings gray values of 32 bits, int or float, from their range to 0..255."""
    values = np.nan_to_num(np.asarray(image, np.float64))
    low, high = values.min(), values.max()
    if low >= 0 and high <= GRAY_RANGES[-1]:
        low, high = 0, next(top for top in GRAY_RANGES if high <= top)
    values = (values - low) * (255 / max(high - low, 1))
    return Image.fromarray(values.round().astype(np.uint8))


def _fit(image, image_size, keeps_aspect, crop):
    """Resizes a crop of an image into the square: squashed, or whole in the middle."""
    left, top, right, bottom = crop
    box = (left * image.width, top * image.height, right * image.width, bottom * image.height)
    size = (image_size, image_size)
    if keeps_aspect:
        width, height = box[2] - box[0], box[3] - box[1]
        shrink = image_size / max(width, height)
        size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    # Of Pillow's filters the nearest to an area average after a scaled decode, at BILINEAR's cost.
    image = image.resize(size, Image.Resampling.HAMMING, box)
    if size == (image_size, image_size):
        return image
    square = Image.new("RGB", (image_size, image_size), FILL)
    square.paste(image, ((image_size - size[0]) // 2, (image_size - size[1]) // 2))
    return square


def _move(square, degrees, scale, right, down):
    """Turns, rescales and shifts a square image about its center; FILL is what it leaves free."""
    # After the resize: Pillow's transform averages over four pixels only, and would alias if it
    # shrank a photograph.
    side, half = square.width, square.width / 2
    cosine = math.cos(math.radians(degrees)) / scale
    sine = math.sin(math.radians(degrees)) / scale
    x, y = half + right * side, half + down * side  # where the centre goes
    # For each pixel the place in the square that it shows; y points downwards.
    matrix = (
        cosine, -sine, half - cosine * x + sine * y,
        sine, cosine, half - sine * x - cosine * y,
    )  # fmt: skip
    return square.transform(
        square.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=FILL
    )
