"""The gallery shows the scores, worst first, and works when it is opened from the disk."""

import base64
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import photograph
from matplotlib import colormaps
from PIL import Image

from evaluation.gallery import MAX_ERROR, Against, Entry, error_map, gallery_writer, line_through
from inference.visualize import viridis
from metrics import Metric

FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
HOSTILE = "</script><script>hacked = 1</script><img src=x onerror='hacked = 1'>&amp;\udcff{{title}}"
BUCKETS = ("1-10 %", "10-20 %", "20-30 %")


def entry(i: int, gain: float, *, name: str = "", against: float | None = None) -> Entry:
    """One hole; SSIM falls with i, the seam rises from below zero, and the sharpness from below one."""
    truth = photograph(24, 32, seed=i)
    mask = np.zeros((24, 32), bool)
    mask[6:18, 8:24] = True
    output = np.where(mask[:, :, None], np.uint8(90 + i), truth)
    scores = {"mask_ratio": 0.05 + 0.1 * (i % 3), "psnr": 20 + gain, "ssim": 0.9 - i / 100, "gain": gain}
    scores |= {"seam_jump": (i - 2) / 100, "sharpness": 0.72 + i / 10}
    images = {
        "truth": truth,
        "output": output,
        "coarse": output,
        "stage 1": viridis(mask / 2),
        "telea": truth,
    }
    second = None
    if against is not None:
        filled = np.where(mask[:, :, None], np.uint8(200), truth)
        second = Against(
            {**scores, "gain": against, "psnr": 20 + against}, {"output": filled, "structure": viridis(mask)}
        )
    return Entry(name or f"folder/image{i}", BUCKETS[i % 3], scores, mask, images, second)


def write(path: Path, entries: list[Entry], **changes: Any) -> str:
    settings = {"title": "Evaluation", "protocol": {"seed": "42"}, "labels": ("first.pth",)} | changes
    with gallery_writer(path, **settings) as add:
        for each in entries:
            add(each)
    return path.read_text(encoding="utf-8")


def read(page: str, identity: str) -> Any:
    """One of the page's blocks of data."""
    found = re.search(f'<script type="application/json" id="{identity}">(.*)</script>', page)
    assert found
    return json.loads(found[1])


