"""The page: uploads, sessions and functions, its server, and all of it once more in a browser."""

import asyncio
import importlib.util
import io
import shutil
import signal
import socket
import struct
import tempfile
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY, photograph
from PIL import Image
from web_server import HAS_GRADIO, Server, needs_gradio

import app
from imaging.image_file import ImageFile
from imaging.mask_file import mask_warnings
from imaging.trial_decode import start_forkserver
from inference.web import uploads
from inference.web.sessions import Session, Sessions, safe_name
from utils import UserError

HOLE = np.s_[20:40, 30:60]
BROWSER = shutil.which("chromium")
needs_browser = pytest.mark.skipif(
    BROWSER is None or importlib.util.find_spec("playwright") is None,
    reason="no chromium on the path" if BROWSER is None else "playwright is not installed",
)


def save(pixels: np.ndarray, path: Path, **settings: Any) -> str:
    Image.fromarray(pixels).save(path, **settings)
    return str(path)


def strokes(shape: tuple[int, int], hole: Any = HOLE) -> np.ndarray:
    opacity = np.zeros(shape, np.uint8)
    opacity[hole] = 255
    return opacity


@pytest.fixture(scope="module", autouse=True)
def early_server(request: pytest.FixtureRequest) -> None:
    """Let the server start while the tests that do without it run."""
    if HAS_GRADIO:
        request.getfixturevalue("server")


@pytest.fixture(scope="module")
def networks() -> Any:
    start_forkserver()
    return app.load_networks(app.parse_args([]))


# --- uploaded images -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "shown"), [((1, 1), (512, 512)), ((600, 900), (600, 900)), ((1000, 3000), (427, 1280))]
)
def test_a_picture_is_shown_at_a_size_that_can_be_painted_on(
    tmp_path: Path, shape: tuple[int, int], shown: tuple[int, int]
) -> None:
    picture = ImageFile(Path(save(photograph(*shape), tmp_path / "a.png")))
    assert uploads.preview(picture).size == shown[::-1]


