"""The page of `make app` in a real browser: two users, good and bad files, a telephone's width."""

import base64
import io
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from helpers.data import drawing

ROOT = Path(__file__).parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"no browser: {', '.join(BROWSERS)}")
WAIT_MS = 240_000  # on a busy machine


@pytest.fixture(scope="module")
def uploads(tmp_path_factory):
    """What the server keeps of the images while it answers for them."""
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def address(uploads):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    notebook = ROOT / "notebooks/06_predict_images.ipynb"
    command = [sys.executable, "-m", "voila", notebook, "--no-browser", f"--port={port}"]
    environment = {**os.environ, "TMPDIR": str(uploads)}
    with subprocess.Popen(command, cwd=ROOT, env=environment) as server:
        for _ in range(600):
            with socket.socket() as probe:
                if not probe.connect_ex(("127.0.0.1", port)):
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/"
        server.terminate()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


def make_file(name, content):
    return {"name": name, "mimeType": "image/png", "buffer": content}


def draw_png(dx, noise=0):
    """Draw a lesion; noise at the end of the file makes it as large as a photograph."""
    pixels = drawing.draw_lesion(dx, np.random.default_rng(0))[0]
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "PNG")
    return written.getvalue() + os.urandom(noise)


def choose(page, *files):
    """Upload files and wait for their answers."""
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose images").click()
    chooser.value.set_files(files)


def read_csv(page):
    link = page.get_by_text("Download the answers")
    link.wait_for(timeout=WAIT_MS)
    return pd.read_csv(io.BytesIO(base64.b64decode(link.get_attribute("href").split(",")[1])))


def test_two_users_get_their_own_answers(address, browser, uploads):
    pages = [browser.new_page(viewport={"width": width, "height": 800}) for width in (1200, 375)]
    for page in pages:
        page.goto(address, timeout=WAIT_MS)
    for page in pages:
        page.get_by_role("button", name="Choose images").wait_for(timeout=WAIT_MS)
        text = page.inner_text("body")
        assert text.count("This is not a medical device.") == 1
        assert "Set up" not in text, "cells for readers of the notebook are left out"
    large = [make_file(f"large{i}.png", draw_png("nv", 10**7)) for i in range(2)]  # above 10 MB
    choose(pages[0], make_file("bad.png", b"no image"), *large)
    choose(pages[1], make_file("only.png", draw_png("mel")))
    first, second = map(read_csv, pages)
    assert first["image"].tolist() == [f"./{name}.png" for name in ("bad", "large0", "large1")]
    assert first["problem"].notna().tolist() == [True, False, False]
    assert second["image"].str.endswith("only.png").tolist() == [True]
    sums = [table.filter(like="p_").sum(axis=1).iloc[-1] for table in (first, second)]
    assert sums == pytest.approx([1, 1], abs=1e-3)
    assert "Not answered: not an image" in pages[0].inner_text("body")
    for page in pages:
        assert page.get_by_text("melanocytic nevi").count()
        assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    assert not list(uploads.rglob("*.png")), "uploads are deleted once they are answered"
    choose(pages[0], make_file("again.png", draw_png("bcc")))
    pages[0].get_by_text("again.png").first.wait_for(timeout=WAIT_MS)
    assert "large0.png" not in pages[0].inner_text("body")
