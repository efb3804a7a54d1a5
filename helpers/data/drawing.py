"""Draw one lesion: four maps (melanin, blood, veil, white) laid over skin, then photographed.

Each class has the features that tell it apart under a dermatoscope (Tschandl et al., Sci. Data
5:180161, 2018); the drawings say nothing about how well a net reads skin.
"""

import cv2
import numpy as np

HEIGHT, WIDTH = 450, 600
SIDE = 640  # a lesion is painted once on a square patch; every view is cut out of it
Y, X = np.mgrid[:SIDE, :SIDE].astype(np.float32) - SIDE / 2

# Red, green, blue absorbed by one unit of melanin and of blood; colours that cover the skin.
MELANIN, BLOOD = np.float32([[0.45, 0.75, 1.05], [0.17, 0.95, 0.66]])
VEIL_COLOUR, WHITE_COLOUR = np.float32([[0.33, 0.36, 0.49], [0.96, 0.90, 0.89]])
SKIN_COLOURS = {
    "vidir_molemax": (0.92, 0.66, 0.60),
    "vidir_modern": (0.85, 0.71, 0.68),
    "rosendahl": (0.81, 0.72, 0.69),
    "vienna_dias": (0.88, 0.58, 0.62),
}

# By class: radius in pixels, raggedness of the border, lobes, stretch of the longer axis, and the
# classes that an atypical lesion looks like.
SHAPES = {
    "akiec": (170, 0.22, 0.12, 0.20, ("bkl", "bcc")),
    "bcc": (145, 0.16, 0.12, 0.15, ("akiec", "nv")),
    "bkl": (150, 0.12, 0.12, 0.20, ("mel", "nv", "akiec")),
    "df": (115, 0.07, 0.05, 0.10, ("nv", "bcc")),
    "mel": (155, 0.13, 0.16, 0.25, ("nv", "nv", "bkl")),
    "nv": (110, 0.05, 0.05, 0.25, ("mel", "bkl", "df")),
    "vasc": (100, 0.05, 0.06, 0.15, ("bcc", "mel")),
}
ATYPICAL_SHARE = 0.15  # of the lesions, so that even a good net is not always right


def draw_lesion(dx: str, rng: np.random.Generator, source: str = "vidir_modern", views: int = 1):
    """Draw one lesion of a class, such as "nv", in several views: uint8 (views, 450, 600, 3), RGB.

    The source, one of `SKIN_COLOURS`, is whose skin tones and dark corners are imitated.
    """
    patch = _paint_patch(dx, source, rng)
    return np.stack([_photograph(patch, source, rng) for _ in range(views)])


def _make_clouds(rng: np.random.Generator, cell: int, octaves: int = 4) -> np.ndarray:
    """Return noise about N(0, 1), float32 (SIDE, SIDE), with details of `cell` pixels and finer."""
    size, clouds = SIDE // cell + 3, 0
    for octave in range(octaves):
        finer = rng.standard_normal((size, size), dtype=np.float32)
        clouds = clouds + 0.8 * 0.6**octave * finer
        size = SIDE if octave == octaves - 1 else min(2 * size, SIDE)
        clouds = cv2.resize(clouds, (size, size), interpolation=cv2.INTER_CUBIC)
    return clouds


def _rise(values: np.ndarray, width: float) -> np.ndarray:
    """Return a smooth step from 0 to 1 around zero, float32."""
    return 1 / (1 + np.exp(-np.clip(values / np.float32(width), -30, 30)))


def _shape_lesion(dx: str, rng: np.random.Generator) -> np.ndarray:
    """Return the distance from the centre, float32 (SIDE, SIDE), scaled to 1 at the border."""
    radius, ragged, lobes, stretch, _ = SHAPES[dx]
    stretch = 1 + stretch * rng.random()
    distance, angle = cv2.cartToPolar(X * stretch, Y / stretch)
    border = np.ones_like(angle)
    for k in range(1, 6):
        border += rng.normal(0, lobes) / k * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    distance /= np.float32(radius * np.exp(rng.normal(0, 0.2))) * np.maximum(border, 0.4)
    return distance + ragged * _make_clouds(rng, 48)


def _scatter_dots(rng: np.random.Generator, rho: np.ndarray, count: int, radii: tuple):
    """Return soft dots inside the border, float32 (SIDE, SIDE), 0 to 1."""
    dots = np.zeros((SIDE, SIDE), np.uint8)
    ys, xs = np.nonzero(rho[::4, ::4] < 0.9)
    for pick in rng.integers(0, len(ys), count) if len(ys) else ():
        centre = float(4 * xs[pick]), float(4 * ys[pick])
        axes = tuple(2 * rng.uniform(*radii, 2))
        cv2.ellipse(dots, (centre, axes, rng.uniform(0, 180)), 255, -1, cv2.LINE_AA)
    return cv2.GaussianBlur(dots, (0, 0), 1 + 0.15 * radii[1]).astype(np.float32) / 255


