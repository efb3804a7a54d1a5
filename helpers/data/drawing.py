"""Draw one lesion: four maps (melanin, blood, veil, white) laid over skin, then photographed.

Each class has the features that tell it apart under a dermatoscope (Tschandl et al., Sci. Data
5:180161, 2018, describes the classes); the drawings say nothing about how well a net reads skin.
"""

import cv2
import numpy as np

HEIGHT, WIDTH = 450, 600
SIDE = 640  # a lesion is painted once on a square patch; every view is cut out of it

# Red, green, blue absorbed by one unit of melanin and of blood; colours that cover the skin.
MELANIN = np.float32([0.45, 0.75, 1.05])
BLOOD = np.float32([0.17, 0.95, 0.66])
VEIL_COLOUR = np.float32([0.33, 0.36, 0.49])
WHITE_COLOUR = np.float32([0.96, 0.90, 0.89])
SKIN_COLOURS = {
    "vidir_molemax": (0.92, 0.66, 0.60),
    "vidir_modern": (0.85, 0.71, 0.68),
    "rosendahl": (0.81, 0.72, 0.69),
    "vienna_dias": (0.88, 0.58, 0.62),
}

# Shape by class: radius in pixels, raggedness of the border, lobes, offset of the longer axis.
SHAPES = {
    "akiec": (170, 0.22, 0.12, 0.20),
    "bcc": (145, 0.16, 0.12, 0.15),
    "bkl": (150, 0.12, 0.12, 0.20),
    "df": (115, 0.07, 0.05, 0.10),
    "mel": (155, 0.13, 0.16, 0.25),
    "nv": (110, 0.05, 0.05, 0.25),
    "vasc": (100, 0.05, 0.06, 0.15),
}
# What an atypical lesion of a class looks like.
CONFUSED_WITH = {
    "akiec": ("bkl", "bcc"),
    "bcc": ("akiec", "nv"),
    "bkl": ("mel", "nv", "akiec"),
    "df": ("nv", "bcc"),
    "mel": ("nv", "nv", "bkl"),
    "nv": ("mel", "bkl", "df"),
    "vasc": ("bcc", "mel"),
}
ATYPICAL_SHARE = 0.15


def draw_lesion(
    dx: str, rng: np.random.Generator, dataset: str = "vidir_modern", views: int = 1
) -> np.ndarray:
    """Draw views of one lesion of a class.

    Args:
        dx: one of the seven codes, such as "nv".
        rng: where all chance comes from.
        dataset: the source whose skin tones, rulers and vignettes are imitated.
        views: how many pictures to take of the lesion.

    Returns:
        uint8 (views, 450, 600, 3), RGB.
    """
    patch = _paint_patch(dx, dataset, rng)
    return np.stack([_photograph(patch, dataset, rng) for _ in range(views)])


def _make_noise(rng: np.random.Generator, cell: int) -> np.ndarray:
    """Return smooth noise, float32 (SIDE, SIDE), about N(0, 1), with details of `cell` pixels."""
    size = SIDE // cell + 3
    small = rng.standard_normal((size, size), dtype=np.float32)
    return cv2.resize(small, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)


def _make_clouds(rng: np.random.Generator, cell: int) -> np.ndarray:
    """Return noise with coarse and fine details, float32 (SIDE, SIDE), about N(0, 1)."""
    return 0.8 * sum(0.6**k * _make_noise(rng, max(cell >> k, 2)) for k in range(4))


def _rise(values: np.ndarray, width: float) -> np.ndarray:
    """Return a smooth step from 0 to 1 around zero, float32."""
    return 1 / (1 + np.exp(-np.clip(values / np.float32(width), -30, 30)))


def _shape_lesion(dx: str, rng: np.random.Generator) -> np.ndarray:
    """Return the distance from the centre, float32 (SIDE, SIDE), scaled to 1 at the border."""
    radius, ragged, lobes, stretch = SHAPES[dx]
    radius *= np.exp(rng.normal(0, 0.2))
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32) - SIDE / 2
    stretch = 1 + stretch * rng.random()
    distance, angle = cv2.cartToPolar(x * stretch, y / stretch)
    border = np.ones_like(angle)
    for k in range(1, 6):
        border += rng.normal(0, lobes) / k * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    distance /= np.float32(radius) * np.maximum(border, 0.4)
    return distance + ragged * _make_clouds(rng, 48)


