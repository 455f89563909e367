"""The page in a real browser: only its own script runs. Skipped without Chromium."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from fedfms.reporting.tables import write_tables
from tests.reporting.tables.make import fill, put, result

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on this machine"),
]
EVIL = "<img src=x onerror=document.title='ran'>"
EVIL_SITE = "<script>document.title='ran'<img>"  # a site's name has no blanks and no separators


def browse(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page in a headless browser with a new profile."""
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    profile = f"--user-data-dir={page.parent / 'profile'}"
    return subprocess.run(
        [str(BROWSER), *flags, profile, *options, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def clicked(page: Path, clicks: str) -> str:
    """The page after its script and then `clicks` have run, in a copy without the content security policy."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    copy = page.with_name("clicked.html")
    copy.write_text(text.replace("</body>", f"<script>{clicks}</script></body>"), encoding="utf-8")
    return browse(copy, "--dump-dom").stdout


def test_the_script_runs_without_console_messages(tmp_path: Path) -> None:
    write_tables(fill(tmp_path), "fedfms table")
    done = browse(tmp_path / "index.html", "--dump-dom")
    assert "CONSOLE" not in done.stderr
    table = done.stdout[done.stdout.index("<table") : done.stdout.index("</table>")]
    assert table.count("<button") == 7
    assert done.stdout.rstrip().endswith("</html>")


def test_a_click_sorts_and_another_reverses_the_order(tmp_path: Path) -> None:
    write_tables(fill(tmp_path, without=[("fedunet", seed, "HK") for seed in (0, 1)]), "fedfms table")

    clicks = """
        const heads = document.querySelectorAll('th button'), orders = [];
        for (const column of [1, 1, 2, 2, 0, 0]) {
          heads[column].click();
          orders.push([...document.querySelector('tbody').rows].map(row => row.cells[0].textContent).join(' '));
        }
        document.title = orders.join(', ');
    """
    title = re.search(r"<title>(.*?)</title>", clicked(tmp_path / "index.html", clicks))
    assert title is not None
    assert title[1].split(", ") == [
        "fedmsa msa fedunet", "fedunet msa fedmsa",
        "fedmsa msa fedunet", "msa fedmsa fedunet",  # fedunet has no score at HK: at the bottom in both orders
        "fedmsa fedunet msa", "msa fedunet fedmsa",
    ]  # fmt: skip


def test_a_name_with_markup_does_not_run(tmp_path: Path) -> None:
    content = result("fedmsa", 0, None, sites=(EVIL_SITE, "HK"), title="plain", structures=(EVIL, "b"))
    content["machine"] = {EVIL: EVIL}
    put(tmp_path, content)
    write_tables(tmp_path, EVIL)
    dom = browse(tmp_path / "index.html", "--dump-dom").stdout
    assert "<title>plain</title>" in dom
    assert "<img" not in dom


@pytest.mark.parametrize("width_px", [390, 1200])
def test_the_page_is_no_wider_than_the_screen(tmp_path: Path, width_px: int) -> None:
    """Wide tables scroll inside their frames. A frame has a phone's width, since a window cannot be that narrow."""
    write_tables(fill(tmp_path), "fedfms table")
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"<!DOCTYPE html><iframe id=f src=index.html width={width_px} height=800></iframe><script>f.onload = () => "
        "{ const page = f.contentDocument.documentElement; document.title = page.scrollWidth + ' of ' + "
        "page.clientWidth; }</script>"
    )
    dom = browse(frame, "--dump-dom", "--allow-file-access-from-files", f"--window-size={width_px + 100},900").stdout
    match = re.search(r"<title>(\d+) of (\d+)</title>", dom)
    assert match is not None
    assert int(match[1]) <= int(match[2]) <= width_px


def test_a_screenshot_is_not_blank(tmp_path: Path) -> None:
    write_tables(fill(tmp_path), "fedfms table")
    picture = tmp_path / "page.png"
    browse(tmp_path / "index.html", f"--screenshot={picture}", "--window-size=1000,1400")
    with Image.open(picture) as image:
        assert image.size == (1000, 1400)
        assert len(image.convert("RGB").getcolors(1 << 20) or ()) > 20  # ink, lines, tints, and their blends