def test_a_picture_is_shown_upright_over_white_and_with_its_mask_tinted(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # stored on its side
    turned = ImageFile(Path(save(photograph(600, 800), tmp_path / "a.jpg", exif=exif)))
    assert uploads.preview(turned).size == (600, 800)
    pixels = np.zeros((512, 512, 4), np.uint8)
    pixels[:256, :, 3] = 255
    clear = ImageFile(Path(save(pixels, tmp_path / "b.png")))
    assert np.asarray(uploads.preview(clear))[[100, 400], 9].tolist() == [[0] * 3, [255] * 3]
    missing = np.zeros((512, 512), bool)
    missing[:, :9] = True
    tinted = np.asarray(uploads.preview(clear, missing))
    assert (
        tinted[100, 4].tolist() == [round(0.6 * each) for each in uploads.TINT] and not tinted[100, 9].any()
    )


def test_a_deep_grey_picture_is_shown_in_eight_bits_and_three_channels(tmp_path: Path) -> None:
    picture = ImageFile(Path(save(np.full((512, 512), 32896, np.uint16), tmp_path / "a.png")))
    assert np.unique(np.asarray(uploads.preview(picture))).tolist() == [128]


def paint_layers(layers: list[np.ndarray], folder: Path) -> np.ndarray | None:
    session = Session(folder)
    paths = [save(layer, folder / f"{i}.png") for i, layer in enumerate(layers)]
    files = [{"path": session.store(io.BytesIO(Path(path).read_bytes()), "layer.png")} for path in paths]
    return uploads.read_strokes({"layers": files}, session)


def test_strokes_are_the_opacity_of_all_layers(tmp_path: Path) -> None:
    layers = [np.zeros((4, 5, 4), np.uint8) for _ in range(2)]
    for i, layer in enumerate(layers):
        layer[i, i, 3] = 200
        layer[:, :, :3] = 255
    painted = paint_layers(layers, tmp_path)
    assert painted is not None and np.argwhere(painted).tolist() == [[0, 0], [1, 1]]


@pytest.mark.parametrize("layers", [[], [np.zeros((4, 5, 4), np.uint8)]])
def test_nothing_painted_is_no_strokes(layers: Any, tmp_path: Path) -> None:
    assert paint_layers(layers, tmp_path) is None


def test_strokes_and_mask_add_up(tmp_path: Path) -> None:
    image = Path(save(photograph(60, 80), tmp_path / "a.png"))
    mask = np.zeros((60, 80), np.uint8)
    mask[:5] = 255
    path = Path(save(mask, tmp_path / "m.png"))
    job = uploads.open_request(image, path, strokes((60, 80)), tmp_path / "out")
    assert job.mask.sum() == 5 * 80 + 20 * 30 and job.settings.verify
    assert job.target_path == tmp_path / "out" / "a_filled.png"
    assert uploads.open_request(image, path, None, tmp_path).mask.sum() == 5 * 80


def test_a_lossy_file_is_verified_only_as_png(tmp_path: Path) -> None:
    image = Path(save(photograph(60, 80), tmp_path / "a.avif"))
    assert not uploads.open_request(image, None, strokes((60, 80)), tmp_path).settings.verify
    job = uploads.open_request(image, None, strokes((60, 80)), tmp_path, lossless=True)
    assert job.settings.verify and job.target_path.name == "a_filled.png"


@pytest.mark.parametrize("case", ["no picture", "no hole", "black mask"])
def test_a_request_with_nothing_to_fill_is_refused(tmp_path: Path, case: str) -> None:
    image = None if case == "no picture" else Path(save(photograph(60, 80), tmp_path / "a.png"))
    mask = Path(save(np.zeros((60, 80), np.uint8), tmp_path / "m.png")) if case == "black mask" else None
    with pytest.raises(UserError, match="open a picture" if case == "no picture" else "nothing is marked"):
        uploads.open_request(image, mask, None, tmp_path)


@needs_gradio
def test_the_page_speaks_without_flags_and_folders(tmp_path: Path) -> None:
    from inference.web.page import sentence

    file = {"path": "/tmp/x/a b.png"}
    message = sentence("--image_path: not a readable image: /tmp/x/a b.png (why)", file, None)
    assert message == "Not a readable image: a b.png (why)."
    assert sentence("its border too: is it inverted? (--invert_mask)") == "Its border too: is it inverted?"
    avif = Path(save(photograph(60, 80), tmp_path / "a.avif"))
    job = uploads.open_request(avif, None, 255 - strokes((60, 80)), tmp_path)
    with pytest.raises(UserError) as large:
        ImageFile(avif, max_megapixels=0.001)
    for text in (*job.notes, *mask_warnings(job.mask), f"--image_path: {large.value}"):
        assert "--" in text and "--" not in sentence(text)


def test_checkpoints_of_one_name_are_told_apart(tmp_path: Path) -> None:
    copy = tmp_path / "default.pth"
    shutil.copy(REPOSITORY / "weights" / "default.pth", copy)
    named = app.load_networks(app.parse_args(["--checkpoint", str(copy)]))
    assert next(iter(named)) == "default" and len(named) == 1 + len([*(REPOSITORY / "weights").glob("*.pth")])


# --- the command line ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--port", "70000"], "--port: must be from 0 to 65535, got 70000"),
        (["--max_upload", "0"], "--max_upload: must be above 0 and below a million, got 0"),
        (["--max_memory", "nan"], "--max_memory: must be above 0 and below a million, got nan"),
        (["--max_memory", "inf"], "--max_memory: must be above 0 and below a million, got inf"),
        (["--max_megapixels", "nan"], "--max_megapixels: must be above 0 and below a million, got nan"),
        (["--max_seconds", "1e300"], "--max_seconds: must be above 0 and below a million, got 1e+300"),
        (["--checkpoint", "no.pth", "--port", "0"], "--checkpoint: no such file: no.pth"),
        (["--share"], "unrecognized arguments: --share"),
    ],
)
@needs_gradio
def test_a_mistake_is_one_line_and_status_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(argv) == 2
    assert capsys.readouterr().err == f"app.py: error: {message}\n"