def decode(address: str) -> np.ndarray:
    assert address.startswith("data:image/webp;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))))


def test_entries_stand_worst_first_whatever_their_order(tmp_path: Path) -> None:
    gains = [1.5, -2.0, float("nan"), 0.25, 3.0]
    page = write(tmp_path / "gallery.html", [entry(i, gain) for i, gain in enumerate(gains)])
    data = read(page, "data")
    assert [each["id"] for each in data["entries"]] == [1, 3, 0, 4, 2]
    assert [each["scores"]["gain"] for each in data["entries"]] == [-2.0, 0.25, 1.5, 3.0, None]
    assert data["buckets"] == list(BUCKETS)
    shown = ["gain", "psnr", "ssim", "seam_jump", "sharpness", "mask_ratio"]
    assert [row["name"] for row in data["metrics"]] == shown
    kinds = ["input", "output", "truth", "error", "coarse", "stage 1", "telea"]
    assert [row["name"] for row in data["images"]] == kinds
    assert [row["name"] for row in data["images"] if row["shared"]] == ["input", "truth", "telea"]


def test_images_belong_to_their_entry_and_the_input_hides_the_hole(tmp_path: Path) -> None:
    entries = [entry(0, 2.0), entry(1, 1.0)]
    page = write(tmp_path / "gallery.html", entries)
    for i, each in enumerate(entries):
        [images] = read(page, f"images-{i}")
        for kind in ("truth", "output"):
            difference = decode(images[kind]).astype(int) - each.images[kind]
            assert np.abs(difference).mean() < 6, kind  # WebP is lossy
        shown = decode(images["input"])
        assert shown[8:16, 10:22].mean() > 250
        assert np.abs(shown[:, :6].astype(int) - each.images["truth"][:, :6]).mean() < 8


def test_error_maps_colour_the_mean_difference_in_the_hole_alone() -> None:
    truth = np.full((2, 3, 3), 100, np.uint8)
    output = truth.copy()
    output[0, 0] = (0, 100, 100)  # mean over the channels 33.3 of 255: 0.1307
    output[0, 1] = 255  # 155 of 255: more than the brightest
    output[1, 1] = 255  # known: does not count
    mask = np.array([[1, 1, 1], [0, 0, 0]])
    colours = error_map(output, truth, mask)
    low, high = viridis(np.array([[0.0, 1.0]]))[0].tolist()
    assert colours[0, 2].tolist() == low and colours[0, 1].tolist() == high
    assert np.array_equal(colours[:1, :1], viridis(np.array([[100 / 3 / 255 / MAX_ERROR]])))
    assert (colours[1] == 192 + 25).all()  # grey 100, paled
    assert np.array_equal(error_map(output, truth, mask > 0), colours)


def test_viridis_is_matplotlibs() -> None:
    values = np.linspace(0, 1, 400)[None]
    expected = colormaps["viridis"](values)[:, :, :3] * 255
    assert np.abs(viridis(values) - expected).max() < 7
    assert np.array_equal(
        viridis(np.array([[-1, np.nan, 0, 2, 1]]))[0, [0, 1, 3]], viridis(np.array([[0, 0, 1]]))[0]
    )


def test_the_line_leaves_a_quarter_of_the_hole_on_its_left() -> None:
    mask = np.zeros((4, 10))
    mask[:, 2:10] = 1
    assert line_through(mask) == 30.0  # columns 2 and 3 of eight: the line is within one column of 40
    assert line_through(mask[:, ::-1]) == 10.0
    assert line_through(np.zeros((4, 10))) == 0.0


def test_no_text_of_a_user_becomes_markup(tmp_path: Path) -> None:
    page = write(
        tmp_path / "gallery.html",
        [entry(0, 1.0, name=HOSTILE)],
        title=HOSTILE,
        protocol={HOSTILE: HOSTILE},
        labels=(HOSTILE,),
    )
    harmless = write(tmp_path / "harmless.html", [entry(0, 1.0)])
    for markup in ("<script", "</script", "<img"):
        assert page.count(markup) == harmless.count(markup), markup
    data = read(page, "data")
    assert data["entries"][0]["name"] == HOSTILE and data["labels"] == [HOSTILE]


def test_a_page_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "results" / "gallery.html"
    before = write(path, [entry(0, 1.0)])
    with pytest.raises(ZeroDivisionError):
        with gallery_writer(path, title="new", protocol={}, labels=("a",)) as add:
            add(entry(1, 2.0))
            raise ZeroDivisionError
    assert path.read_text() == before and [each.name for each in path.parent.iterdir()] == ["gallery.html"]


def test_two_checkpoints_are_compared_hole_by_hole(tmp_path: Path) -> None:
    entries = [entry(0, 1.0, against=3.0), entry(1, 2.0, against=-1.0)]
    page = write(tmp_path / "gallery.html", entries, labels=("a", "b"))
    data = read(page, "data")
    assert [each["scores"]["difference"] for each in data["entries"]] == [-2.0, 3.0]
    assert [each["against"]["psnr"] for each in data["entries"]] == [23.0, 19.0]
    assert "difference" in [row["name"] for row in data["metrics"]]
    ours, theirs = read(page, "images-0")
    assert set(theirs) == {"output", "structure", "error"} and theirs["error"] != ours["error"]
    hole = decode(theirs["output"])[9:15, 12:20]
    assert np.abs(hole.astype(int) - 200).max() < 12


@pytest.mark.parametrize("labels, against", [(("a", "b"), None), (("a",), 1.0)])
def test_one_label_a_checkpoint(tmp_path: Path, labels: tuple[str, ...], against: float | None) -> None:
    with pytest.raises(ValueError, match="labels"):
        write(tmp_path / "gallery.html", [entry(0, 1.0, against=against)], labels=labels)
    assert not list(tmp_path.iterdir())


def test_scores_without_a_description_are_shown_by_their_names(tmp_path: Path) -> None:
    one = entry(0, 1.0)
    one.scores["novelty"] = 0.5
    metrics = read(write(tmp_path / "gallery.html", [one]), "data")["metrics"]
    assert metrics[-1] == {
        **Metric("novelty", "novelty")._asdict(),
        "signed": False,
    }
    assert (metrics[-1]["better"], metrics[-1]["about"]) == ("", "")


# In the browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if executable is None:
        pytest.skip("there is no Chromium on this machine")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=executable, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a file; fails at the end if the page complained or asked for anything but itself."""
    complaints: list[str] = []
    pages = []

    def open_file(path: Path, width: int = 1280) -> Any:
        page = browser.new_page(viewport={"width": width, "height": 800})
        pages.append(page)
        page.set_default_timeout(20_000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        address = path.as_uri()
        page.on(
            "request",
            lambda request: (
                complaints.append(request.url) if not request.url.startswith(("data:", address)) else None
            ),
        )
        page.goto(address)
        page.locator(".thumbs img").first.wait_for(state="attached")  # no eval: the page forbids it
        return page

    yield open_file
    for page in pages:
        page.close()
    assert not complaints


def names(page: Any) -> list[str]:
    """Names on the visible cards, in their order."""
    return page.locator(".card:visible .name").all_text_contents()


def clip(page: Any, card: int = 0) -> float:
    """Position of a card's line, as the browser computed it, per cent."""
    style = (
        page.locator(".card")
        .nth(card)
        .locator(".over")
        .first.evaluate("node => getComputedStyle(node).clipPath")
    )
    found = re.fullmatch(r"inset\(0(?:px)? 0(?:px)? 0(?:px)? ([\d.]+)%\)", style)
    assert found, style
    return float(found[1])


def test_cards_are_sorted_and_filtered(visit: Callable[..., Any], tmp_path: Path) -> None:
    gains = [0.5, -1.0, 2.0, 1.0, 10.0, -0.5]
    write(
        tmp_path / "gallery.html",
        [entry(i, gain, name=f"image{2 * i}") for i, gain in enumerate(gains)],
    )
    page = visit(tmp_path / "gallery.html")
    worst_first = ["image2", "image10", "image0", "image6", "image4", "image8"]
    assert names(page) == worst_first
    assert page.locator("#status").text_content() == "6 of 6 · mean gain +2.00\u00a0dB, 2 below 0"
    page.locator("#direction").click()
    assert names(page) == worst_first[::-1]
    page.locator("#sort").select_option("ssim")  # falls with the number
    assert names(page) == ["image10", "image8", "image6", "image4", "image2", "image0"]
    page.locator("#sort").select_option("seam_jump")  # -0.02, -0.01, ... 0.03: the farthest from 0 is worst
    assert names(page) == ["image10", "image0", "image8", "image2", "image6", "image4"]
    assert page.locator("#direction").text_content() == "↓ worst first"
    page.locator("#sort").select_option("sharpness")  # 0.72, 0.82, ... 1.22: the farthest from 1 is worst
    assert names(page) == ["image0", "image10", "image2", "image8", "image4", "image6"]
    assert page.locator("#direction").text_content() == "↓ worst first"
    page.locator("#sort").select_option("name")
    assert names(page) == ["image0", "image2", "image4", "image6", "image8", "image10"]
    page.locator("#sort").select_option("bucket")  # equal entries stay worst first
    assert names(page) == ["image0", "image6", "image2", "image8", "image10", "image4"]
    page.locator("#sort").select_option("mask_ratio")
    assert names(page) == ["image10", "image4", "image2", "image8", "image0", "image6"]
    page.locator("#bucket").select_option("10-20 %")
    assert names(page) == ["image2", "image8"]
    assert page.locator("#status").text_content() == "2 of 6 · mean gain +4.50\u00a0dB, 1 below 0"
    page.locator("#name").fill("E8")
    assert names(page) == ["image8"]


def test_the_line_follows_mouse_and_keys(visit: Callable[..., Any], tmp_path: Path) -> None:
    write(tmp_path / "gallery.html", [entry(i, float(i)) for i in range(3)])
    page = visit(tmp_path / "gallery.html")
    assert clip(page) == pytest.approx(line_through(entry(0, 0.0).mask), abs=0.1)
    box = page.locator(".stage").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.5)
    page.mouse.down()
    assert clip(page) == pytest.approx(50, abs=1)
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] * 0.4, steps=5)
    page.mouse.up()
    assert clip(page) == pytest.approx(80, abs=1)
    assert clip(page, 1) == pytest.approx(line_through(entry(1, 0.0).mask), abs=0.1)
    page.keyboard.press("ArrowLeft")
    assert clip(page) == pytest.approx(79, abs=1) and clip(page) < 80
    page.keyboard.press("Home")
    assert clip(page) == 0
    page.keyboard.press("End")
    assert clip(page) == 100
    page.locator("#line").fill("12")  # the tools move all lines
    assert [clip(page, card) for card in range(3)] == [12, 12, 12]


