"""The live view in Chromium, function by function: tools for looking at images, at full resolution."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator

import numpy as np
import pytest
import tifffile
from PIL import Image
from support.peers import chromium
from support.peers.chromium import Tab
from support.processes.deployment import Deployment
from support.processes.pages import ShownPage, page_of

from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.dataplane.metadata import MISSING_PACKETS

pytestmark = [
    pytest.mark.external,
    pytest.mark.usefixtures("browser"),
    chromium.NEEDED,
]

# More than a megapixel: the whole image is reduced to blocks of 2 x 2.
HEIGHT, WIDTH = 1100, 1200


@pytest.fixture(scope="module")
def opened_page(browser: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShownPage]:
    directory = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        deployment = Deployment(
            directory, image_pixel_height=HEIGHT, image_pixel_width=WIDTH, ram_buffer_gb=1
        )
        patch.setenv("STDDAQ_IPC_DIR", str(deployment.ipc_directory))
        try:
            config = DetectorConfig.parse(deployment.config)
            with (
                ImagePublisher(config) as publisher,
                page_of(deployment, publisher, (HEIGHT, WIDTH), directory / "files") as page,
            ):
                yield page
        finally:
            deployment.close()


@pytest.fixture
def page(opened_page: ShownPage) -> ShownPage:
    """Return the page as a new browser opens it, with all of its tools open."""
    tab = opened_page.tab
    tab.reload()
    tab.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    return opened_page


def ramp() -> np.ndarray:
    """Return an image whose pixel at x, y is x + 10 y."""
    return (np.arange(WIDTH) + 10 * np.arange(HEIGHT)[:, None]).astype(np.uint16)


def flat(value: int) -> np.ndarray:
    return np.full((HEIGHT, WIDTH), value, np.uint16)


def cursor_reads(page: ShownPage, text: str) -> None:
    page.tab.wait_for(lambda: text in page.tab.text("#cursor"), f"{text!r} under the cursor")


def is_drawn(tab: Tab, selector: str) -> bool:
    """Return whether a plot is not empty."""
    return tab.evaluate(
        f"(() => {{ const c = document.querySelector('{selector}');"
        " return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v) => v > 0); })()"
    )


@pytest.mark.parametrize(
    ("reducer", "text"),
    [("mean", "104 (mean of 2"), ("max", "200 (maximum of 2"), ("nearest", "200 (one pixel of 2")],
)
def test_reduction_is_chosen(page: ShownPage, reducer: str, text: str) -> None:
    pixels = flat(72)
    pixels[200, 100] = 200
    page.show(pixels)
    page.tab.choose("#reducer", reducer)
    page.point_at(100.5, 200.5)
    page.tab.wait_for(lambda: page.show(pixels) and text in page.tab.text("#cursor"), text)


def test_zoomed_part_is_shown_at_full_resolution_beside_an_overview(page: ShownPage) -> None:
    tab = page.tab
    page.show(ramp())
    assert "shown 1:2" in tab.text("#size")
    middle = page.place_of(WIDTH / 2, HEIGHT / 2)
    tab.press("1")
    for _ in range(3):
        tab.press("+")
    tab.move_to(*middle)
    tab.wait_for(lambda: page.show(ramp()) and "shown 1:2" not in tab.text("#size"), "a part of the image")
    tab.wait_for(lambda: "(" not in tab.text("#cursor"), "an exact value")
    x, y, value = (int(word.strip("xy ,:")) for word in tab.text("#cursor").replace(":", ",").split(","))
    assert (abs(x - WIDTH / 2) < 3, abs(y - HEIGHT / 2) < 3, value) == (True, True, x + 10 * y)
    # The frame of the visible part, in the corner of the overview.
    found = tab.evaluate(
        "(() => { const c = document.getElementById('canvas');"
        " const w = Math.round(c.width / 3), h = Math.round(c.height / 3);"
        " const d = c.getContext('2d').getImageData(c.width - w, c.height - h, w, h).data;"
        " return d.some((v, i) => i % 4 === 0 && v === 255 && d[i + 1] === 210 && d[i + 2] === 77); })()"
    )
    assert found
    tab.press("0")
    tab.wait_for(lambda: page.show(ramp()) and "shown 1:2" in tab.text("#size"), "the whole image")


def test_image_is_zoomed_and_moved_with_mouse_keys_and_fingers(page: ShownPage) -> None:
    tab = page.tab
    page.show(ramp())
    left, top = page.place_of(300.5, 300.5)

    def position() -> tuple[int, int]:
        """Return the pixel under the mouse."""
        tab.move_to(left + 1, top)
        tab.move_to(left, top)
        found = re.match(r"x (\d+), y (\d+)", tab.text("#cursor"))
        return (int(found[1]), int(found[2])) if found else (-1, -1)

    def is_at(x: int, y: int, tolerance: int = 6) -> bool:
        found = position()
        return abs(found[0] - x) < tolerance and abs(found[1] - y) < tolerance

    tab.wait_for(lambda: is_at(300, 300), "the pixel under the mouse")
    # The wheel zooms in on the pixel under the mouse.
    tab.call("Input.dispatchMouseEvent", type="mouseWheel", x=left, y=top, deltaX=0, deltaY=-500)
    tab.wait_for(lambda: "1:" in tab.text("#size") and is_at(300, 300), "the same pixel")
    tab.drag((left, top), (left + 50, top + 30))
    tab.wait_for(lambda: position() < (300, 300) and not is_at(300, 300), "the image that was dragged")
    dragged = position()
    tab.evaluate("document.getElementById('canvas').focus()")
    tab.press("ArrowRight")
    tab.press("ArrowDown")
    tab.wait_for(lambda: position() > dragged, "the image that the arrows moved")
    tab.press("0")
    tab.wait_for(lambda: is_at(300, 300), "the whole image")
    for kind, apart in (("touchStart", 20), ("touchMove", 60), ("touchEnd", 0)):
        fingers = [{"x": left + sign * apart, "y": top, "id": sign + 1} for sign in (-1, 1)] if apart else []
        tab.call("Input.dispatchTouchEvent", type=kind, touchPoints=fingers)
    tab.wait_for(lambda: is_at(300, 300), "the same pixel between the fingers")
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=left + 100, y=top)
    pixels = page.place_of(400.5, 300.5)[0] - page.place_of(300.5, 300.5)[0]
    found = re.match(r"x (\d+)", tab.text("#cursor"))
    assert found is not None
    assert int(found[1]) - 300 < 0.6 * 100 * 100 / pixels
    tab.press("0")


def test_exact_value_of_a_reduced_pixel_is_read_when_the_cursor_rests(page: ShownPage) -> None:
    image_id = page.show(ramp())
    page.point_at(301.5, 200.5)
    expected = f"x 301, y 200 of image {image_id}: 2301"
    page.tab.wait_for(lambda: page.tab.text("#pixel") == expected, "the value of the pixel")


def test_regions_are_measured_at_full_resolution_and_saved(page: ShownPage) -> None:
    tab, pixels = page.tab, ramp()
    page.show(pixels)
    tab.click("#add-box")
    tab.drag(page.place_of(100.5, 200.5), page.place_of(300.5, 400.5))
    x, y, width, height = region_of(tab)
    assert (abs(x - 100) < 3, abs(y - 200) < 3, abs(width - 200) < 5, abs(height - 200) < 5) == (True,) * 4
    part = pixels[y : y + height, x : x + width]
    total = f"sum {part.sum(dtype='u8')}"
    tab.wait_for(lambda: page.show(pixels) and total in tab.text("#region-table"), "the sum")

    tab.choose("[aria-label='width of region 1']", "10")
    assert region_of(tab) == [x, y, 10, height]
    # With the keyboard alone.
    tab.click("#add-middle")
    tab.click("#add-circle")
    tab.drag(page.place_of(700, 700), page.place_of(800, 800))
    tab.wait_for(lambda: page.show(pixels) and tab.text("#region-table").count("sum") == 3, "three regions")
    tab.wait_for(lambda: is_drawn(tab, "#region-plot"), "the plot over time")

    rows = list(csv.DictReader(io.StringIO(tab.saved("#region-csv", "regions.csv").decode())))
    assert {row["region"] for row in rows} == {"1", "2", "3"}
    part = pixels[y : y + height, x : x + 10]
    last = [row for row in rows if row["region"] == "1"][-1]
    assert (int(last["n"]), int(last["sum"])) == (10 * height, part.sum())

    # Another visit has the same regions.
    tab.reload(keep=True)
    tab.wait_for(
        lambda: page.show(pixels) and tab.text("#region-table").count("sum") == 3, "the regions again"
    )
    for region in (1, 2, 3):
        tab.click(f"[aria-label='Remove region {region}']")
    assert tab.text("#region-table") == ""


def region_of(tab: Tab) -> list[int]:
    fields = (
        "[...document.querySelectorAll('#region-table tr:first-child input')].map((f) => Number(f.value))"
    )
    return tab.evaluate(fields)


def test_levels_are_dragged_in_the_histogram(page: ShownPage) -> None:
    tab = page.tab
    page.show(ramp())
    tab.wait_for(lambda: is_drawn(tab, "#histogram"), "the histogram")
    high = float(tab.evaluate("document.getElementById('high').value"))
    box = "document.getElementById('histogram').getBoundingClientRect()"

    def is_dragged() -> bool:
        # The first image changes the layout of the page.
        left, top, width, height = tab.evaluate(
            f"(({{x, y, width, height}}) => [x, y, width, height])({box})"
        )
        tab.drag((left + width * 0.8, top + height / 2), (left + width * 0.6, top + height / 2))
        return tab.evaluate("document.getElementById('levels').value") == "manual"

    tab.wait_for(is_dragged, "levels by hand")
    assert float(tab.evaluate("document.getElementById('high').value")) < 0.9 * high


def test_histogram_of_all_pixels_has_the_one_that_is_too_bright(page: ShownPage) -> None:
    tab = page.tab
    tab.choose("#histogram-of", "full")
    pixels = flat(100)
    pixels[3, 5] = 60_000

    def is_counted() -> bool:
        # It is made once a second.
        page.show(pixels)
        return tab.text("#histogram-outside").endswith("; 0 below, 1 above")

    tab.wait_for(is_counted, "the bright pixel")
    assert is_drawn(tab, "#histogram")


def test_profiles_are_those_of_the_row_and_column_and_of_a_region(page: ShownPage) -> None:
    tab = page.tab
    page.show(ramp())
    page.point_at(600.5, 500.5)
    tab.wait_for(lambda: tab.text("#profile-place").startswith("Row and column through x 600"), "a profile")
    page.show(ramp())
    tab.wait_for(lambda: is_drawn(tab, "#profile-row") and is_drawn(tab, "#profile-column"), "plots")
    tab.choose("#profile-of", "region")
    assert tab.text("#profile-place") == "Draw a region first"
    tab.click("#add-middle")
    page.show(ramp())
    tab.wait_for(lambda: tab.text("#profile-place") == "Means of rows and columns of region 1", "means")
    module = "import(document.querySelector('script').src.replace('main.js', 'graphs.js'))"
    frame = (
        "{counts: Uint16Array.from([1, 2, 3, 4, 5, 65535]),"
        " header: {bin: 2, size: [2, 3], origin: [10, 20], scale: 1, offset: 0}}"
    )
    found = tab.evaluate(
        f"{module}.then((m) => [m.profilesAt({frame}, {{x: 21, y: 12}}),"
        f" m.profilesOf({frame}, [20, 10, 6, 4])]"
        ".map((pair) => pair.map((values) => values.map((v) => (Number.isNaN(v) ? null : v)))))"
    )
    assert found == [[[4, 5, None], [1, 4]], [[2.5, 3.5, 3], [2, 4.5]]]


def test_last_images_are_shown_again_played_and_compared(page: ShownPage) -> None:
    tab = page.tab
    ids = [page.show(flat(100)), *(page.show(flat(value), once=True) for value in (200, 300))]
    page.point_at(600, 500)
    cursor_reads(page, ": 300 ")
    tab.press(",")
    cursor_reads(page, ": 200 ")
    assert tab.text("#film-place") == f"{ids[1]} (-1)"
    assert tab.text("#pause") == "Go on"
    tab.press(".")
    cursor_reads(page, ": 300 ")
    tab.evaluate("document.getElementById('film').value = 0")
    tab.evaluate("document.getElementById('film').dispatchEvent(new Event('input'))")
    cursor_reads(page, ": 100 ")
    tab.press("b")
    assert tab.text("#blink") == f"Compare {ids[0]} with …"
    tab.press(".")
    tab.press("b")
    for value in (100, 200, 100):
        cursor_reads(page, f": {value} ")
    tab.press("b")
    tab.press("p")
    for value in (300, 100, 200):
        cursor_reads(page, f": {value} ")
    # By its id, from the ring buffer.
    tab.choose("#image-id", str(ids[0]))
    cursor_reads(page, ": 100 ")
    tab.choose("#image-id", "999999")
    reason = "document.getElementById('image-id').validationMessage"
    tab.wait_for(lambda: "none of the last that browsers were sent" in tab.evaluate(reason), "the reason")
    tab.click("#pause")
    page.show(flat(50))
    cursor_reads(page, ": 50 ")


@pytest.mark.parametrize("kind", ["damaged", "saturated"])
def test_page_stays_on_the_next_bad_image(page: ShownPage, kind: str) -> None:
    tab = page.tab
    page.show(flat(7))
    tab.choose("#hold", kind)
    page.show(flat(7))
    assert tab.text("#pause") == "Pause"
    pixels = flat(9)
    if kind == "saturated":
        pixels[5, 5] = 65535
    page.show(pixels, status=MISSING_PACKETS if kind == "damaged" else 1)
    assert tab.text("#pause") == "Go on"
    page.show(flat(11))
    page.point_at(600, 500)
    cursor_reads(page, ": 9 ")


def test_picture_and_counts_are_saved(page: ShownPage) -> None:
    tab, pixels = page.tab, ramp()
    image_id = page.show(pixels)
    name = f"{tab.evaluate('''document.title''').split(' ')[0]}-{image_id}"
    picture = Image.open(io.BytesIO(tab.saved("#save-picture", f"{name}.png")))
    width, height = tab.evaluate(
        "[document.getElementById('canvas').width, document.getElementById('canvas').height]"
    )
    assert picture.width > width
    assert picture.height > height
    shown = tifffile.imread(io.BytesIO(tab.saved("#save-counts", f"{name}-shown.tiff")))
    assert shown.shape == (HEIGHT // 2, WIDTH // 2)
    blocks = pixels.reshape(HEIGHT // 2, 2, WIDTH // 2, 2).sum((1, 3), dtype=np.uint32)
    np.testing.assert_array_equal(shown, (blocks + 2) // 4)
    full = tifffile.imread(io.BytesIO(tab.saved("#save-image", f"{name}.tiff")))
    np.testing.assert_array_equal(full, pixels)


def test_image_is_turned_and_flipped(page: ShownPage) -> None:
    tab = page.tab
    page.show(ramp())
    # The pixel in the upper left corner of what is seen after each step.
    corners = {"rotate": (0, HEIGHT), "flip": (0, 0), "transpose": (0, 0)}
    box = "document.getElementById('canvas').getBoundingClientRect()"
    left, top, width, height = tab.evaluate(f"(({{x, y, width, height}}) => [x, y, width, height])({box})")
    for button, corner in corners.items():
        tab.click(f"#{button}")
        is_tall = button != "transpose"
        shown_width, shown_height = (HEIGHT, WIDTH) if is_tall else (WIDTH, HEIGHT)
        zoom = min(width / shown_width, height / shown_height)
        tab.move_to(left + (width - shown_width * zoom) / 2 + 1, top + (height - shown_height * zoom) / 2 + 1)
        tab.wait_for(lambda corner=corner: is_near(tab, corner), f"the corner after {button}")
    tab.click("#rotate")
    kept = "Object.entries(localStorage).find(([name]) => name.includes('drawing'))[1]"
    assert '"turns":1,"isMirrored":false' in tab.evaluate(kept)


def is_near(tab: Tab, corner: tuple[int, int]) -> bool:
    found = re.match(r"x (\d+), y (\d+)", tab.text("#cursor"))
    return found is not None and all(abs(int(found[i + 1]) - corner[i]) < 8 for i in (0, 1))


def test_centre_rings_and_crosses_are_drawn(page: ShownPage) -> None:
    tab = page.tab
    page.show(flat(0))
    tab.choose("#centre-x", "600")
    tab.choose("#centre-y", "500")
    tab.choose("#rings", "300, 100")
    assert min(page.colour_at(900.5, 500.5)) > 120
    assert min(page.colour_at(600.5, 400.5)) > 120
    assert page.colour_at(750.5, 500.5) == [68, 1, 84]
    tab.click("#add-cross")
    tab.drag(page.place_of(200.5, 200.5), page.place_of(200.5, 200.5))
    assert min(page.colour_at(200.5, 200.5)) > 120
    tab.click("#no-drawing")
    assert page.colour_at(900.5, 500.5) == [68, 1, 84]


def test_mean_and_background_are_computed(page: ShownPage) -> None:
    tab = page.tab
    page.show(flat(100))
    page.point_at(600, 500)
    tab.choose("#mean-of", "2")
    page.show(flat(100), once=True)
    page.show(flat(200), once=True)
    cursor_reads(page, ": 150 (corrected")
    tab.choose("#mean-or-sum", "sum")
    cursor_reads(page, ": 300 (corrected")
    tab.choose("#mean-or-sum", "mean")
    tab.choose("#mean-of", "1")
    page.show(flat(120))
    tab.click("#take-background")
    page.show(flat(100))
    cursor_reads(page, ": -20 (corrected")
    tab.click("#no-background")
    cursor_reads(page, ": 100 (mean")


def test_quick_images_have_the_marks_and_nearly_the_values(page: ShownPage) -> None:
    tab, pixels = page.tab, ramp()
    pixels[100:110, 100:110] = 65535
    tab.choose("#quality", "jpeg")

    def is_right() -> bool:
        # The first images change the layout of the page.
        page.show(pixels)
        page.point_at(600.5, 500.5)
        value = re.search(r": ([0-9.]+) .*quick: about", tab.text("#cursor"))
        return value is not None and float(value[1]) == pytest.approx(5605, rel=0.03)

    # The steps follow the levels, which change with every fifth image.
    tab.wait_for(is_right, "the value")
    assert page.colour_at(105, 105) == [255, 60, 220]
    assert tab.text("#mark-list") == "100 saturated"


def test_keys_are_listed(page: ShownPage) -> None:
    tab = page.tab
    # A page that shows an image has been loaded.
    page.show(ramp())
    tab.press("?")
    tab.wait_for(lambda: tab.evaluate("document.getElementById('help').open"), "the list of keys")
    tab.click("#close-help")
    assert not tab.evaluate("document.getElementById('help').open")


@pytest.mark.parametrize(("width", "height"), [(400, 800), (1280, 720), (3840, 2160)])
def test_page_fits_phones_laptops_and_walls(page: ShownPage, width: int, height: int) -> None:
    tab = page.tab
    tab.resize(width, height)
    page.show(ramp())
    root = "document.documentElement"
    assert tab.evaluate(f"{root}.scrollWidth") == width
    letters = float(tab.evaluate("parseFloat(getComputedStyle(document.body).fontSize)"))
    assert letters >= (30 if width > 2400 else 12)
    if width > 1000:
        assert tab.evaluate(f"{root}.scrollHeight") == height
    tab.resize(1280, 800)


def test_wall_shows_no_controls(page: ShownPage) -> None:
    tab = page.tab
    url = tab.evaluate("location.origin")
    tab.call("Page.navigate", url=f"{url}/?wall")
    tab.wait_for(lambda: tab.evaluate("document.body?.classList.contains('wall')"), "the wall")
    page.show(ramp())
    assert tab.evaluate("[...document.querySelectorAll('.tools')].every((one) => !one.offsetParent)")
    tab.call("Page.navigate", url=url)