def _scatter_dots(
    rng: np.random.Generator, rho: np.ndarray, count: int, radii: tuple[float, float]
) -> np.ndarray:
    """Return soft dots inside the border, float32 (SIDE, SIDE), 0 to 1."""
    dots = np.zeros((SIDE, SIDE), np.uint8)
    ys, xs = np.nonzero(rho[::4, ::4] < 0.9)
    for pick in rng.integers(0, len(ys), count) if len(ys) else ():
        centre = float(4 * xs[pick]), float(4 * ys[pick])
        box = centre, tuple(2 * rng.uniform(*radii, 2)), rng.uniform(0, 180)
        cv2.ellipse(dots, box, 255, -1, cv2.LINE_AA)
    return cv2.GaussianBlur(dots, (0, 0), 1 + 0.15 * radii[1]).astype(np.float32) / 255


def _make_cells(rng: np.random.Generator, cell: float) -> np.ndarray:
    """Return a honeycomb, float32 (SIDE, SIDE): 0 in the holes, near 1 on the lines between."""
    seeds = np.full((SIDE, SIDE), 255, np.uint8)
    grid = np.stack(np.meshgrid(np.arange(0, SIDE, cell), np.arange(0, SIDE, cell)), -1)
    points = (grid + rng.uniform(0, cell * 0.8, grid.shape)).astype(int).reshape(-1, 2)
    points = points[(points < SIDE).all(axis=1)]
    seeds[points[:, 1], points[:, 0]] = 0
    return np.clip(cv2.distanceTransform(seeds, cv2.DIST_L2, 3) / (0.75 * cell), 0, 1)


def _draw_vessels(rng: np.random.Generator, rho: np.ndarray, count: int) -> np.ndarray:
    """Return branching vessels that enter from the border, float32 (SIDE, SIDE), 0 to 1."""
    lines = np.zeros((SIDE, SIDE), np.uint8)
    reach = 0.45 * np.sqrt((rho < 1).sum())
    for _ in range(count):
        turn = rng.uniform(0, 2 * np.pi)
        start = SIDE / 2 + reach * np.array([np.cos(turn), np.sin(turn)])
        stems = [(start, turn + np.pi + rng.normal(0, 0.5), 3)]
        while stems:
            point, course, width = stems.pop()
            steps = np.cumsum(np.r_[course, rng.normal(0, 0.35, 8)])
            walk = np.cumsum(np.c_[np.cos(steps), np.sin(steps)] * reach / 14, axis=0)
            path = np.vstack([point, point + walk])
            cv2.polylines(lines, [np.int32(path * 16)], False, 255, width, cv2.LINE_AA, 4)
            if width > 1:
                ends = rng.integers(3, 9, 2)
                stems += [(path[e], steps[e] + rng.choice([-0.7, 0.7]), width - 1) for e in ends]
    return cv2.GaussianBlur(lines, (0, 0), 1.0).astype(np.float32) / 255 * (rho < 1.1)