def test_without_gradio_the_page_says_how_to_get_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "find_spec", lambda _: None)
    assert app.main([]) == 2
    expected = "app.py: error: the page needs gradio: pip install -r requirements-app.txt\n"
    assert capsys.readouterr().err == expected


def test_a_port_that_is_taken_is_refused() -> None:
    with app.listen("127.0.0.1", 0) as listener:
        with pytest.raises(UserError, match="cannot listen at 127"):
            app.listen("127.0.0.1", listener.getsockname()[1])


def test_connections_to_other_machines_are_refused() -> None:
    app.stay_here("socket.connect", (None, ("127.0.0.1", 80)))
    app.stay_here("socket.connect", (None, "/run/some.socket"))
    app.stay_here("socket.getaddrinfo", ("localhost", 80, 0, 0, 0))
    app.stay_here("open", ("example.org", "r", 0))
    for event, arguments in [
        ("socket.connect", (None, ("192.0.2.1", 443))),
        ("socket.getaddrinfo", ("example.org", 443, 0, 0, 0)),
    ]:
        with pytest.raises(PermissionError, match="stays on this machine"):
            app.stay_here(event, arguments)


# --- the page, called as the browser calls it ------------------------------------------------------------


class Page:
    """The functions that the page's controls call, by name, and a session that calls them."""

    def __init__(self, networks: Any, folder: Path, limits: uploads.Limits) -> None:
        from inference.web import page

        self.sessions = Sessions(folder / "sessions")
        self.warnings: list[str] = []
        self.session = self.begin()

        async def build() -> Any:  # in a loop that is closed; outside one, gradio makes some and leaves them
            return page.Page(networks, self.sessions, limits).build()

        functions = asyncio.run(build()).fns.values()
        self.functions: dict[str, Any] = {str(function.api_name): function.fn for function in functions}

    def begin(self) -> Session:
        session = self.sessions.find(self.sessions.begin())
        assert session is not None
        return session

    def upload(self, path: str, session: Session | None = None) -> dict[str, str]:
        with open(path, "rb") as file:
            return {"path": (session or self.session).store(file, Path(path).name)}

    def call(self, name: str, *data: Any, session_hash: str = "", **more: Any) -> Any:
        request = SimpleNamespace(session_hash=session_hash or f"{self.session.name}tab")
        return self.functions[name](*data, request=request, **more)


