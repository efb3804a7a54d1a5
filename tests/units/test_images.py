"""What load_images and read_image make of every kind of file, and that no half cache is read."""

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from helpers.data import images as module
from helpers.data.files import InputError
from helpers.data.images import load_images, read_image
from helpers.data.reading import read_dataset

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(autouse=True)
def keep_the_cache_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("SKIN_CACHE_DIR", str(tmp_path / "cache"))


def draw_pixels(height=45, width=60, seed=0):
    """A smooth RGB picture in which no two corners, sides or channels are alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def draw_folder(folder, count=6, **options):
    """Files and their table; image k differs from all others."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"ISIC_{k:07d}.jpg" for k in range(count)]
    for k, path in enumerate(paths):
        Image.fromarray(draw_pixels(seed=k, **options)).save(path, quality=95)
    return pd.DataFrame({"image_id": [p.stem for p in paths], "path": [str(p) for p in paths]})


def measure_difference(one, two):
    assert one.shape == two.shape and one.dtype == two.dtype == np.uint8
    return np.abs(one.astype(int) - two.astype(int)).mean()


GREY = draw_pixels()[..., 0]
RGBA = np.dstack([draw_pixels(), draw_pixels(seed=1)[..., 0]])
PALETTE = Image.fromarray(draw_pixels()).quantize(16)
MODES = {
    "L": (Image.fromarray(GREY), GREY),
    "LA": (Image.fromarray(RGBA[..., 2:], "LA"), RGBA[..., 2]),
    "1": (Image.fromarray(GREY).convert("1", dither=0), np.where(GREY >= 128, 255, 0)),
    "RGBA": (Image.fromarray(RGBA), RGBA[..., :3]),
    "P": (PALETTE, np.asarray(PALETTE.convert("RGB"))),
    "16-bit": (Image.fromarray(GREY.astype(np.uint16) * 256 + 255 - GREY), GREY),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_modes(tmp_path, mode, suffix):
    image, expected = MODES[mode]
    more = {"transparency": bytes([0, 128])} if (mode, suffix) == ("P", "png") else {}
    image.save(tmp_path / f"a.{suffix}", **more)
    if expected.ndim == 2:
        expected = np.repeat(expected[..., None], 3, axis=2)
    assert np.array_equal(read_image(tmp_path / f"a.{suffix}"), expected)


def test_16_bit_colour(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), draw_pixels()[..., ::-1].astype(np.uint16) * 256 + 255)
    assert np.array_equal(read_image(tmp_path / "a.png"), draw_pixels())


@pytest.mark.parametrize(
    "kind", ["JPEG RGB", "JPEG L", "JPEG CMYK", "MPO RGB", "BMP L", "WEBP RGB"]
)
def test_formats(tmp_path, kind):
    form, mode = kind.split()
    image, more = Image.fromarray(draw_pixels()).convert(mode), [Image.fromarray(GREY)]
    options = {"save_all": True, "append_images": more} if form == "MPO" else {}
    image.save(tmp_path / "a.jpg", form, quality=95, lossless=True, **options)
    assert Image.open(tmp_path / "a.jpg").format == form
    difference = measure_difference(read_image(tmp_path / "a.jpg"), np.array(image.convert("RGB")))
    assert difference <= (0 if form in ("BMP", "WEBP") else 2)


@pytest.mark.parametrize(("old", "new"), [(b"\0\x3f\0", b"\0\x3e\0"), (b"JFIF\0\1", b"JFIF\0\2")])
def test_harmless_oddities_of_a_writer(tmp_path, old, new):
    path = Path(draw_folder(tmp_path, 1)["path"][0])
    expected = read_image(path)
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    assert np.array_equal(read_image(path), expected)


def turn(pixels, orientation):
    """As Exif 2.32 says where the first row and column of the file lie in the picture."""
    pixels = pixels.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else pixels
    pixels = pixels[::-1] if orientation in (3, 4, 7, 8) else pixels
    return np.array(pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "16.png", "16.tif"])