def _paint_nv(rho: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Paint a nevus: one even brown with a regular network, fading at the border."""
    body = _rise(1 - rho, rng.uniform(0.04, 0.12))
    network = _make_cells(rng, rng.uniform(9, 15)) - 0.5
    texture = 1 + 0.10 * _make_clouds(rng, 64) + rng.uniform(0.2, 0.6) * network
    centre = 1 + rng.uniform(-0.1, 0.4) * np.exp(-((rho / 0.5) ** 2))
    melanin = rng.uniform(0.4, 0.9) * body * texture * centre
    zero = np.zeros_like(rho)
    return cv2.merge([melanin, rng.uniform(0.1, 0.4) * body, zero, zero])


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
    furrows = np.abs(_make_noise(rng, 18)) + 0.5 * np.abs(_make_noise(rng, 8))
    melanin = rng.uniform(0.25, 0.75) * body * (0.7 + 0.4 * furrows + 0.3 * _make_clouds(rng, 90))
    melanin += 0.9 * _scatter_dots(rng, rho, rng.integers(0, 16), (3, 6))
    melanin += 0.25 * np.exp(-(((rho - 0.93) / 0.08) ** 2))
    cysts = _scatter_dots(rng, rho, rng.integers(8, 45), (3, 7))
    wax = rng.uniform(0.1, 0.25) * body
    return cv2.merge([melanin, np.zeros_like(rho), wax, wax + 0.5 * cysts])


def _paint_bcc(rho: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Paint a basal cell carcinoma: pink and shiny, branching vessels, blue-grey nests."""
    body = _rise(1 - rho, rng.uniform(0.08, 0.18))
    blood = rng.uniform(0.4, 0.65) * body
    blood += rng.uniform(0.4, 0.8) * _draw_vessels(rng, rho, rng.integers(4, 9))
    blood += 0.9 * _scatter_dots(rng, rho, rng.integers(0, 4), (6, 14))
    nests = _scatter_dots(rng, rho + 0.3, rng.integers(2, 9), (7, 20))
    white = rng.uniform(0.1, 0.4) * body * _rise(_make_clouds(rng, 70), 0.5)
    return cv2.merge([0.8 * nests, blood, 0.6 * nests, white])


def _paint_akiec(rho: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Paint an actinic keratosis: red and brown patches without a border, whitish scales."""
    body = _rise(1 - rho, rng.uniform(0.18, 0.3))
    blood = rng.uniform(0.4, 0.7) * body * (0.9 + 0.3 * _make_clouds(rng, 60))
    brown = rng.uniform(0.6, 1.1) * body * _rise(_make_clouds(rng, 60) - 0.4, 0.4)
    scales = rng.uniform(0.4, 0.8) * body * _rise(_make_clouds(rng, 24) - 0.9, 0.25)
    follicles = 0.35 * _scatter_dots(rng, rho, 40, (2, 4))
    return cv2.merge([brown, blood, np.zeros_like(rho), scales + follicles])


def _paint_vasc(rho: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Paint a vascular lesion: red to purple lacunae with paler walls between them."""
    body = _rise(1 - rho, rng.uniform(0.02, 0.06))
    walls = _make_cells(rng, rng.uniform(24, 50)) ** 2
    depth = rng.uniform(0.2, 0.6)
    blood = body * rng.uniform(1.4, 2.4) * (1.1 - depth * walls + 0.1 * _make_clouds(rng, 40))
    blood += rng.uniform(0, 0.3) * np.exp(-np.maximum(rho - 0.9, 0) / 0.3)
    veil = 0.2 * float(rng.integers(0, 3)) * body * (1 - walls)
    return cv2.merge([rng.uniform(0, 0.4) * body, blood, veil, 0.3 * depth * walls * body])


def _paint_df(rho: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Paint a dermatofibroma: a pale scar in the centre, a brown rim with a fine network."""
    ring = np.exp(-(((rho - 0.7) / rng.uniform(0.25, 0.35)) ** 2))
    network = 1 + 0.5 * (_make_cells(rng, rng.uniform(9, 13)) - 0.5)
    star = rho + 0.15 * _make_clouds(rng, 30)
    white = rng.uniform(0.35, 0.65) * _rise(rng.uniform(0.35, 0.55) - star, 0.12)
    blood = rng.uniform(0.05, 0.4) * _rise(1 - rho, 0.15)
    melanin = rng.uniform(0.5, 0.9) * ring * network
    return cv2.merge([melanin, blood, np.zeros_like(rho), white])


PAINTERS = {
    "akiec": _paint_akiec,
    "bcc": _paint_bcc,
    "bkl": _paint_bkl,
    "df": _paint_df,
    "mel": _paint_mel,
    "nv": _paint_nv,
    "vasc": _paint_vasc,
}


def _paint_layers(dx: str, rng: np.random.Generator) -> np.ndarray:
    """Return melanin, blood, veil and white, float32 (SIDE, SIDE, 4), of a lesion.

    Some lesions are atypical and borrow the look of a class that theirs is confused with, so
    that even a good net is not always right.
    """
    if rng.random() >= ATYPICAL_SHARE:
        return PAINTERS[dx](_shape_lesion(dx, rng), rng)
    other = str(rng.choice(CONFUSED_WITH[dx]))
    rho = _shape_lesion(str(rng.choice([dx, other])), rng)
    share = rng.uniform(0.35, 0.7)
    return (1 - share) * PAINTERS[dx](rho, rng) + share * PAINTERS[other](rho, rng)


def _paint_patch(dx: str, dataset: str, rng: np.random.Generator) -> np.ndarray:
    """Return a lesion on its skin, float32 (SIDE, SIDE, 3), RGB from 0 to 1."""
    skin = SKIN_COLOURS[dataset] * np.exp(rng.normal(0, 0.04) + rng.normal(0, 0.015, 3))
    melanin, blood, veil, white = cv2.split(_paint_layers(dx, rng))
    sun_damage = rng.uniform(0.03, 0.08) if dataset == "rosendahl" else rng.uniform(0.01, 0.04)
    fine = 0.02 * _make_noise(rng, 3) + 0.02 * _make_noise(rng, 7)
    melanin += sun_damage * _make_clouds(rng, 56) + fine
    blood += rng.uniform(0.01, 0.03) * _make_clouds(rng, 120) - fine
    veil, white = np.clip(veil, 0, 0.9), np.clip(white, 0, 0.9)
    planes = []
    for k in range(3):  # plane by plane is twice as fast as all three at once
        plane = float(skin[k]) * cv2.exp(-(MELANIN[k] * melanin + BLOOD[k] * blood))
        plane += veil * (VEIL_COLOUR[k] - plane)
        planes.append(plane + white * (WHITE_COLOUR[k] - plane))
    return _draw_hairs(np.clip(cv2.merge(planes), 0, 1), rng)


def _draw_hairs(patch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw no, few or many curved hairs over a patch, dark or fair."""
    count = int(rng.choice([0, 2, 6, 18], p=[0.5, 0.25, 0.17, 0.08]))
    if not count:
        return patch
    colour = np.float32([0.16, 0.11, 0.09] if rng.random() < 0.75 else [0.62, 0.45, 0.30])
    lines = np.zeros((SIDE, SIDE), np.uint8)
    along = rng.uniform(0, np.pi)
    steps = np.linspace(-0.5, 0.5, 24)
    for _ in range(count):
        course = along + rng.normal(0, 0.5) + rng.normal(0, 0.8) * steps
        walk = np.cumsum(np.c_[np.cos(course), np.sin(course)], axis=0) * rng.uniform(6, 24)
        path = np.int32((rng.uniform(0, SIDE, 2) + walk - walk.mean(axis=0)) * 16)
        cv2.polylines(lines, [path], False, 255, int(rng.integers(1, 3)), cv2.LINE_AA, 4)
    opacity = cv2.GaussianBlur(lines, (0, 0), 0.7).astype(np.float32)[..., None] / 300
    return patch + opacity * (colour - patch)


def _photograph(patch: np.ndarray, dataset: str, rng: np.random.Generator) -> np.ndarray:
    """Return one view of a patch, uint8 (450, 600, 3): turned, shifted, lit, slightly blurred."""
    turn = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), rng.normal(0, 25), rng.uniform(0.88, 1.15))
    turn[:, 2] += np.array([WIDTH - SIDE, HEIGHT - SIDE]) / 2 + rng.normal(0, 14, 2)
    view = cv2.warpAffine(
        patch, turn, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    if rng.random() < {"rosendahl": 0.35, "vidir_modern": 0.25}.get(dataset, 0.0):
        _draw_ruler(view, rng)
    view = cv2.GaussianBlur(view, (0, 0), rng.uniform(0.4, 1.1))
    view *= _make_light(dataset, rng)[..., None] * np.float32(np.exp(rng.normal(0, 0.012, 3)))
    view += 0.012 * rng.standard_normal((HEIGHT, WIDTH, 1), dtype=np.float32)
    return (np.clip(view, 0, 1) * 255).astype(np.uint8)


def _make_light(dataset: str, rng: np.random.Generator) -> np.ndarray:
    """Return the brightness over the image, float32 (450, 600), sometimes dark at the corners."""
    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j].astype(np.float32)
    tilt = rng.normal(0, 0.04, 2)
    light = np.float32(np.exp(rng.normal(0, 0.03))) * (1 + tilt[0] * x + tilt[1] * y)
    distance = np.hypot(x, 0.75 * y)
    light -= rng.uniform(0.0, 0.12) * distance**2
    if rng.random() < {"vidir_modern": 0.15, "rosendahl": 0.1}.get(dataset, 0.02):
        light *= _rise(rng.uniform(0.95, 1.2) - distance, rng.uniform(0.02, 0.06))
    return light.astype(np.float32)


def _draw_ruler(view: np.ndarray, rng: np.random.Generator) -> None:
    """Draw the scale of the dermatoscope along an edge of a view, in place."""
    across = rng.integers(20, 32)
    lower = rng.random() < 0.5
    for k, at in enumerate(range(int(rng.integers(330, 480)) if lower else 60, 600, across)):
        size = 22 if k % 5 == 0 else 12
        if lower:
            ends = (at, HEIGHT - 6), (at + 4, HEIGHT - 6 - size)
        elif at < HEIGHT - 40:
            ends = (8, at), (8 + size, at)
        else:
            break
        cv2.line(view, *ends, (0.15, 0.15, 0.17), 2, cv2.LINE_AA)
