"""Image files into one uint8 array, decoded once in parallel and kept as a memory-mapped cache."""

import errno
import hashlib
import io
import os
import shutil
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import simplejpeg
from PIL import Image, UnidentifiedImageError

from helpers.data.files import show_bar
from helpers.data.reading import DatasetError

try:
    import fcntl
except ImportError:  # Windows: processes that start together each decode, the last one stays
    fcntl = None

# Part of the cache's key: raise it whenever the same files would give other pixels.
CACHE_VERSION = 1
# What a file may hold, whatever its name says: Pillow also knows formats that run programs.
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
EXIF_ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)  # the orientations that swap height and width
# Images in the works per thread: enough to keep all threads busy, few enough that memory does not
# grow with the number of images.
IMAGES_AHEAD = 4


class ImageError(DatasetError):
    """Images that cannot be read, all named at once."""


def load_images(
    table: pd.DataFrame, size: tuple[int, int], cache_dir: str | os.PathLike
) -> np.ndarray:
    """Gives the pixels of all images of a table, decoding them only the first time.

    The array is a file in `cache_dir` that is mapped, not read, into memory. It is found again by
    what it depends on: image ids in order, sizes and modification times of the files, image size.
    So load the whole table once and index the array, rather than load parts of the table.
    Processes may share the folder at the same time: one decodes, the others wait for it.

    Args:
        table: the columns image_id and path, a row per image.
        size: (height, width) in pixels.
        cache_dir: a folder for caches, made if missing. It may be deleted between runs.

    Returns:
        Read-only uint8 array (N, height, width, 3), RGB, 0 to 255, in row order; each image as
        `read_image` gives it.

    Raises:
        ImageError: naming the images that are missing, damaged or no images.
        OSError: the cache cannot be written, for example because the disk is full.
        ValueError: the size is not two positive whole numbers.
    """
    height, width = _check_size(size)
    paths = list(table["path"])
    shape = (len(paths), height, width, 3)
    key = _hash_inputs(table["image_id"], paths)
    folder = Path(cache_dir).expanduser()
    cache = folder / f"images-{height}x{width}-{key}.npy"
    images = _open_cache(cache, shape)
    if images is not None:
        return images
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock_folder(folder) as is_locked:
            images = _open_cache(cache, shape)  # made by another process during the wait?
            if images is None:
                if is_locked:  # nobody else writes: what is unfinished was left by a killed run
                    for leftover in folder.glob("images-*.tmp"):
                        leftover.unlink(missing_ok=True)
                _write_cache(cache, paths, shape)
                images = _open_cache(cache, shape)
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot keep {np.prod(shape, dtype=np.int64):,} bytes of pixels in {folder} "
            f"({error.strerror}); free space there or choose another folder",
        ) from error
    return images


def read_image(path: str | os.PathLike, size: tuple[int, int] | None = None) -> np.ndarray:
    """Reads one image file.

    Greyscale, palette, CMYK and 16-bit images become 8-bit RGB and an EXIF orientation is applied.
    Transparency is dropped and colour profiles are not applied. Smaller sizes come from area
    averaging, larger ones from bilinear interpolation. The whole image is used: one that is not of
    the wanted shape (HAM10000 is 4:3) is squashed, not cropped.

    JPEGs are decoded straight to 1/2, 1/4 or 1/8 where that is at least 1.5 times the wanted size
    (libjpeg's scaled inverse transform): faster, and on average within about one grey level of
    averaging the full image. Damage that libjpeg would fill with grey is an error here.

    Args:
        path: a JPEG, PNG, BMP, TIFF or WebP file.
        size: (height, width) in pixels; the image's own if None.

    Returns:
        uint8 array (height, width, 3), RGB, 0 to 255.

    Raises:
        ImageError: the file is missing, damaged, cut short or no image.
        ValueError: the size is not two positive whole numbers.
    """
    if size is not None:
        size = _check_size(size)
    try:
        pixels = _decode_image(Path(path).read_bytes(), size)
    except Exception as error:  # malformed files make the decoders raise nearly anything
        problem = f"{path}: {_explain_failure(error)}"
        raise ImageError("image unreadable; get or save the file anew", [problem]) from error
    return pixels if size is None else resize_pixels(pixels, size)


def _check_size(size: tuple[int, int]) -> tuple[int, int]:
    height, width = size
    if height != int(height) or width != int(width) or min(height, width) < 1:
        raise ValueError(f"size is {size}; it must be (height, width) in whole pixels from 1")
    return int(height), int(width)