def test_a_thumbnail_takes_the_place_on_the_right(visit: Callable[..., Any], tmp_path: Path) -> None:
    text = write(tmp_path / "gallery.html", [entry(0, 1.0), entry(1, 2.0)])
    [images] = read(text, "images-0")
    page = visit(tmp_path / "gallery.html")
    card = page.locator(".card").first

    def shown(where: str) -> str:
        return card.locator(where).get_attribute("src")

    assert (shown(".under"), shown(".over")) == (images["input"], images["output"])
    labels = card.locator(".thumbs button").all_text_contents()
    assert labels == ["input", "output", "truth", "error", "coarse", "stage 1", "telea"]
    card.get_by_role("radio", name="truth").click()
    assert shown(".over") == images["truth"]
    page.keyboard.press("ArrowRight")
    assert shown(".over") == images["error"]
    assert card.get_by_role("radio", checked=True).all_text_contents() == ["error"]
    assert card.locator(".scale").get_attribute("data-high").endswith(f"{MAX_ERROR:g}")
    page.locator("#right").select_option("telea")
    page.locator("#left").select_option("truth")
    assert (shown(".under"), shown(".over")) == (images["truth"], images["telea"])
    slider = card.get_by_role("slider")
    assert slider.get_attribute("aria-label") == "folder/image0: line between truth and telea"
    assert page.locator(".over").nth(1).evaluate("node => node.decode().then(() => node.naturalWidth)") == 32