def test_exif_orientation(tmp_path, orientation, suffix):
    """Of noise, so that a sideways JPEG that is decoded too small shows."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 320, 3), dtype=np.uint8)
    path, upright, exif = tmp_path / f"a.{suffix}", turn(pixels, orientation), Image.Exif()
    exif[0x0112] = orientation
    if suffix.startswith("16"):
        pixels = pixels[..., 0].astype(np.uint16) * 256
        upright = np.repeat(upright[..., :1], 3, axis=2)
    image = Image.fromarray(pixels)
    image.save(path, exif=exif, quality=100, subsampling=0, lossless=True)
    assert measure_difference(read_image(path), upright) < 1
    small = np.asarray(Image.fromarray(upright).resize((20, 4), Image.BOX))
    assert measure_difference(read_image(path, (4, 20)), small) < 2


@pytest.mark.parametrize("size", [(75, 100), (7, 100), (300, 20), (1, 1)])
def test_shrinking_averages_areas(tmp_path, size):
    noise = np.random.default_rng(0).integers(0, 256, (450, 600, 3), dtype=np.uint8)
    Image.fromarray(draw_pixels(450, 600) // 2 + noise // 2).save(tmp_path / "a.jpg", quality=95)
    expected = Image.open(tmp_path / "a.jpg").resize(size[::-1], Image.BOX)
    # Pillow's box takes whole pixels, OpenCV fractions: they part where the ratio is near 1, as
    # it is at (75, 100) after decoding to a quarter. Noise is the worst case for both.
    limit = 4 if size == (75, 100) else 1.5
    assert measure_difference(read_image(tmp_path / "a.jpg", size), np.asarray(expected)) < limit


def test_larger_image_goes_by_way_of_a_size_and_a_smaller_one_does_not(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    table = pd.DataFrame({"image_id": ["a"], "path": [str(tmp_path / "a.png")]})
    direct = load_images(table, (15, 20))[0]
    by_way = module.resize_pixels(module.resize_pixels(noise, (18, 27)), (15, 20))
    assert np.array_equal(load_images(table, (15, 20), (18, 27))[0], by_way)
    assert not np.array_equal(by_way, direct)
    assert np.array_equal(load_images(table, (15, 20), (60, 80))[0], direct)
    Image.fromarray(noise).save(tmp_path / "a.jpg", quality=100)
    assert np.array_equal(*(read_image(tmp_path / "a.jpg", (6, 8), v) for v in (None, (60, 80))))
    Image.new("L", (70, 90)).save(tmp_path / "b.png")
    assert module.measure_files([tmp_path / "a.png", tmp_path / "b.png"]) == (90, 80)


def test_enlarging_is_smooth_also_while_the_other_side_shrinks(tmp_path):
    Image.fromarray(np.uint8([[[0] * 3, [200] * 3]] * 2)).save(tmp_path / "a.png")
    row = read_image(tmp_path / "a.png", (9, 10))[4, :, 0].astype(int)
    assert row[0] == 0 and row[-1] == 200 and np.diff(row).min() >= 0 and np.diff(row).max() <= 45
    Image.fromarray(np.tile(np.uint8([[[200] * 3, [0] * 3]]), (10, 300, 1))).save(
        tmp_path / "b.png"
    )
    assert (read_image(tmp_path / "b.png", (20, 60)) == 100).all()


def test_rows_are_in_the_order_of_the_table(tmp_path, monkeypatch):
    monkeypatch.setenv("SKIN_CACHE_DIR", str(tmp_path / "new" / "cache"))
    table = draw_folder(tmp_path / "data", count=60).sample(frac=1, random_state=1)
    pixels = load_images(table, (15, 20))
    assert pixels.shape == (60, 15, 20, 3) and pixels.dtype == np.uint8
    assert isinstance(pixels, np.memmap) and not pixels.flags.writeable
    for row, path in zip(pixels, table["path"], strict=True):
        assert np.array_equal(row, read_image(path, (15, 20)))
    monkeypatch.setattr(module, "read_image", None)
    assert np.array_equal(load_images(table, (15, 20)), pixels)  # nothing is decoded again
    assert load_images(table[:0], (15, 20)).shape == (0, 15, 20, 3)


@pytest.mark.parametrize("change", ["size", "bytes", "time", "order", "ids", "fewer"])
def test_whatever_the_pixels_depend_on_makes_a_new_cache(tmp_path, change):
    table, size = draw_folder(tmp_path / "data"), (15, 20)
    path, stat = Path(table["path"][2]), Path(table["path"][2]).stat()
    load_images(table, size)
    if change == "size":
        size = (20, 15)
    elif change == "bytes":
        path.write_bytes(path.read_bytes() + b"\0")
        os.utime(path, ns=(0, stat.st_mtime_ns))
    elif change == "time":
        os.utime(path, ns=(0, stat.st_mtime_ns + 1000))
    elif change == "ids":
        table["image_id"] += "x"
    else:
        table = table[::-1] if change == "order" else table[:5]
    pixels = load_images(table, size)
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2
    assert np.array_equal(pixels[0], read_image(table["path"].iloc[0], size))


@pytest.mark.parametrize("damage", [b"", b"half", np.zeros((6, 20, 15, 3), np.uint8), [{}]])
def test_damaged_cache_is_made_again(tmp_path, damage):
    table = draw_folder(tmp_path / "data")
    expected = np.array(load_images(table, (15, 20)))
    cache = next((tmp_path / "cache").glob("*.npy"))
    content = cache.read_bytes()
    cache.unlink()  # the mapping of the first call lives on
    if isinstance(damage, bytes):
        cache.write_bytes(damage and content[:-1])
    else:
        np.save(cache, damage)
    assert np.array_equal(load_images(table, (15, 20)), expected)


SLOW_LOAD = """
import os, sys, time
import pandas as pd
from helpers.data import images

