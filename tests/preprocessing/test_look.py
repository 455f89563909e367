"""The page of pictures: choice of slices, outlines, texts, and privacy."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from fedfms.data.overlay import COLOURS
from fedfms.preprocessing.look import SiteLook, look_at, make_page, panels, spread
from tests.data.make import make_site
from tests.preprocessing.make import convert_pairs, main

_PNG = re.compile(r'src="data:image/png;base64,([^"]+)"')


def _pictures(page):
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in _PNG.findall(page)]


@pytest.mark.parametrize(
    ("areas", "count", "expected"),
    [
        ([0, 3, 1, 2, 0], 1, [3]),  # the median of 1, 2, 3
        ([4, 1, 2, 3], 1, [2]),  # the lower of two
        ([5, 5, 5], 1, [1]),  # by key
        ([0, 0, 0], 1, [1]),  # all are empty
        ([4, 1, 2, 3], 2, [1, 3]),
        ([0, 3, 1], 5, [2, 1]),
    ],
)
def test_the_median_is_shown(areas, count, expected):
    assert spread(areas, [str(k) for k in range(len(areas))], count) == expected


def test_the_choice_depends_on_pixels_and_not_on_ids(tmp_path):
    make_site(tmp_path / "one")
    make_site(tmp_path / "other", salt="z")
    one, other = (look_at(tmp_path / root / "eyes" / "a", per_site=3) for root in ("one", "other"))
    assert [picture.png for picture in one.pictures] == [picture.png for picture in other.pictures]
    assert len({picture.png for picture in one.pictures}) == 3
    assert one.pictures[0].case != other.pictures[0].case


def test_panels_show_the_image_and_the_outline_where_the_mask_is():
    image, mask = np.full((8, 16), 90, np.uint8), np.zeros((1, 8, 16), bool)
    mask[0, 2:6, 3:12] = True
    pixels = np.asarray(panels(image, mask))
    assert pixels.shape == (160, 640, 3)  # enlarged 20 times, two panels
    assert (pixels[:, :320] == 90).all()
    drawn = pixels[:, 320:]
    where = np.argwhere((drawn == COLOURS[0]).all(-1))
    assert where.min(0).tolist() == [40, 60]
    assert where.max(0).tolist() == [119, 239]
    assert (drawn[:40] == 90).all()
    assert np.asarray(panels(np.zeros((900, 1000, 3), np.uint8), np.zeros((1, 900, 1000), bool))).shape == (432, 960, 3)


def test_counts_and_areas_are_those_of_the_data(tmp_path):
    make_site(tmp_path, n=4)
    look = look_at(tmp_path / "eyes" / "a")
    assert look.counts == {"cases": 4, "slices": 4, "empty": 0, "patients": 4}
    assert look.shares == {"rim": (4, 30 / 240), "cup": (4, 10 / 240)}
    text = make_page([look])
    assert "cases 4, slices 4, empty 0, patients 4" in text
    assert "20 x 12 px" in text
    assert "<td>4</td><td>12.50%</td>" in text
    for colour in COLOURS[:2]:
        assert "rgb({}, {}, {})".format(*colour) in text
        assert (_pictures(text)[0] == colour).all(-1).any()


def test_empty_slices_are_counted_and_not_shown(raw, out, capsys):
    convert_pairs(raw, out)
    look = look_at(out / "d" / "s")
    assert look.counts == {"cases": 6, "slices": 6, "empty": 1, "patients": 6}
    ((count, share),) = look.shares.values()
    assert (count, share) == (5, 24 / 140)


def test_the_page_is_private_and_fetches_nothing(tmp_path, capsys):
    make_site(tmp_path)
    assert main(["look", str(tmp_path), "--per-site", "2"]) == 0
    page = tmp_path / "look.html"
    assert page.stat().st_mode & 0o777 == 0o600
    assert capsys.readouterr().out == f"{page}\n"
    text = page.read_text()
    assert len(_pictures(text)) == 2
    around = _PNG.sub("", text)
    assert not re.search(r"https?:|//|<script|<link|<iframe|src=|href=|url\(|@import", around, re.IGNORECASE)
    assert "default-src 'none'" in text
    assert main(["check", str(tmp_path)]) == 0  # the page is not an unlisted file


def test_a_faulty_site_is_a_line_and_the_others_have_pictures(tmp_path, capsys):
    for site in ("a", "b", "c"):
        make_site(tmp_path, site, n=3)
    image = next((tmp_path / "eyes" / "a" / "labels").iterdir())
    image.write_bytes(image.read_bytes()[:50])
    (tmp_path / "eyes" / "b" / "manifest.json").write_text("{}")
    page = tmp_path / "page.html"
    assert main(["look", str(tmp_path), "--out", str(page)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == ["eyes/a", "eyes/b"]
    assert image.name not in "".join(lines)
    text = page.read_text()
    assert text.count('class="fault"') == 2
    assert len(_pictures(text)) == 1


def test_a_changed_label_is_a_fault(tmp_path):
    make_site(tmp_path, n=2)
    path = next((tmp_path / "eyes" / "a" / "labels").iterdir())
    Image.fromarray(np.zeros((12, 20), np.uint8)).save(path)
    look = look_at(tmp_path / "eyes" / "a")
    assert "has changed since the conversion" in look.fault
    assert look == SiteLook(look.name, look.fault)


def test_names_are_escaped(tmp_path):
    make_site(tmp_path, n=2)
    path = tmp_path / "eyes" / "a" / "manifest.json"
    raw = json.loads(path.read_text())
    raw["structures"][0]["name"] = "<img src=x>"
    raw["cases"][0]["id"] = raw["cases"][1]["id"] = '"><script>'
    raw["cases"][1]["id"] += "2"
    path.write_text(json.dumps(raw))
    look = look_at(tmp_path / "eyes" / "a")
    assert not look.fault
    text = make_page([look, SiteLook("<b>", "<i>")])
    assert "&lt;img src=x&gt;" in text
    assert not re.search("<script|<img src|<b>|<i>", text)


def test_the_page_is_not_written_among_the_files_of_a_site(tmp_path, capsys):
    make_site(tmp_path, n=2)
    assert main(["look", str(tmp_path / "eyes" / "a")]) == 1
    assert "name another place with --out" in capsys.readouterr().err
    assert main(["look", str(tmp_path / "eyes" / "a"), "--out", str(tmp_path / "look.html")]) == 0


def test_help_says_that_the_page_must_stay_at_the_site(capsys):
    with pytest.raises(SystemExit):
        main(["look", "--help"])
    assert "must stay at the site" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit):
        main(["look", ".", "--per-site", "0"])