def _decode_image(data: bytes, size: tuple[int, int] | None) -> np.ndarray:
    """Decodes to uint8 RGB, upright, at any scale that is large enough for the size."""
    if not data:
        raise ValueError("the file is empty")
    with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
        # MPO is a JPEG with more images behind it, as some telephones write.
        if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
            width, height = image.size
            if orientation in SIDEWAYS and size is not None:
                size = size[::-1]
            shrink = 1 if size is None else _choose_shrink(height / size[0], width / size[1])
            pixels = _decode_jpeg(data, -(-height // shrink), -(-width // shrink))
        elif image.mode.startswith("I;16"):
            # The high byte, as Pillow takes it from 16-bit colour; its convert() would clip.
            pixels = np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        elif image.mode in ("I", "F"):
            raise ValueError("32-bit pixels have no defined white; save it with 8 or 16 bits")
        else:
            # By way of RGBA, as Pillow wants it for palettes with transparency.
            image = image.convert("RGBA") if image.mode == "P" else image
            pixels = np.asarray(image.convert("RGB"))
    return _turn_upright(pixels, orientation)


def _decode_jpeg(data: bytes, height: int, width: int) -> np.ndarray:
    """Decodes at the smallest scale with that height and width, refusing damaged data.

    libjpeg only warns of damage and goes on with grey or shifted pixels. Its other warnings (JFIF
    revision, Adobe transform, SOS parameters: jerror.h) come from odd writers and leave the pixels
    right: those files go to Pillow, which does not hear of warnings.
    """
    try:
        return simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width, strict=True)
    except ValueError as error:
        if str(error).startswith(("Corrupt", "Premature")):
            raise
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            return np.asarray(image.convert("RGB"))


def _choose_shrink(*ratios: float) -> int:
    """Chooses how much smaller to decode a JPEG, given how much smaller it has to become.

    At least one and a half times the wanted size is left to average over. Of libjpeg-turbo's
    scales only the powers of two have fast code: 4/8 takes less time than 3/8.
    """
    return max(shrink for shrink in (1, 2, 4, 8) if shrink == 1 or min(ratios) >= 1.5 * shrink)


def _turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Applies an EXIF orientation, 1 to 8; others mean 1 (Exif 2.32, CIPA DC-008, 4.6.4)."""
    if orientation in SIDEWAYS:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def resize_pixels(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes uint8 pixels (height, width, 3) to the size as `read_image` does."""
    height, width = size
    # Shrinking first: OpenCV averages areas only where no side grows.
    smaller = (min(width, pixels.shape[1]), min(height, pixels.shape[0]))
    if smaller != pixels.shape[1::-1]:
        pixels = cv2.resize(pixels, smaller, interpolation=cv2.INTER_AREA)
    if smaller != (width, height):
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
    return pixels


def _explain_failure(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its text holds a memory address
        return f"not an image of the formats {', '.join(IMAGE_FORMATS)}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{error}" or type(error).__name__


def _hash_inputs(image_ids: Iterable[str], paths: list[str]) -> str:
    """Hashes what the pixels depend on, the size apart."""
    digest = hashlib.sha256(f"version {CACHE_VERSION}\n".encode())
    problems = []
    for image_id, path in zip(image_ids, paths, strict=True):
        try:
            stat = os.stat(path)  # noqa: PTH116 - a Path for each takes as long again
        except OSError as error:
            problems.append(f"{path}: {_explain_failure(error)}")
        else:
            digest.update(f"{image_id!r} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    _raise_problems(problems, len(paths))
    return digest.hexdigest()[:20]


def _open_cache(cache: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Maps a cache into memory; None if there is none, or none of that shape."""
    try:
        images = np.load(cache, mmap_mode="r")
    except (OSError, ValueError, EOFError):  # not there, cut short or not ours
        return None
    return images if images.shape == shape and images.dtype == np.uint8 else None


@contextmanager
def _lock_folder(folder: Path) -> Iterator[bool]:
    """Waits for the folder's lock, which the system frees even of a killed process.

    Yields whether the lock is held: not every system and file system has locks. Without one
    processes only do the same work twice.
    """
    with (folder / "images.lock").open("ab") as file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX)
            is_locked = fcntl is not None
        except OSError:
            is_locked = False
        yield is_locked


def _write_cache(cache: Path, paths: list[str], shape: tuple[int, ...]) -> None:
    """Decodes all images into a cache, which appears under its name only when complete."""
    if shutil.disk_usage(cache.parent).free < np.prod(shape, dtype=np.int64):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    part = cache.with_name(f"{cache.stem}-{os.getpid()}-{uuid.uuid4().hex}.tmp")
    problems = []
    try:
        # Written as a file, not through a memory map, whose dirty pages would fill the memory.
        with part.open("xb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for decoding in decode_images(paths, shape[1:3]):
                try:
                    file.write(decoding.result().data)
                except ImageError as error:
                    problems += error.problems
            _raise_problems(problems, len(paths))
            file.flush()
            os.fsync(file.fileno())
        part.replace(cache)
    finally:
        part.unlink(missing_ok=True)


def decode_images(
    paths: Sequence[str | os.PathLike], size: tuple[int, int], ahead: int = 0
) -> Iterator[Future]:
    """Decodes in threads (the decoders release the interpreter's lock), in order, under a bar.

    Args:
        paths: the files.
        size: as for `read_image`.
        ahead: images that are decoded before they are asked for, at least; more where the threads
            would otherwise wait.

    Yields:
        For each file a finished or running `read_image`: `result()` gives its array or raises.
    """
    cpus = _count_cpus()
    # No bar in the first second: there is nothing to see for a small folder.
    bar = show_bar(desc="Decoding images", total=len(paths), unit="image", delay=1)
    with ThreadPoolExecutor(cpus) as pool, bar:
        waiting: deque[Future] = deque()
        for path in paths:
            waiting.append(pool.submit(read_image, path, size))
            if len(waiting) > max(ahead, cpus * IMAGES_AHEAD):
                yield waiting.popleft()
                bar.update()
        for decoding in waiting:
            yield decoding
            bar.update()


def _count_cpus() -> int:
    """Counts the processors this process may use (os.process_cpu_count needs Python 3.13)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _raise_problems(problems: list[str], total: int) -> None:
    if problems:
        raise ImageError(
            f"{len(problems)} of {total} images unreadable; get or save the files anew, or "
            "delete their rows",
            problems,
        )
