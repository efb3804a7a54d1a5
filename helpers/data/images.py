"""Image files as one uint8 array, decoded once in threads and kept as a memory-mapped cache."""

import hashlib
import io
import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import simplejpeg
from filelock import FileLock
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from helpers.data.files import PROJECT, InputError, raise_problems, replace_file, show_bar

# Part of the cache's key: raise it whenever the same files would give other pixels.
CACHE_VERSION = 2
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp")
# What a file may hold, whatever its name is: Pillow also knows formats that run programs.
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
File = str | os.PathLike
Size = tuple[int, int]  # height and width in pixels


def find_cache_dir() -> Path:
    """Give the folder of caches: SKIN_CACHE_DIR of the environment, or the project's data/cache."""
    return Path(os.environ.get("SKIN_CACHE_DIR") or PROJECT / "data/cache").expanduser()


def load_images(table: pd.DataFrame, size: Size, via: Size | None = None) -> np.ndarray:
    """Give the pixels of all images of a table, decoding them only the first time.

    They lie in a file that is mapped into memory and found again by image ids, times and sizes: so
    load the whole table once, then index the array. Of several processes one decodes.

    Args:
        table: the columns image_id and path, a row per image.
        size, via: (height, width) in pixels; see `resize_pixels`.

    Returns read-only uint8 (N, height, width, 3), RGB; an InputError names all unreadable images.
    Where no cache can be written, a warning says so, and the array is made in memory.
    """
    paths, shape = list(table["path"]), (len(table), *map(int, size), 3)
    folder = find_cache_dir()
    name = "x".join(map(str, (*shape[1:3], *(via or ()))))
    cache = folder / f"images-{name}-{hash_files(table['image_id'], paths)}.npy"
    try:
        if _open_cache(cache, shape) is None:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / "images.lock"):
                if _open_cache(cache, shape) is None:  # nor made during the wait
                    for leftover in folder.glob(".*.partial.images-*"):  # of a run that was killed
                        leftover.unlink(missing_ok=True)
                    replace_file(cache, lambda partial: _write_pixels(partial, paths, shape, via))
    except OSError as error:
        warnings.warn(
            f"no cache in {folder} ({error.strerror}): {np.prod(shape, dtype=np.int64):,} bytes "
            "of pixels are decoded into memory, in each run again; free space there, or name "
            "another folder by the environment variable SKIN_CACHE_DIR",
            stacklevel=2,
        )
    images = _open_cache(cache, shape)
    if images is None:
        images = np.array(list(_decode_rows(paths, size, via)), np.uint8).reshape(shape)
        images.flags.writeable = False
    return images


def read_image(path: File, size: Size | None = None, via: Size | None = None) -> np.ndarray:
    """Read an image file: the one way in, of what a net sees and of what a person is shown.

    A JPEG (MPO too), PNG, BMP, TIFF or WebP becomes uint8 (height, width, 3), RGB, 0 to 255: also
    greyscale, palette, CMYK and 16-bit ones, upright by their EXIF orientation. Transparency is
    dropped, colour profiles are not applied. `size` and `via` are those of `resize_pixels`. A file
    that is missing, cut short, no image, or damaged (which libjpeg would fill with grey) is an
    InputError.
    """
    try:
        pixels = _decode_image(Path(path).read_bytes(), size, via)
    except Exception as error:  # malformed files make the decoders raise nearly anything
        what = getattr(error, "strerror", None) or f"{error}" or type(error).__name__
        if isinstance(error, UnidentifiedImageError):  # its text holds a memory address
            what = f"not an image of the formats {', '.join(IMAGE_FORMATS)}"
        raise InputError(path, [f"{what}; get or save the file anew"]) from error
    return pixels if size is None else resize_pixels(pixels, size, via)


def resize_pixels(pixels: np.ndarray, size: Size, via: Size | None = None) -> np.ndarray:
    """Resize uint8 (h, w, 3) to (height, width): area averages down, bilinear interpolation up.

    An image of another shape is squashed, not cropped. A larger one than `via`, the largest
    size of the files that a net was trained on, goes by way of it: else it is sharper than they.
    """
    if _is_larger(pixels.shape, via):
        pixels = resize_pixels(pixels, via)
    height, width = size
    # Shrinking first: OpenCV averages areas only where no side grows.
    smaller = (min(width, pixels.shape[1]), min(height, pixels.shape[0]))
    if smaller != pixels.shape[1::-1]:
        pixels = cv2.resize(pixels, smaller, interpolation=cv2.INTER_AREA)
    if smaller != (width, height):
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
    return pixels