@pytest.fixture
def called(networks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Page:
    pytest.importorskip("gradio", reason="gradio is not installed (requirements-app.txt)")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    page = Page(networks, tmp_path, uploads.Limits(max_megapixels=4))
    monkeypatch.setattr("gradio.Warning", page.warnings.append)
    return page


def test_filling_keeps_every_other_pixel_and_tells_how_far_it_is(called: Page, tmp_path: Path) -> None:
    pixels = photograph(700, 1100)
    picture = called.upload(save(pixels, tmp_path / "a.png"))
    painted = np.dstack([strokes((70, 110), np.s_[30:40, 50:60])] * 4)  # on a smaller copy
    layer = called.upload(save(painted, tmp_path / "layer.png"))
    steps: list[Any] = []
    asked = [picture, None, {"layers": [layer]}, "default", 0, 0, 100, False]
    result = called.call("fill", *asked, progress=lambda step, **_: steps.append(step))
    slider, said, download = result[:3]
    assert steps == [0, (0, 1), (1, 1)]
    assert said == "1.3% of 1100 × 700 pixels filled. Every other pixel is identical (read by OpenCV)."
    for each in slider:
        with Image.open(each) as image:
            assert image.size == (1100, 700)
    with Image.open(download["value"]) as image:
        filled = np.asarray(image)
    changed = (filled != pixels).any(axis=2)
    assert changed[310:390, 510:590].mean() > 0.9
    changed[300:400, 500:600] = False
    assert not changed.any()


def test_what_is_shown_names_size_and_format(called: Page, tmp_path: Path) -> None:
    picture = called.upload(save(photograph(60, 80), tmp_path / "a.jpg"))
    mask = called.upload(save(strokes((60, 80)), tmp_path / "m.png"))
    visible, canvas, said, *_ = called.call("show", picture, mask)
    assert visible["visible"] and said.startswith("80 × 60 pixels, JPEG.")
    with Image.open(canvas["background"]) as image:
        assert image.size == (512, 384)
    assert not called.call("show", None, None)[0]["visible"]


def test_the_stages_are_shown_on_demand(called: Page, tmp_path: Path) -> None:
    mask = called.upload(save(strokes((60, 80)), tmp_path / "m.png"))
    picture = called.upload(save(photograph(60, 80), tmp_path / "a.png"))
    assert len(called.call("explain", picture, mask, None, "default", 2)["value"]) == 5


@pytest.mark.parametrize("name", ["fill", "explain"])
def test_what_cannot_be_filled_is_an_error_of_the_page(called: Page, name: str) -> None:
    import gradio

    more = (
        {"feather": 0, "detail": 100, "lossless": False, "progress": lambda *_, **__: None}
        if name == "fill"
        else {}
    )
    with pytest.raises(gradio.Error, match="Open a picture first"):
        called.call(name, None, None, None, "default", 0, **more)
    for checkpoint, dilate, message in [("default", -1, "from 0 to 32"), ("default", 1e9, "from 0 to 32"),
                                        ("default", True, "from 0 to 32"), ("default", "1", "from 0 to 32"),
                                        ("../x", 0, "no such checkpoint"), ([], 0, "no such checkpoint")]:  # fmt: skip
        with pytest.raises(gradio.Error, match=message):
            called.call(name, None, None, None, checkpoint, dilate, **more)


@pytest.mark.parametrize(
    "detail", ["101", "50", 101, 100.01, -1, True, False, float("nan"), float("inf"), None, [50]]
)
def test_a_detail_that_the_slider_cannot_have_is_an_error_of_the_page(
    called: Page, detail: Any, tmp_path: Path
) -> None:
    import gradio

    picture = called.upload(save(photograph(60, 80), tmp_path / "a.png"))
    mask = called.upload(save(strokes((60, 80)), tmp_path / "m.png"))
    with pytest.raises(gradio.Error, match=r"^'The detail must be from 0 to 100 %\.'$"):
        called.call(
            "fill", picture, mask, None, "default", 0, 0, detail, False, progress=lambda *_, **__: None
        )


def test_the_detail_slider_changes_the_hole(called: Page, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (100, 120, 3), np.uint8)
    picture = called.upload(save(pixels, tmp_path / "a.png"))
    mask = called.upload(save(strokes((100, 120)), tmp_path / "m.png"))
    filled = []
    for detail in (0, 0, 50.0, 100):  # each request gets its own, whatever the one before it was
        asked = [picture, mask, None, "default", 0, 0, detail, False]
        download = called.call("fill", *asked, progress=lambda *_, **__: None)[2]
        filled.append(np.asarray(Image.open(download["value"])).astype(int))
    energy = [np.abs(np.diff(each[HOLE], axis=1)).mean() for each in filled]
    assert np.array_equal(filled[0], filled[1]) and energy[1] < energy[2] < energy[3]


def test_an_example_is_opened_by_its_number_alone(called: Page) -> None:
    import gradio

    from inference.web.page import EXAMPLES

    path = called.call("choose", 1)
    assert called.session.find(path).name == EXAMPLES[1]
    for number in (-1, 4, 10**9, True, "0", None, {"path": "/etc/hostname"}):
        with pytest.raises(gradio.Error, match="no such example"):
            called.call("choose", number)


def test_only_files_of_the_session_that_asks_are_opened(called: Page, tmp_path: Path) -> None:
    path = save(photograph(60, 80), tmp_path / "a.png")
    other = called.begin()
    theirs, own = called.upload(path, other), called.upload(path)
    link = Path(own["path"]).with_name("link.png")
    link.symlink_to(path)
    named = [theirs["path"], path, str(link), str(Path(own["path"]).parent), "/dev/zero", "/etc/hostname"]
    named += [f"{Path(own['path']).parent}/../{Path(own['path']).parent.name}/a.png", "", None, 7, own]
    for each in named:
        assert not called.call("show", {"path": each}, None)[0]["visible"]
        assert not called.call("show", own, {"path": each})[0]["visible"]
    assert set(called.warnings) == {"This file is not here any more: open it again."}
    assert called.call("show", own, None)[0]["visible"]
    assert called.call("show", theirs, None, session_hash=f"{other.name}tab")[0]["visible"]
    Path(own["path"]).unlink()
    Path(own["path"]).symlink_to(path)  # somebody else on the machine might do this
    assert not called.call("show", own, None)[0]["visible"]


def test_a_picture_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    session = Session(tmp_path)
    Image.new("RGB", (5000, 5000)).save(tmp_path / "large.png", compress_level=1)  # a good while to decode
    large = session.store(io.BytesIO((tmp_path / "large.png").read_bytes()), "large.png")
    with pytest.raises(UserError, match=r"takes more than 0\.001 seconds"):
        uploads.Limits(max_seconds=0.001).open({"path": str(large)}, session)
    path = session.store(io.BytesIO(b"a picture"), "a.png")
    with pytest.raises(UserError, match="of no known format"):
        uploads.Limits().open({"path": str(path)}, session)
    assert not session.checked


# --- the files of a session ------------------------------------------------------------------------------


def test_the_oldest_files_go_first_and_those_in_use_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.web.sessions.SESSION_BYTES", 2500)
    session = Session(tmp_path)
    paths = []
    for i in range(4):
        path = session.new_path(f"{i}.png")
        path.write_bytes(bytes([i]) * 1000)
        paths.append(session.add(path))
        if i == 0:
            session.open({"path": paths[0]})
    assert [Path(path).exists() for path in paths] == [True, False, False, True]
    assert set(session.files) == {paths[0], paths[3]} and session.size == 2000


def test_a_file_that_is_uploaded_again_is_kept_once(tmp_path: Path) -> None:
    session = Session(tmp_path)
    kept = {session.store(io.BytesIO(b"a picture"), "a.png") for _ in range(3)}
    assert len(kept) == len(session.files) == 1


def test_sessions_are_bounded_in_number_and_those_without_files_go_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.web.sessions.MAX_SESSIONS", 3)
    sessions = Sessions(tmp_path)
    tokens = [sessions.begin()]
    busy = sessions.find(tokens[0])
    assert busy is not None
    busy.store(io.BytesIO(b"a picture"), "a.png")
    tokens += [sessions.begin() for _ in range(5)]
    assert [sessions.find(token) is not None for token in tokens] == [True, False, False, False, True, True]
    monkeypatch.setattr("inference.web.sessions.TOTAL_BYTES", 1)
    other = sessions.find(tokens[-1])
    assert other is not None
    sessions.make_room(other)
    assert sessions.find(tokens[0]) is None and not busy.folder.exists()


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("a b.png", "a b.png"),
        ("../../etc/passwd", "passwd"),
        ("C:\\x\\y.tif", "y.tif"),
        ("..", "picture"),
        ("", "picture"),
        ("a\0b\nc.png", "a_b_c.png"),
        ("é" * 200 + ".jpeg", "é" * 72 + ".jpeg"),
    ],
)
def test_names_of_uploads_are_made_safe(name: str, safe: str) -> None:
    assert safe_name(name) == safe