read_image = images.read_image
images.read_image = lambda *arguments: time.sleep(0.01) or read_image(*arguments)
os.environ["SKIN_CACHE_DIR"] = sys.argv[2]
print(images.load_images(pd.read_csv(sys.argv[1]), (60, 80)).astype(int).sum())
"""


def test_of_two_processes_one_is_killed_while_it_writes(tmp_path):
    table = draw_folder(tmp_path / "data", count=200)
    table.to_csv(tmp_path / "table.csv")
    code = [sys.executable, "-c", SLOW_LOAD, tmp_path / "table.csv", tmp_path / "cache"]
    processes = [subprocess.Popen(code, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    parts, end = [], time.monotonic() + 120
    while sum(part.stat().st_size for part in parts) < 100_000:
        assert time.monotonic() < end
        time.sleep(0.01)
        parts = list(tmp_path.glob("cache/.*.partial.images-*"))
    killed, other = sorted(processes, key=lambda p: f".{p.pid}." not in parts[0].name)
    killed.kill()
    assert not list(tmp_path.glob("cache/images-*.npy"))
    total = sum(int(read_image(path, (60, 80)).sum()) for path in table["path"])
    assert not killed.communicate()[0] and int(other.communicate(timeout=120)[0]) == total
    assert len(list(tmp_path.glob("cache/*images-*"))) == 1


def test_threads_at_the_same_time_decode_once_and_agree(tmp_path, monkeypatch):
    table, decode, decoded = draw_folder(tmp_path / "data", 30), module.decode_images, []
    monkeypatch.setattr(module, "decode_images", lambda *args: decoded.append(1) or decode(*args))
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(load_images, table, (15, 20)) for _ in range(4)]
    assert all(np.array_equal(call.result(), calls[0].result()) for call in calls)
    assert len(decoded) == 1


@pytest.mark.parametrize("fault", ["a file in its place", "too small a disk"])
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, fault):
    resource = pytest.importorskip("resource")
    table, limits = draw_folder(tmp_path / "data"), resource.getrlimit(resource.RLIMIT_FSIZE)
    if fault == "too small a disk":
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    else:
        (tmp_path / "cache").write_text("")
    try:
        with pytest.warns(UserWarning, match=r"no cache in .*cache .*5,400 bytes.*SKIN_CACHE_DIR"):
            pixels = load_images(table, (15, 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not pixels.flags.writeable and not list(tmp_path.glob("cache/*images-*"))
    assert np.array_equal(pixels, np.stack([read_image(p, (15, 20)) for p in table["path"]]))


PNG = cv2.imencode(".png", draw_pixels())[1].tobytes()
DEEP = cv2.imencode(".tiff", np.ones((5, 5), np.float32))[1].tobytes()
FAULTS = {  # what becomes of a JPEG's bytes, and what is said of it
    "empty": (lambda data: b"", "empty"),
    "text": (lambda data: b"<html>403 Forbidden</html>", "not an image"),
    "header only": (lambda data: data[:20], ""),
    "half": (lambda data: data[:2000], "end of JPEG"),
    "half with an end": (lambda data: data[:2000] + b"\xff\xd9", "end of"),
    "hole": (lambda data: data[:2000] + bytes(200) + data[2200:], "Corrupt JPEG"),
    "png half": (lambda data: PNG[:2000], ""),
    "png hole": (lambda data: PNG[:2000] + bytes(200) + PNG[2200:], ""),
    "bomb": (lambda data: data.replace(b"\x00\x5a\x00\x78", b"\xff\xff\xff\xff", 1), ""),
    "32-bit": (lambda data: DEEP, "32-bit"),
    "gone": (None, "No such file"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_image_is_named(tmp_path, fault, capfd):
    table = draw_folder(tmp_path / "data", height=90, width=120)
    path, (spoil, words) = Path(table["path"][1]), FAULTS[fault]
    content = path.read_bytes()
    path.unlink()
    if spoil:
        path.write_bytes(spoil(content))
    for call in (read_image, lambda path: read_image(path, (15, 20))):
        with pytest.raises(InputError, match=f"^{re.escape(str(path))}: .*{words}") as caught:
            call(path)
    with pytest.raises(InputError, match=f"1 of 6 images.*{re.escape(str(caught.value))}"):
        load_images(table, (15, 20))
    assert "0x" not in str(caught.value) and not list(tmp_path.glob("cache/*images-*"))
    assert capfd.readouterr().err == ""  # no library grumbles by itself


def test_all_bad_images_are_named_together(tmp_path):
    table, bad = draw_folder(tmp_path / "data", count=40), [0, 7, 39]
    for path in table["path"][bad]:
        Path(path).write_bytes(b"")
    with pytest.raises(InputError, match="3 of 40 images") as caught:
        load_images(table, (15, 20))
    assert all(path in str(caught.value) for path in table["path"][bad])


@pytest.mark.skipif(not SHARED.is_dir(), reason="no real data in ../shared/data")
def test_real_images_are_near_pillows(tmp_path):
    table = read_dataset(SHARED / "ham10000-original")
    assert len(table) == 188
    table = table[::6]
    pixels = load_images(table, (75, 100))
    expected = np.stack([Image.open(path).resize((100, 75), Image.BOX) for path in table["path"]])
    assert measure_difference(pixels, expected) < 1.5
