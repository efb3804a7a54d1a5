"""Draw pictures that show no lesion, to see whether a model is warned of them."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from helpers.data.drawing import HEIGHT, WIDTH
from helpers.data.images import resize_pixels

FURS = [(40, 38, 36), (110, 108, 105), (190, 120, 60), (120, 85, 55), (235, 230, 222)]
IRISES = [(200, 190, 60), (110, 170, 80), (90, 140, 190)]


def draw_noise(rng: np.random.Generator) -> np.ndarray:
    """Draw independent random pixels or blocks of pixels, in colour or grey."""
    side = int(rng.choice([1, 4, 16, 64]))
    planes = int(rng.choice([1, 3]))
    small = rng.integers(0, 256, (-(-HEIGHT // side), -(-WIDTH // side), planes), np.uint8)
    blocks = small.repeat(side, axis=0).repeat(side, axis=1)[:HEIGHT, :WIDTH]
    return np.ascontiguousarray(np.broadcast_to(blocks, (HEIGHT, WIDTH, 3)))


def draw_cat(rng: np.random.Generator) -> np.ndarray:
    """Draw the face of a cat: head, two ears, eyes, nose, whiskers."""
    picture = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    picture[:] = _mix_paint(rng)
    fur, eyes = (tuple(map(int, rng.choice(colours))) for colours in (FURS, IRISES))
    radius = int(rng.integers(90, 180))
    x, y = WIDTH // 2 + int(rng.integers(-60, 61)), HEIGHT // 2 + int(rng.integers(-20, 41))
    for side in (-1, 1):
        ear = [(x + side * radius, y - int(1.3 * radius)), (x + side * radius, y), (x, y - radius)]
        cv2.fillPoly(picture, [np.int32(ear)], fur, cv2.LINE_AA)
    cv2.circle(picture, (x, y), radius, fur, -1, cv2.LINE_AA)
    for side in (-1, 1):
        eye = (x + side * radius * 2 // 5, y - radius // 5)
        cv2.ellipse(picture, eye, (radius // 5, radius // 7), 0, 0, 360, eyes, -1, cv2.LINE_AA)
        cv2.ellipse(picture, eye, (radius // 20, radius // 8), 0, 0, 360, (0, 0, 0), -1)
        for lift in (-1, 0, 1):
            ends = (
                (x + side * radius // 4, y + radius // 3),
                (
                    x + side * radius * 5 // 4,
                    y + radius // 3 + lift * radius // 4,
                ),
            )
            cv2.line(picture, *ends, (10, 10, 10), 2, cv2.LINE_AA)
    cv2.circle(picture, (x, y + radius // 4), radius // 10, (200, 110, 120), -1, cv2.LINE_AA)
    return picture


def draw_page(rng: np.random.Generator) -> np.ndarray:
    """Draw a page of a document: dark words in lines and paragraphs on white paper."""
    picture = np.full((HEIGHT, WIDTH, 3), int(rng.integers(225, 256)), np.uint8)
    line, margin, ink = (
        int(rng.integers(9, 25)),
        int(rng.integers(20, 60)),
        int(rng.integers(0, 80)),
    )
    for y in range(margin, HEIGHT - margin, line):
        if rng.random() < 0.12:  # a new paragraph
            continue
        x, end = margin, WIDTH - margin
        while x < end:
            word = int(rng.integers(1, 10) * line * 0.4) + 1
            top = y + int(line * 0.55)
            cv2.rectangle(picture, (x, y), (min(x + word, end), top), (ink,) * 3, -1)
            picture[y : top + 1, x : min(x + word, end) : 3] = picture[0, 0]  # between letters
            x += word + line // 3
    return picture


def draw_wall(rng: np.random.Generator) -> np.ndarray:
    """Draw a plain wall: one colour, lit from a side, with a little grain."""
    y, x = np.mgrid[-0.5 : 0.5 : HEIGHT * 1j, -0.5 : 0.5 : WIDTH * 1j]
    turn, fall = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.3)
    light = 1 + fall * (x * np.cos(turn) + y * np.sin(turn))
    grain = rng.normal(0, rng.uniform(0, 4), (HEIGHT, WIDTH, 1))
    return np.clip(light[..., None] * _mix_paint(rng) + grain, 0, 255).astype(np.uint8)


def _mix_paint(rng: np.random.Generator) -> np.ndarray:
    """Return a wall's colour, RGB: white to middle grey with a tint."""
    return rng.uniform(110, 235) + rng.uniform(-40, 20, 3)


KINDS = {"noise": draw_noise, "cat": draw_cat, "page": draw_page, "wall": draw_wall}


def save_pictures(folder: Path, seed: int = 0) -> list[Path]:
    """Save one picture of each kind as <kind>.png; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{kind}.png" for kind in KINDS]
    for path, draw in zip(paths, KINDS.values(), strict=True):
        Image.fromarray(draw(np.random.default_rng(seed))).save(path)
    return paths


def draw_variants(count: int, size: tuple[int, int], seed: int = 0) -> Iterator[tuple]:
    """Draw random variants of each kind at the size (height, width) that a net takes.

    Yields:
        The kind and uint8 (count, height, width, 3).
    """
    for number, (kind, draw) in enumerate(KINDS.items()):
        rngs = [np.random.default_rng([seed, number, i]) for i in range(count)]
        yield kind, np.stack([resize_pixels(draw(rng), size) for rng in rngs])