# --- the server, as a process of its own -----------------------------------------------------------------


@needs_gradio
def test_twenty_requests_at_once_get_each_its_own_answer(server: Server, tmp_path: Path) -> None:
    def ask(i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        shape = 60 + i, 90 - i
        pixels, hole = photograph(*shape, seed=i), strokes(shape, np.s_[10 + i : 30 + i, 20:50])
        picture, mask = save(pixels, tmp_path / f"{i}.png"), save(hole, tmp_path / f"m{i}.png")
        visitor = visitors[i % 4]
        files = [visitor.upload(Path(path).read_bytes(), Path(path).name) for path in (picture, mask)]
        answer = visitor.call("fill", [*files, None, "default", 0, 0, 100, False])
        result = visitor.download(answer["data"][2]["value"]["path"])
        return pixels, hole > 0, np.asarray(Image.open(io.BytesIO(result.content)))

    visitors = [server.visit() for _ in range(4)]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(ask, range(20)))
    for pixels, hole, filled in answers:
        assert (filled[~hole] == pixels[~hole]).all() and (filled[hole] != pixels[hole]).any()


# --- and in a browser ------------------------------------------------------------------------------------

QUIET = "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run"
QUIET += " --disable-background-networking --disable-component-update --disable-sync"
PATIENCE = 120_000  # ms; without a graphics card, on a busy machine, the editor is slow


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=BROWSER,
            args=QUIET.split(),
            headless=False,  # the new kind, by its flag
            viewport={"width": 800, "height": 900},
        )
        yield context
        context.close()


