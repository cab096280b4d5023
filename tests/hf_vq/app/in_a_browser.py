"""The app in a real browser, on the sample models: `make test-app`. Its name keeps it out of `make test`.

It needs the extra `app`, playwright, and Chromium (`CHROMIUM` says where). What the page shows is left as pictures in
build/app, to be looked at.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from hf_vq.data import load_images
from hf_vq.data.reading import decode_image

SCREENSHOTS = Path(__file__).parents[3] / "build" / "app"
WAIT = 60_000  # milliseconds that a slow machine may take


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`hf-vq app` in a folder and a process of its own."""
    port, folder = free_port(), tmp_path_factory.mktemp("app")
    command = [sys.executable, "-m", "hf_vq", "app", "--port", str(port), "--max_images", "200"]
    log = (folder / "log").open("w+")
    with subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT) as process:
        for _ in range(120):
            if "Running on local URL" in (folder / "log").read_text() or process.poll() is not None:
                break
            time.sleep(0.5)
        assert process.poll() is None, (folder / "log").read_text()
        yield f"http://127.0.0.1:{port}"
        process.terminate()


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A held-out emoji as a picture file."""
    path = tmp_path_factory.mktemp("images") / "emoji.png"
    decode_image(load_images("noto-emoji-32", "test")[5]).resize((256, 256)).save(path)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    with sync_playwright() as playwright:
        path = os.environ.get("CHROMIUM") or shutil.which("chromium")
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        print(f"Chromium {chromium.version}")
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Page]:
    """The app's page, newly opened; it asks no other server for anything."""
    opened = browser.new_page(viewport={"width": 1300, "height": 1450})
    asked: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(address)
    expect(opened.get_by_role("tab", name="Tokens")).to_be_visible(timeout=WAIT)
    yield opened
    opened.close()
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


