"""Outlines in XML and masks in the formats of published data sets."""

import numpy as np
import pytest
from PIL import Image

from fedfms.preprocessing.annotations import (
    Outline,
    fill,
    merge_instances,
    read_marked,
    read_outlines,
    read_values,
)
from fedfms.preprocessing.images import Fault, check_size
from tests.preprocessing.make import CANARY

SQUARE = ((2, 3), (6, 3), (6, 8), (2, 8))


def aperio(*annotations):
    """ImageScope's XML of `(class, [(points, attributes)])`."""
    text = '<?xml version="1.0"?><Annotations MicronsPerPixel="0.25">'
    for kind, regions in annotations:
        text += f'<Annotation Name=""><Attributes><Attribute Name="{kind}"/></Attributes><Regions>'
        for points, attributes in regions:
            text += f"<Region {attributes}><Vertices>"
            text += "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in points) + "</Vertices></Region>"
        text += "</Regions></Annotation>"
    return text + "</Annotations>"


def drawn(shapes):
    """The XML of the drawing program."""
    layers = f"<Layers><Layer><Shapes>{shapes}</Shapes></Layer></Layers>"
    return f'\ufeff<!--Document--><Document FileVersion="1.0">{layers}</Document>'


def polygon(points, kind="Polygon", rotation="0"):
    """One shape in the XML of the drawing program."""
    inner = "".join(f'<Point X="{x}" Y="{y}" />' for x, y in points)
    return f'<Shape Type="{kind}"><Data Rotation="{rotation}"><Points>{inner}</Points></Data></Shape>'


def _write(tmp_path, text):
    path = tmp_path / f"{CANARY}.xml"
    path.write_text(text, encoding="utf-8")
    return path


def _mask(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def test_a_square_of_whole_pixels_is_filled_exactly():
    label = fill([Outline(np.array(SQUARE, float))], 10, 12)
    right = np.zeros((10, 12), np.uint8)
    right[3:8, 2:6] = 1  # rows are y
    assert (label == right).all()
    assert label.dtype == np.uint8


def test_the_line_of_an_outline_adds_no_area():
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    points = np.column_stack((30.3 + 8 * np.cos(angle), 25.7 + 8 * np.sin(angle)))
    assert fill([Outline(points)], 50, 60).sum() == pytest.approx(np.pi * 64, rel=0.02)


def test_parts_outside_the_image_are_cut_off():
    label = fill([Outline(np.array([(-4, -4), (4, -4), (-4, 4)], float))], 5, 5)
    whole = fill([Outline(np.array([(1, 1), (9, 1), (1, 9)], float))], 10, 10)
    assert (label == whole[5:, 5:]).all()
    assert not label.any()  # its long side runs through the corner
    right = fill([Outline(np.array([(3, 1), (99, 1), (99, 2), (3, 2)], float))], 5, 5)
    assert right.sum() == 2


def test_holes_are_background_in_any_order():
    hole, square = (
        Outline(np.array(SQUARE, float), hole=True),
        Outline(np.array([(0, 0), (9, 0), (9, 9), (0, 9)], float)),
    )
    assert fill([hole, square], 9, 9).sum() == 81 - 20
    assert fill([square, square], 9, 9).sum() == 81  # overlaps are one region


def test_no_outlines_give_an_empty_label_and_outlines_elsewhere_are_a_fault():
    assert not fill([], 4, 4).any()
    with pytest.raises(Fault, match="outside the image"):
        fill([Outline(np.array(SQUARE, float) + 100)], 10, 10)


def test_aperio(tmp_path):
    text = aperio(
        ("Epithelial", [(SQUARE, 'NegativeROA="0"'), (((0, 0), (1, 1)), "")]),
        ("Ambiguous", [(SQUARE, 'NegativeROA="1"')]),
    )
    found = read_outlines(_write(tmp_path, text))
    assert [(o.kind, o.hole) for o in found] == [("Epithelial", False), ("Ambiguous", True)]  # a line has no area
    assert found[0].points.tolist() == [list(map(float, p)) for p in SQUARE]


def test_drawn_polygons_and_ovals(tmp_path):
    oval = '<Shape Type="Oval"><Data Rotation="90"><Extent X="10" Y="18" Width="20" Height="4" /></Data></Shape>'
    text = drawn(polygon(SQUARE) + polygon(SQUARE, "SmoothPolygon") + oval)
    one, two, three = read_outlines(_write(tmp_path, text))
    assert one.points.tolist() == two.points.tolist() == [list(map(float, p)) for p in SQUARE]
    assert three.points.min(axis=0) == pytest.approx((18, 10))  # upright after a rotation by 90 degrees about (20, 20)
    assert three.points.max(axis=0) == pytest.approx((22, 30))


def test_ovals_are_rotated_clockwise(tmp_path):
    """As in the only real oval: down to the right by 45 degrees."""
    oval = '<Shape Type="Oval"><Data Rotation="45"><Extent X="10" Y="18" Width="20" Height="4" /></Data></Shape>'
    label = fill(read_outlines(_write(tmp_path, drawn(oval))), 40, 40)
    assert label[25, 25]
    assert not label[25, 15]
    assert label.sum() == pytest.approx(np.pi * 10 * 2, rel=0.1)


BOMB = f"""<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "{CANARY}"><!ENTITY b "&a;&a;&a;">]>
<Annotations><Annotation Name="&b;"/></Annotations>"""
EXTERNAL = '<!DOCTYPE a SYSTEM "file:///etc/passwd"><Annotations/>'
BAD_XML = {
    "entities": (BOMB, "document type"),
    "external": (EXTERNAL, "document type"),
    "cut short": (aperio(("x", [(SQUARE, "")]))[:-30], "cannot be read"),
    "empty": ("", "cannot be read"),
    "no number": (aperio((CANARY, [(((CANARY, 1), (2, 2), (3, 1)), "")])), "cannot be read"),
    "no coordinate": (f"<Annotations><Annotation><Region><Vertex {CANARY}='1'/></Region></Annotation></Annotations>",
                      "cannot be read"),
    "NaN": (aperio(("x", [(((float("nan"), 1), (2, 2), (3, 1)), "")])), "finite"),
    "infinite": (aperio(("x", [(((1e999, 1), (2, 2), (3, 1)), "")])), "finite"),
    "another root": (f"<{CANARY}/>", "unknown kind"),
    "another shape": (drawn(polygon(SQUARE, CANARY)), "neither polygon nor oval"),
    "a turned polygon": (drawn(polygon(SQUARE, rotation="30")), "rotated"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_XML)
def test_bad_xml_is_a_fault_without_content_of_the_file(tmp_path, case):
    text, message = BAD_XML[case]
    with pytest.raises(Fault, match=message) as caught:
        read_outlines(_write(tmp_path, text))
    assert CANARY not in str(caught.value)


def test_missing_files_are_faults(tmp_path):
    for read in (read_outlines, read_values, read_marked):
        with pytest.raises(Fault, match="missing") as caught:
            read(tmp_path / f"{CANARY}.png")
        assert CANARY not in str(caught.value)


def test_stored_values_are_read(tmp_path):
    stored = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    palette = Image.fromarray(stored)
    palette.putpalette([9, 9, 9, 9, 9, 9, 0, 200, 0] + [0] * 759)  # two indices of one colour
    palette.save(tmp_path / "p.png")
    paths = [
        tmp_path / "p.png",
        _mask(tmp_path / "l.png", stored),
        _mask(tmp_path / "rgb.png", np.repeat(stored[..., None], 3, 2)),
        _mask(tmp_path / "rgba.png", np.dstack([stored] * 3 + [np.full_like(stored, 255)])),
        _mask(tmp_path / "l16.png", stored.astype(np.uint16)),
        _mask(tmp_path / "f.tif", stored.astype(np.float32)),
    ]
    for path in paths:
        assert read_values(path).tolist() == stored.tolist(), path.name
    bilevel = Image.fromarray(stored > 0)
    bilevel.save(tmp_path / "1.png")
    assert read_marked(tmp_path / "1.png").tolist() == (stored > 0).tolist()
    assert read_values(_mask(tmp_path / "big.png", stored.astype(np.uint16) * 300)).max() == 600  # instance numbers


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("c.png", np.dstack([np.eye(4, dtype=np.uint8) * v for v in (9, 0, 0)]), "coloured"),
        ("half.tif", np.full((4, 4), 0.5, np.float32), "whole numbers"),
        ("nan.tif", np.full((4, 4), np.nan, np.float32), "whole numbers"),
        ("below.tif", np.full((4, 4), -1, np.float32), "whole numbers"),
    ],
)
def test_masks_without_known_values_are_faults(tmp_path, name, array, message):
    with pytest.raises(Fault, match=message):
        read_values(_mask(tmp_path / name, array))