@pytest.fixture
def page(server: Server, browser: Any) -> Iterator[Any]:
    """A tab that has the page open, with the errors and the addresses that it has seen."""
    tab = browser.new_page()
    tab.set_default_timeout(PATIENCE)
    tab.errors, tab.addresses = [], []
    tab.on("console", lambda said: tab.errors.append(said.text) if said.type == "error" else None)
    tab.on("pageerror", lambda error: tab.errors.append(str(error)))
    browser.on("request", lambda request: tab.addresses.append(request.url))
    tab.goto(server.url)
    tab.locator("#picture input[type=file]").wait_for(state="attached")
    yield tab
    tab.close()


def upload(page: Any, path: str, place: str = "#picture") -> None:
    page.locator(f"{place} input[type=file]").set_input_files(path)


def paint(page: Any, moves: list[tuple[float, float]]) -> float:
    """A stroke through points relative to the middle of the picture; returns pixels a shown pixel."""
    canvas = page.locator("#canvas canvas").first
    canvas.scroll_into_view_if_needed()
    page.wait_for_timeout(1500)  # until the picture is fitted into its place
    box = canvas.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    zoom = float(page.locator("#canvas").get_by_text("%").first.inner_text().rstrip("%")) / 100
    for i, (x, y) in enumerate(moves):
        page.mouse.move(middle[0] + x, middle[1] + y)
        if i == 0:
            page.mouse.down()
    page.mouse.up()
    return 1 / zoom


def said(page: Any, text: str) -> None:
    """Wait until a text is on the page."""
    page.get_by_text(text).first.wait_for()


@needs_gradio
@needs_browser
def test_a_painted_stroke_is_filled_and_nothing_else_changes(
    page: Any, server: Server, tmp_path: Path
) -> None:
    pixels = photograph(200, 300)
    upload(page, save(pixels, tmp_path / "small.png"))
    said(page, "300 × 200 pixels, PNG.")
    scale = paint(page, [(-60, -20), (0, 0), (60, 20)]) * 300 / uploads.PREVIEW[0]
    page.locator("#fill").click()
    said(page, "pixels filled. Every other pixel is identical (read by OpenCV).")
    with page.expect_download() as download:
        page.locator("#download").click()
    assert download.value.suggested_filename == "small_filled.png"
    with Image.open(download.value.path()) as result:
        changed = (np.asarray(result) != pixels).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert abs(columns.mean() - 150) < 5 and abs(rows.mean() - 100) < 5
    half_width = (columns.max() - columns.min()) / 2
    assert 60 * scale < half_width < 120 * scale  # and the width of the brush
    tilt = np.polyfit(columns, rows, 1)[0]
    assert abs(tilt - 1 / 3) < 0.15
    page.get_by_text("Show how it came about").click()
    said(page, "Attention 3")
    assert page.errors == []
    foreign = [url for url in page.addresses if not url.startswith((server.url + "/", "data:", "blob:"))]
    assert foreign == [] and any("/gradio_api/" in url for url in page.addresses)
    assert "default-src 'self'" in page.request.get(server.url).headers["content-security-policy"]