def _make_cells(rng: np.random.Generator, cell: float) -> np.ndarray:
    """Return a honeycomb, float32 (SIDE, SIDE): 0 in the holes, near 1 on the lines between."""
    seeds = np.full((SIDE, SIDE), 255, np.uint8)
    grid = np.mgrid[:SIDE:cell, :SIDE:cell]
    seeds[tuple((grid + rng.uniform(0, 0.8 * cell, grid.shape)).astype(int) % SIDE)] = 0
    return np.clip(cv2.distanceTransform(seeds, cv2.DIST_L2, 3) / (0.75 * cell), 0, 1)


def _draw_vessels(rng: np.random.Generator, rho: np.ndarray, count: int) -> np.ndarray:
    """Return branching vessels that enter from the border, float32 (SIDE, SIDE), 0 to 1."""
    lines = np.zeros((SIDE, SIDE), np.uint8)
    reach = 0.45 * np.sqrt((rho < 1).sum())
    turns = rng.uniform(0, 2 * np.pi, count)
    starts = SIDE / 2 + reach * np.c_[np.cos(turns), np.sin(turns)]
    stems = [(start, turn + np.pi, 3) for start, turn in zip(starts, turns, strict=True)]
    for point, course, width in stems:  # grows by two branches for each stem
        steps = course + np.cumsum(rng.normal(0, 0.35, 9))
        path = point + np.cumsum(np.c_[np.cos(steps), np.sin(steps)] * reach / 14, axis=0)
        cv2.polylines(lines, [np.int32(path * 16)], False, 255, width, cv2.LINE_AA, 4)
        if width > 1:
            ends = rng.integers(3, 9, 2)
            stems += [(path[e], steps[e] + rng.choice([-0.7, 0.7]), width - 1) for e in ends]
    return cv2.GaussianBlur(lines, (0, 0), 1.0).astype(np.float32) / 255 * (rho < 1.1)