def decode_images(
    paths: Sequence[File], size: Size, via: Size | None = None, ahead: int = 0
) -> Iterator[Future]:
    """Decode in threads (the decoders release the interpreter's lock), in order, under a bar.

    At least `ahead` images are decoded before they are asked for. A Future's `result()` gives the
    array of `read_image`, or raises.
    """
    threads = os.cpu_count() or 1
    ahead = max(ahead, 4 * threads)  # all threads are busy, and few pixels wait in memory
    # No bar in the first second: there is nothing to see for a small folder.
    bar = show_bar(desc="Decoding images", total=len(paths), unit="image", delay=1)
    with ThreadPoolExecutor(threads) as pool, bar:
        waiting: deque[Future] = deque()
        for path in paths:
            waiting.append(pool.submit(read_image, path, size, via))
            if len(waiting) > ahead:
                yield waiting.popleft()
                bar.update()
        yield from waiting
        bar.update(len(waiting))


def measure_files(paths: Iterable[File]) -> Size:
    """Give the largest height and the largest width, in pixels, of image files."""
    sizes = []
    for path in paths:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            sizes.append(image.size)
    widths, heights = zip(*sizes, strict=True)
    return max(heights), max(widths)


def hash_files(image_ids: Iterable[str], paths: list[str]) -> str:
    """Hash what pixels depend on: ids in order, sizes and times of the files."""
    digest = hashlib.sha256(f"version {CACHE_VERSION}\n".encode())
    for image_id, path in zip(image_ids, paths, strict=True):
        with suppress(OSError):  # decoding says why
            stat = os.stat(path)  # noqa: PTH116 - a Path for each takes as long again
            digest.update(f"{image_id!r} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:20]


def _is_larger(shape: Sequence[int], via: Size | None) -> bool:
    return via is not None and shape[0] > via[0] and shape[1] > via[1]


def _decode_image(data: bytes, size: Size | None, via: Size | None) -> np.ndarray:
    """Decode to uint8 RGB, upright, at any scale that is large enough for what is next."""
    if not data:
        raise ValueError("the file is empty")
    with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
        # MPO is a JPEG with more images behind it, as some telephones write.
        if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            sideways = slice(None, None, -1 if orientation in (5, 6, 7, 8) else 1)
            size = via if _is_larger(image.size[::-1][sideways], via) else size
            pixels = _decode_jpeg(data, image.size[::-1], size[sideways] if size else None)
            if orientation == 1:
                return pixels
            image = Image.fromarray(pixels)
            image.getexif()[ExifTags.Base.Orientation] = orientation
        image = ImageOps.exif_transpose(image)  # knows that Pillow itself turns TIFFs
        if image.mode.startswith("I;16"):
            # The high byte, as Pillow takes it from 16-bit colour; its convert() would clip.
            return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        if image.mode in ("I", "F"):
            raise ValueError("32-bit pixels have no defined white; save it with 8 or 16 bits")
        # By way of RGBA, as Pillow wants it for palettes with transparency.
        image = image.convert("RGBA") if image.mode == "P" else image
        return np.array(image.convert("RGB"))


def _decode_jpeg(data: bytes, full: Size, wanted: Size | None) -> np.ndarray:
    """Decode a JPEG, at 1/2, 1/4 or 1/8 where that is at least 1.5 times the wanted size.

    That is faster than averaging the full image, and on average within about one grey level of it.
    libjpeg only warns of damage and goes on with grey or shifted pixels. Its other warnings (see
    jerror.h) come from odd writers and leave the pixels right: those files go to Pillow.
    """
    ratio = min(full[0] / wanted[0], full[1] / wanted[1]) if wanted else 1
    shrink = max(shrink for shrink in (1, 2, 4, 8) if shrink == 1 or ratio >= 1.5 * shrink)
    height, width = (-(-side // shrink) for side in full)
    try:
        return simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width, strict=True)
    except ValueError as error:
        if str(error).startswith(("Corrupt", "Premature")):
            raise
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            return np.array(image.convert("RGB"))


def _open_cache(cache: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Map a cache into memory; None if there is none, or none of that shape."""
    try:
        images = np.load(cache, mmap_mode="r")
    except (OSError, ValueError, EOFError):  # not there, cut short or not ours
        return None
    return images if images.shape == shape and images.dtype == np.uint8 else None


def _write_pixels(path: Path, paths: list[str], shape: tuple[int, ...], via) -> None:
    # Written as a file, not through a memory map, whose dirty pages would fill the memory.
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.writelines(pixels.data for pixels in _decode_rows(paths, shape[1:3], via))


def _decode_rows(paths: list[str], size: Size, via: Size | None) -> Iterator[np.ndarray]:
    """Decode all images; those that cannot be read are named together at the end."""
    problems = []
    for decoding in decode_images(paths, size, via):
        if decoding.exception():
            problems.append(str(decoding.exception()))
        else:
            yield decoding.result()
    where = f"{len(problems)} of {len(paths)} images cannot be read (or delete their rows)"
    raise_problems(where, problems)
