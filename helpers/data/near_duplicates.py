"""Near-duplicate images: a perceptual hash per image, compared across lesions.

The hash finds copies: the same photograph saved again, resized, re-lit, turned or mirrored. It does
not find a second photograph of the same lesion, taken a little closer or from the side.
"""

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from helpers.data.reading import DUPLICATE_PAIRS

LUMA = np.float32([0.299, 0.587, 0.114])  # red, green, blue: ITU-R BT.601
VIEWS = 8  # an image as it is, turned by 90, 180, 270 degrees, and the mirror images of these
CHUNK = 1000  # images at a time: bounds the memory to some 100 MB


def hash_images(pixels: np.ndarray, size: int = 16) -> np.ndarray:
    """Hash images as they are, turned and mirrored.

    The hash of an image is one bit per low frequency of its grey centre square: whether the
    coefficient of the cosine transform lies above the median of all. Of the sixteen times sixteen
    lowest, the mean brightness is left out. Turning and mirroring an image only swaps the
    coefficients and their signs, so that all eight views cost one transform.

    Args:
        pixels: uint8 (N, height, width, 3), RGB.
        size: frequencies in each direction, 2 … the shorter side of the images. 16 tells lesions
            apart that are small dots in the middle; with 8 they are all alike.

    Returns:
        bool (8, N, size² - 1), the images as they are first. Half of the bits of each hash are
        set, so that two hashes differ in an even number of bits.

    Raises:
        ValueError: a size that the images do not have the pixels for.

    Source: pHash of Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions
    (2010), as in the package ImageHash, which hashes one image at a time.
    """
    height, width = pixels.shape[1:3]
    side = min(height, width)
    if not 2 <= size <= side:
        raise ValueError(f"size is {size}; it must be 2 … {side} for images of {height}x{width}")
    # The same number of pixels off either end, or a mirror image would be one pixel further on; so
    # what is left may be one pixel longer than high.
    top, left = (height - side) // 2, (width - side) // 2
    down, across = (_make_cosines(size, length) for length in (height - 2 * top, width - 2 * left))
    hashes = np.empty((VIEWS, len(pixels), size**2 - 1), bool)
    for start in range(0, len(pixels), CHUNK):
        rows = slice(start, start + CHUNK)
        grey = pixels[rows, top : height - top, left : width - left] @ LUMA
        for view, turned in enumerate(_turn_spectrum(down @ grey @ across.T)):
            values = turned.reshape(len(turned), -1)[:, 1:]
            hashes[view, rows] = values > np.median(values, axis=1, keepdims=True)
    return hashes