def keep(page: Page, name: str) -> None:
    """Leaves a picture of the page."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.wait_for_timeout(700)  # until what comes in slowly is all there
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def upload(page: Page, path: Path, where: str = "") -> None:
    """Gives a file to the first place for files of an element."""
    page.locator(f"{where} input[type=file]").first.set_input_files(path)


def shown(page: Page, place: str) -> np.ndarray:
    """The pixels of the image that an element shows, as they came from the server."""
    source = page.locator(f"{place} img").first.get_attribute("src")
    assert source is not None
    return np.asarray(Image.open(io.BytesIO(page.request.get(source).body())).convert("RGB"))


def changed(page: Page, place: str, before: np.ndarray | None = None) -> np.ndarray:
    """The image of an element, as soon as it is there and another one than before."""
    for _ in range(WAIT // 250):
        if page.locator(f"{place} img").count():
            now = shown(page, place)
            if before is None or now.shape != before.shape or not np.array_equal(now, before):
                return now
        page.wait_for_timeout(250)
    raise AssertionError(f"{place} shows no other image after {WAIT // 1000} seconds")


def click_cell(page: Page, row: int, column: int) -> None:
    """Clicks the middle of a cell of the tokens."""
    box = page.locator("#tokens img").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + (column + 0.5) * box["width"] / 8, box["y"] + (row + 0.5) * box["height"] / 8)


def test_an_image_becomes_tokens_that_can_be_swapped(page: Page, emoji: Path) -> None:
    """Upload, click, nearest images, swap, back, use of the codebook."""
    upload(page, emoji)
    tokens = changed(page, "#tokens")
    assert tokens.shape == (512, 512, 3) and page.locator("#slider img").count() >= 2
    keep(page, "tokens")
    click_cell(page, 3, 4)
    about = page.locator("#about textarea, #about input")
    expect(about).to_have_value(re.compile(r"row 4, column 5: code \d+, used [\d,]+ times"), timeout=WAIT)
    expect(page.locator("#nearest img")).to_have_count(6, timeout=WAIT)
    framed = changed(page, "#tokens", tokens)
    keep(page, "cell")

    page.locator("#code input").fill("7")
    page.locator("#swap").click()
    expect(about).to_have_value(re.compile("code 7, used"), timeout=WAIT)
    swapped = changed(page, "#tokens", framed)
    assert np.argwhere((swapped != framed).any(-1)).min(0).tolist() >= [3 * 64, 4 * 64]
    keep(page, "swapped")
    page.locator("#back").click()
    assert np.array_equal(changed(page, "#tokens", swapped), tokens)
    page.locator("#usage").click()
    assert changed(page, "#histogram").shape[1] > 500
    keep(page, "usage")


def test_a_code_that_there_is_not_and_a_swap_without_a_cell_are_told(page: Page, emoji: Path) -> None:
    """In a sentence; the tokens stay."""
    page.locator("#swap").click()
    expect(page.get_by_text("Upload an image and click a cell of its tokens first.")).to_be_visible(timeout=WAIT)
    upload(page, emoji)
    changed(page, "#tokens")
    click_cell(page, 0, 0)
    expect(page.locator("#nearest img")).to_have_count(6, timeout=WAIT)
    page.locator("#code input").fill("5000")
    page.locator("#swap").click()
    expect(page.get_by_text("There is no code 5000")).to_be_visible(timeout=WAIT)


def test_files_that_are_no_images_and_large_ones_are_told(page: Page, emoji: Path, tmp_path: Path) -> None:
    """And the page works on with the next one."""
    (tmp_path / "text.png").write_text("no picture")
    upload(page, tmp_path / "text.png")
    expect(page.get_by_text("not an image that can be read").first).to_be_visible(timeout=WAIT)
    keep(page, "wrong_file")
    (tmp_path / "large.png").write_bytes(emoji.read_bytes() + bytes(25_000_000))
    upload(page, tmp_path / "large.png")
    expect(page.get_by_text(re.compile("exceeds|too large|maximum", re.IGNORECASE)).first).to_be_visible(timeout=WAIT)
    keep(page, "large_file")
    page.reload()
    upload(page, emoji)
    assert changed(page, "#tokens").shape == (512, 512, 3)


def test_images_fill_in_and_a_double_click_is_one(page: Page) -> None:
    """Pictures with gray cells come before the last one; the same seed makes the same images."""
    page.get_by_role("tab", name="Generate").click()
    seen: list[bytes] = []
    page.on("response", lambda answer: seen.append(answer.url.encode()) if "/file=" in answer.url else None)
    page.locator("#generate").dblclick()
    first = changed(page, "#canvas")
    last = first
    for _ in range(40):
        page.wait_for_timeout(250)
        last = shown(page, "#canvas")
    keep(page, "generated")
    gray = [(np.abs(pixels.astype(int) - 128).max(-1) <= 1).mean() for pixels in (first, last)]
    assert gray[0] > 0.3 > 0.1 > gray[1]
    assert len(set(seen)) <= 24  # one run of 24 steps and not two
    page.locator("#generate").click()
    page.wait_for_timeout(500)
    for _ in range(60):
        page.wait_for_timeout(250)
    assert np.array_equal(shown(page, "#canvas"), last)


def test_what_is_painted_is_made_anew(page: Page, emoji: Path) -> None:
    """Nothing painted is told; then a stroke over the middle, and the border stays as it is."""
    page.get_by_role("tab", name="Inpaint").click()
    page.locator("#inpaint").click()
    expect(page.get_by_text("Upload an image first.")).to_be_visible(timeout=WAIT)
    upload(page, emoji, "#editor")
    page.wait_for_timeout(3000)
    page.locator("#inpaint").click()
    expect(page.get_by_text("Paint over what is to be made anew first.")).to_be_visible(timeout=WAIT)
    page.locator("#editor button[aria-label*=rush], #editor button[title*=rush]").first.click()
    box = page.locator("#editor canvas").first.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 30, y)
    page.mouse.down()
    page.mouse.move(x + 30, y, steps=10)
    page.mouse.move(x + 30, y + 20, steps=5)
    page.mouse.up()
    page.wait_for_timeout(1000)
    page.locator("#inpaint").click()
    made = changed(page, "#inpainted")
    keep(page, "inpainted")
    factor = made.shape[0] // 32
    made = made[::factor, ::factor]
    given = np.asarray(Image.open(emoji).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC))
    difference = np.abs(made.astype(int) - given).max(-1)
    assert difference[10:22, 8:24].max() > 20 and difference[:6].max() <= 1 and difference[-6:].max() <= 1


def test_only_this_machine_is_let_in(address: str) -> None:
    """The page listens at 127.0.0.1 and at no other address of the machine."""
    port = int(address.rpartition(":")[2])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing; it tells which address the machine has
        other = probe.getsockname()[0]
    with pytest.raises(OSError):
        socket.create_connection((other, port), timeout=5)