def test_images_far_below_are_not_decoded_before_they_are_near(
    visit: Callable[..., Any], tmp_path: Path
) -> None:
    write(tmp_path / "gallery.html", [entry(i, float(i)) for i in range(48)])
    page = visit(tmp_path / "gallery.html")
    assert page.locator(".card").count() == 48
    assert 4 <= page.locator(".card:has(.over[src])").count() <= 24
    last = page.locator(".card").last
    assert last.locator(".over[src]").count() == 0
    last.scroll_into_view_if_needed()
    last.locator(".over[src]").wait_for(state="attached")


@pytest.mark.parametrize("width", [1280, 390])
def test_two_checkpoints_stand_side_by_side(visit: Callable[..., Any], tmp_path: Path, width: int) -> None:
    entries = [entry(0, 1.0, against=0.0), entry(1, 2.0, against=4.5), entry(2, 3.0, against=1.0)]
    text = write(tmp_path / "gallery.html", entries, labels=("a.pth", "b/" + "long" * 20))
    page = visit(tmp_path / "gallery.html", width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert names(page) == ["folder/image0", "folder/image1", "folder/image2"]
    page.locator("#sort").select_option("difference")
    assert names(page) == ["folder/image1", "folder/image0", "folder/image2"]
    card = page.locator(".card").first
    card.locator(".over[src]").first.wait_for(state="attached")
    assert card.locator(".gain").text_content() == "−2.50\u00a0dB"
    assert card.locator("tr[data-key=psnr] td").all_text_contents() == ["22.00", "24.50", "−2.50"]
    left, right = (card.locator(".stage").nth(i).bounding_box() for i in (0, 1))
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    ours, theirs = read(text, "images-1")
    outputs = [card.locator(".over").nth(i).get_attribute("src") for i in (0, 1)]
    assert outputs == [ours["output"], theirs["output"]]
    page.locator("#left").select_option("other")
    assert card.locator(".under").first.get_attribute("src") == theirs["output"]
    page.locator("#right").select_option("coarse")  # the second checkpoint has none
    assert card.locator(".none:visible").all_text_contents() == ["no coarse"]
    page.locator("#right").select_option("structure")  # the first checkpoint has none
    assert card.locator(".none:visible").all_text_contents() == ["no S"]
    assert card.locator(".over:visible").get_attribute("src") == theirs["structure"]
    card.get_by_role("slider").first.press("End")
    assert [card.get_by_role("slider").nth(i).input_value() for i in (0, 1)] == ["100", "100"]


def test_hostile_names_are_only_text(visit: Callable[..., Any], tmp_path: Path) -> None:
    write(
        tmp_path / "gallery.html",
        [entry(0, 1.0, name=HOSTILE, against=0.0)],
        title=HOSTILE,
        protocol={HOSTILE: HOSTILE},
        labels=(HOSTILE, HOSTILE),
    )
    page = visit(tmp_path / "gallery.html")
    assert page.evaluate("typeof hacked") == "undefined"
    text = HOSTILE.replace("\udcff", "\ufffd")
    assert page.title() == text and page.locator("h1").text_content() == text
    assert page.locator(".protocol dd").text_content() == text
    assert page.locator(".name").text_content().replace("\udcff", "\ufffd") == text