def _paint_nv(rho: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Paint a nevus: one even brown with a regular network, fading at the border."""
    body = _rise(1 - rho, rng.uniform(0.04, 0.12))
    network = rng.uniform(0.2, 0.6) * (_make_cells(rng, rng.uniform(9, 15)) - 0.5)
    melanin = rng.uniform(0.4, 1.0) * body * (1 + 0.1 * _make_clouds(rng, 64) + network)
    return cv2.merge([melanin, rng.uniform(0.1, 0.4) * body, 0 * body, 0 * body])


def _paint_mel(rho: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Paint a melanoma: several colours side by side, dark blots, a veil, pale regression."""
    body = _rise(1 - rho, rng.uniform(0.03, 0.08))
    dark = _rise(_make_clouds(rng, 150) - rng.uniform(-0.7, 0.1), 0.3)
    network = _make_cells(rng, rng.uniform(12, 22)) - 0.5
    melanin = body * (rng.uniform(1.1, 1.6) + rng.uniform(1.4, 2.2) * dark + 0.5 * network)
    melanin += 1.2 * _scatter_dots(rng, rho, rng.integers(5, 30), (3, 9))
    veil = rng.uniform(0.4, 0.8) * body * _rise(_make_clouds(rng, 140) - 0.4, 0.35)
    white = rng.uniform(0, 0.5) * body * _rise(_make_clouds(rng, 110) - 1, 0.3)
    blood = rng.uniform(0.1, 0.5) * body * _rise(_make_clouds(rng, 130), 0.3)
    return cv2.merge([melanin, blood, veil, white])


def _paint_bkl(rho: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Paint a keratosis: stuck-on with a sharp border, dull brown, pale cysts, dark plugs."""
    body = _rise(1 - rho, rng.uniform(0.015, 0.035))
    furrows = 1.5 * np.abs(_make_clouds(rng, 16, octaves=2))
    melanin = rng.uniform(0.25, 0.75) * body * (0.7 + 0.4 * furrows + 0.3 * _make_clouds(rng, 90))
    melanin += 0.9 * _scatter_dots(rng, rho, rng.integers(0, 16), (3, 6))
    wax = rng.uniform(0.1, 0.25) * body
    cysts = 0.5 * _scatter_dots(rng, rho, rng.integers(8, 45), (3, 7))
    return cv2.merge([melanin, 0 * body, wax, wax + cysts])


def _paint_bcc(rho: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Paint a basal cell carcinoma: pink and shiny, branching vessels, blue-grey nests."""
    body = _rise(1 - rho, rng.uniform(0.08, 0.18))
    vessels = _draw_vessels(rng, rho, rng.integers(4, 9))
    blood = rng.uniform(0.4, 0.65) * body + rng.uniform(0.4, 0.8) * vessels
    nests = _scatter_dots(rng, rho + 0.3, rng.integers(2, 9), (7, 20))
    white = rng.uniform(0.1, 0.4) * body * _rise(_make_clouds(rng, 70), 0.5)
    return cv2.merge([0.8 * nests, blood, 0.6 * nests, white])


def _paint_akiec(rho: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Paint an actinic keratosis: red and brown patches without a border, whitish scales."""
    body = _rise(1 - rho, rng.uniform(0.18, 0.3))
    blood = rng.uniform(0.4, 0.7) * body * (0.9 + 0.3 * _make_clouds(rng, 60))
    brown = rng.uniform(0.6, 1.1) * body * _rise(_make_clouds(rng, 60) - 0.4, 0.4)
    scales = rng.uniform(0.4, 0.8) * body * _rise(_make_clouds(rng, 24) - 0.9, 0.25)
    return cv2.merge([brown, blood, 0 * body, scales])


def _paint_vasc(rho: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Paint a vascular lesion: red to purple lacunae with paler walls between them."""
    body = _rise(1 - rho, rng.uniform(0.02, 0.06))
    walls = _make_cells(rng, rng.uniform(24, 50)) ** 2
    depth = rng.uniform(0.2, 0.6)
    blood = body * rng.uniform(1.4, 2.4) * (1.1 - depth * walls + 0.1 * _make_clouds(rng, 40))
    veil = 0.2 * float(rng.integers(0, 3)) * body * (1 - walls)
    return cv2.merge([rng.uniform(0, 0.4) * body, blood, veil, 0.3 * depth * walls * body])


def _paint_df(rho: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Paint a dermatofibroma: a pale scar in the centre, a brown rim with a fine network."""
    ring = np.exp(-(((rho - 0.7) / rng.uniform(0.25, 0.35)) ** 2))
    melanin = rng.uniform(0.5, 0.9) * ring * (0.75 + 0.5 * _make_cells(rng, rng.uniform(9, 13)))
    star = rho + 0.15 * _make_clouds(rng, 30)
    white = rng.uniform(0.35, 0.65) * _rise(rng.uniform(0.35, 0.55) - star, 0.12)
    blood = rng.uniform(0.05, 0.4) * _rise(1 - rho, 0.15)
    return cv2.merge([melanin, blood, 0 * rho, white])


PAINTERS = (_paint_akiec, _paint_bcc, _paint_bkl, _paint_df, _paint_mel, _paint_nv, _paint_vasc)
PAINTERS = dict(zip(SHAPES, PAINTERS, strict=True))


def _paint_patch(dx: str, source: str, rng: np.random.Generator) -> np.ndarray:
    """Return a lesion on its skin, float32 (SIDE, SIDE, 3), RGB from 0 to 1."""
    skin = SKIN_COLOURS[source] * np.exp(rng.normal(0, 0.04) + rng.normal(0, 0.015, 3))
    if rng.random() >= ATYPICAL_SHARE:
        layers = PAINTERS[dx](_shape_lesion(dx, rng), rng)
    else:
        other = str(rng.choice(SHAPES[dx][-1]))
        rho = _shape_lesion(str(rng.choice([dx, other])), rng)
        share = rng.uniform(0.35, 0.7)
        layers = (1 - share) * PAINTERS[dx](rho, rng) + share * PAINTERS[other](rho, rng)
    melanin, blood, veil, white = cv2.split(layers)
    sun_damage = rng.uniform(0.01, 0.08 if source == "rosendahl" else 0.04)
    fine = 0.025 * _make_clouds(rng, 7, octaves=2)
    melanin += sun_damage * _make_clouds(rng, 56) + fine
    blood += rng.uniform(0.01, 0.03) * _make_clouds(rng, 120) - fine
    planes = []
    for k in range(3):  # plane by plane is twice as fast as all three at once
        plane = float(skin[k]) * cv2.exp(-(MELANIN[k] * melanin + BLOOD[k] * blood))
        plane += np.clip(veil, 0, 0.9) * (VEIL_COLOUR[k] - plane)
        planes.append(plane + np.clip(white, 0, 0.9) * (WHITE_COLOUR[k] - plane))
    return cv2.merge(planes)


def _photograph(patch: np.ndarray, source: str, rng: np.random.Generator) -> np.ndarray:
    """Return one view of a patch, uint8 (450, 600, 3): turned, shifted, lit, slightly blurred."""
    turn = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), rng.normal(0, 25), rng.uniform(0.88, 1.15))
    turn[:, 2] += np.array([WIDTH - SIDE, HEIGHT - SIDE]) / 2 + rng.normal(0, 14, 2)
    view = cv2.warpAffine(patch, turn, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT_101)
    view = cv2.GaussianBlur(view, (0, 0), rng.uniform(0.4, 1.1))
    y, x = (axis[95:-95, 20:-20] / 300 for axis in (Y, X))
    distance = np.hypot(x, y)
    light = rng.normal(1, 0.03) + rng.normal(0, 0.04) * x + rng.normal(0, 0.05) * y
    light -= rng.uniform(0, 0.12) * distance**2
    if rng.random() < {"vidir_modern": 0.15, "rosendahl": 0.1}.get(source, 0.02):  # dark corners
        light *= _rise(rng.uniform(0.95, 1.2) - distance, rng.uniform(0.02, 0.06))
    grain = 0.012 * rng.standard_normal((HEIGHT, WIDTH), dtype=np.float32)
    planes = [plane * light * rng.normal(1, 0.012) + grain for plane in cv2.split(view)]
    return (np.clip(cv2.merge(planes), 0, 1) * 255).astype(np.uint8)