def test_several_pages_and_damage_are_faults(tmp_path):
    page = Image.new("L", (4, 4))
    page.save(tmp_path / "pages.tif", save_all=True, append_images=[page])
    with pytest.raises(Fault, match="several pages"):
        read_values(tmp_path / "pages.tif")
    (tmp_path / f"{CANARY}.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(Fault, match="cannot be read") as caught:
        read_values(tmp_path / f"{CANARY}.png")
    assert CANARY not in str(caught.value)


def test_jpeg_noise_marks_no_pixel(tmp_path):
    mask = np.zeros((32, 32), np.uint8)
    mask[8:20, 8:20] = 255
    path = _mask(tmp_path / "m.jpg", mask, quality=50)
    assert ((read_values(path) > 0) & (mask == 0)).any()  # there is noise
    assert (read_marked(path) == (mask > 0)).all()


def test_instances_are_merged(tmp_path):
    masks = [np.zeros((6, 7), np.uint8) for _ in range(3)]
    masks[0][:2], masks[1][1:4], masks[2][5, 5] = 255, 1, 7
    paths = [_mask(tmp_path / f"{i}.png", m) for i, m in enumerate(masks)]
    merged = merge_instances(paths)
    assert merged.tolist() == (sum(m.astype(int) for m in masks) > 0).astype(int).tolist()
    with pytest.raises(Fault, match="different sizes"):
        merge_instances([*paths, _mask(tmp_path / "t.png", masks[0].T.copy())])
    with pytest.raises(Fault, match="no mask"):
        merge_instances([])


def test_different_sizes_are_a_fault():
    check_size(np.zeros((3, 4, 3)), np.zeros((3, 4)))
    with pytest.raises(Fault, match="image 4 x 3 px and mask 3 x 4 px differ"):
        check_size(np.zeros((3, 4, 3)), np.zeros((4, 3)))