def bad_file(kind: str, folder: Path) -> str:
    path = folder / f"{kind}.png"
    if kind == "text":
        path.write_text("no picture")
    elif kind == "bomb":  # 900 million pixels in a hundred bytes
        header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
        chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(9))), (b"IEND", b"")]
        parts = [len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")
                 for name, data in chunks]  # fmt: skip
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    elif kind == "moving":
        frames = [Image.new("RGB", (9, 9), color) for color in ("red", "blue")]
        frames[0].save(path, "GIF", save_all=True, append_images=frames[1:])
    elif kind == "heavy":
        path.write_bytes(bytes(2**20 + 1))
    else:
        Image.new("RGB", (1, 1), "red").save(path)
    return str(path)


@needs_gradio
@needs_browser
def test_bad_uploads_give_a_message_and_the_server_goes_on(page: Any, server: Server, tmp_path: Path) -> None:
    for kind, message in [
        ("text", "Not a readable image: text.png (of no known format)."),
        ("bomb", "Has 900 megapixels, more than the limit of 4: bomb.png."),
        ("moving", "Holds 2 images, and only files with a single one can be filled: moving.png."),
        ("heavy", "exceed the maximum allowed size"),
    ]:
        upload(page, bad_file(kind, tmp_path))
        said(page, message)
        if kind == "heavy":
            page.reload()
        else:
            page.locator("#picture").get_by_label("Clear").click()
        page.locator("#picture input[type=file]").wait_for(state="attached")
    upload(page, bad_file("tiny", tmp_path))
    said(page, "1 × 1 pixels, PNG.")
    page.locator("#fill").click()
    said(page, "Nothing is marked: paint over what should go, or load a mask.")
    page.get_by_text("Options").click()
    upload(page, save(np.full((1, 1), 255, np.uint8), tmp_path / "mask.png"), "#mask")
    page.locator("#fill").click()
    said(page, "The mask covers the whole image: there are no known pixels.")
    assert server.process.poll() is None


@needs_gradio
def test_the_server_ends_in_time_while_requests_hang_and_takes_what_it_wrote_with_it(server: Server) -> None:
    assert any(server.temporary.iterdir())
    visitor = server.visit()
    cookies = "; ".join(f"{name}={value}" for name, value in visitor.http.cookies.items())
    host, port = server.url.removeprefix("http://").split(":")
    upload = (
        f"POST /gradio_api/upload HTTP/1.1\r\nHost: {host}:{port}\r\nCookie: {cookies}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 5000\r\n\r\n--x\r\n"
        'Content-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    )
    with socket.create_connection((host, int(port))) as sending, socket.create_connection((host, int(port))):
        sending.sendall(upload.encode())
        time.sleep(0.5)
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 143
        assert time.monotonic() - start < 50
    assert not any(server.temporary.iterdir())
    touched = {line.strip() for line in server.log.read_text().splitlines()}
    (gradio,) = importlib.util.find_spec("gradio").submodule_search_locations
    seed = f"write {gradio}/hash_seed.txt"  # gradio writes it at its first import
    places = (f"write {server.temporary}", "write /dev/null", seed)
    assert {each for each in touched if not each.startswith(places)} <= {"look up 127.0.0.1"}