def measure_distances(hashes: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Count the bits by which pairs of images differ, in the most alike of the eight views.

    Args:
        hashes: bool (8, N, bits) of `hash_images`.
        first, second: int (P,), row numbers.

    Returns:
        int (P,), 0 … bits.
    """
    return (hashes[0, first] != hashes[:, second]).sum(axis=2).min(axis=0)


def find_pairs(
    hashes: np.ndarray, lesions: np.ndarray, limit: int = 1000
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compare every image with every other one.

    Args:
        hashes: bool (8, N, bits) of `hash_images`.
        lesions: (N,), the lesion of each image.
        limit: pairs to return, the nearest first.

    Returns:
        The nearest pairs of images of different lesions: columns first, second (row numbers,
        first < second) and distance (bits), sorted by these, distance first. And the number of
        all pairs at each distance, 0 … bits: columns same_lesion and different_lesions.
    """
    bits = hashes.shape[2]
    codes = pd.factorize(np.asarray(lesions))[0]
    # As +1 and -1, the product of two hashes is bits - 2 * distance: a matrix product, which is
    # faster than counting bits.
    signs = hashes.astype(np.float32) * 2 - 1
    counts = np.zeros((2, bits + 1), np.int64)
    nearest = np.empty((0, 3), np.int64)
    for start in range(0, len(codes), CHUNK):
        chunk = signs[0, start : start + CHUNK]
        product = chunk @ signs[0, start:].T
        for view in signs[1:]:
            np.maximum(product, chunk @ view[start:].T, out=product)
        distance = ((bits - product) / 2).astype(np.int16)
        above = np.arange(len(chunk))[:, None] < np.arange(len(codes) - start)
        is_same = codes[start : start + CHUNK, None] == codes[start:]
        counts[0] += np.bincount(distance[above & is_same], minlength=bits + 1)
        across = np.bincount(distance[above & ~is_same], minlength=bits + 1)
        counts[1] += across
        # No pair further than this can be among the nearest.
        reach = min(np.searchsorted(across.cumsum(), limit), bits)
        first, second = np.nonzero(above & ~is_same & (distance <= reach))
        found = np.column_stack([distance[first, second], first + start, second + start])
        nearest = np.concatenate([nearest, found])
        nearest = nearest[np.lexsort(nearest.T[::-1])][:limit]
    pairs = pd.DataFrame(nearest, columns=["distance", "first", "second"])
    index = pd.RangeIndex(bits + 1, name="distance")
    return pairs, pd.DataFrame(counts.T, index, ["same_lesion", "different_lesions"])


def find_published(table: pd.DataFrame) -> pd.DataFrame:
    """Find the pairs of `dataset.DUPLICATE_PAIRS` of which both images are in the table.

    Returns:
        A row per pair: columns first and second, row numbers of the table, 0 … N - 1.
    """
    row_of = {image_id: row for row, image_id in enumerate(table["image_id"])}
    rows = [[row_of[i] for i in pair] for pair in DUPLICATE_PAIRS if row_of.keys() >= set(pair)]
    return pd.DataFrame(rows, columns=["first", "second"], dtype=np.int64)


def measure_copies(
    pixels: np.ndarray, size: int, threshold: int, images: int = 200, seed: int = 0
) -> pd.DataFrame:
    """Alter images in known ways and look how many are recognised by their hash.

    Args:
        pixels: uint8 (N, height, width, 3), RGB.
        size: as for `hash_images`.
        threshold: bits by which a hash may differ.
        images: how many to alter, drawn at random.
        seed: of the choice.

    Returns:
        A row per alteration: median and largest distance (bits) and the share found, 0 … 1.
    """
    chosen = np.random.default_rng(seed).permutation(len(pixels))[:images]
    originals = np.asarray(pixels[np.sort(chosen)])
    rows = {}
    for name, alter in ALTERATIONS.items():
        copies = np.stack([_resize(alter(image), originals.shape[1:3]) for image in originals])
        hashes = hash_images(np.concatenate([originals, copies]), size)
        number = np.arange(len(originals))
        distance = measure_distances(hashes, number, number + len(originals))
        rows[name] = (int(np.median(distance)), distance.max(), (distance <= threshold).mean())
    return pd.DataFrame.from_dict(
        rows, orient="index", columns=["median_distance", "largest_distance", "found"]
    ).rename_axis("alteration")


def plot_distances(counts: pd.DataFrame, threshold: int) -> Figure:
    """Draw how far apart photographs of one lesion are, and those of different lesions.

    Args:
        counts: pairs per distance, as from `find_pairs`.
        threshold: distance in bits up to which a pair counts as near-duplicate.
    """
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    names = {"different_lesions": "different lesions", "same_lesion": "same lesion"}
    for (column, name), colour in zip(names.items(), ("0.6", "C0"), strict=True):
        pairs = counts[column].sum()
        # Distances are even: two to a step make four bits.
        share = counts[column].groupby(counts.index // 4 * 4).sum() / max(pairs, 1)
        steps = np.append(share.index, share.index[-1] + 4)
        label = f"{name} ({pairs:,} pairs)"
        axes.stairs(100 * share, steps, fill=True, alpha=0.6, color=colour, label=label)
    axes.axvline(threshold, color="firebrick", linestyle="--", label=f"threshold, {threshold} bits")
    axes.set(xlabel="bits by which two hashes differ", ylabel="% of the pairs")
    axes.set_title("Distance between two photographs")
    axes.set_xlim(0, max(threshold, counts.index[counts.any(axis=1)].max()) + 10)
    figure.legend(frameon=False, ncols=3, loc="outside lower center")
    sns.despine(figure)
    return figure


def plot_pairs(pixels: np.ndarray, table: pd.DataFrame, pairs: pd.DataFrame) -> Figure:
    """Draw pairs of images side by side, three pairs to a row.

    Args:
        pixels: uint8 (N, height, width, 3) in the order of the table.
        table: a row per image, with the columns `image_id` and `dx`.
        pairs: the columns first, second (row numbers) and distance, a row or more.
    """
    columns = 3
    rows = -(-len(pairs) // columns)
    aspect = pixels.shape[1] / pixels.shape[2]
    figure, axs = plt.subplots(
        rows,
        columns,
        figsize=(3.2 * columns, rows * (1.6 * aspect + 0.45)),
        layout="constrained",
        squeeze=False,
    )
    for axes in axs.flat:
        axes.axis("off")
    gap = np.full((pixels.shape[1], max(1, pixels.shape[2] // 25), 3), 255, np.uint8)
    for axes, pair in zip(axs.flat, pairs.itertuples(), strict=False):
        axes.imshow(np.concatenate([pixels[pair.first], gap, pixels[pair.second]], axis=1))
        titles = [
            f"{table['image_id'].iloc[i]} {table['dx'].iloc[i]}" for i in (pair.first, pair.second)
        ]
        axes.set_title(f"{' | '.join(titles)}\n{pair.distance} bits", fontsize=8)
    return figure


def _make_cosines(size: int, length: int) -> np.ndarray:
    """Return the lowest `size` waves over `length` pixels, float32 (size, length)."""
    angles = np.pi * np.outer(np.arange(size), np.arange(length) + 0.5) / length
    return np.cos(angles).astype(np.float32)


def _turn_spectrum(spectrum: np.ndarray) -> list[np.ndarray]:
    """Turn and mirror images by their cosine coefficients (N, size, size), in eight ways."""
    odd = 1 - 2 * (np.arange(spectrum.shape[1]) % 2).astype(np.float32)  # changes sign in a mirror
    upright = [spectrum, spectrum * odd, spectrum * odd[:, None], spectrum * odd * odd[:, None]]
    return upright + [view.swapaxes(1, 2) for view in upright]


def _resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    grows = image.shape[0] < size[0]
    return cv2.resize(
        image, size[::-1], interpolation=cv2.INTER_LINEAR if grows else cv2.INTER_AREA
    )


def _compress(image: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 80])[1], 1)


def _crop(image: np.ndarray, share: float) -> np.ndarray:
    top, left = (round(share * side) for side in image.shape[:2])
    return image[top : image.shape[0] - top, left : image.shape[1] - left]


ALTERATIONS = {
    "saved as JPEG of quality 80": _compress,
    "half the size": lambda image: _resize(image, (image.shape[0] // 2, image.shape[1] // 2)),
    "a fifth darker": lambda image: (image * 0.8).astype(np.uint8),
    "mirrored": lambda image: image[:, ::-1],
    "turned by 180 degrees": lambda image: image[::-1, ::-1],
    "a twentieth cut off each side": lambda image: _crop(image, 0.05),
    "a tenth cut off each side": lambda image: _crop(image, 0.1),
}
