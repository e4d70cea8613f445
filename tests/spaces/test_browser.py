"""The Space in a real browser and by ten clients at once, served from this process by 127.0.0.1."""

# ruff: noqa: E402  (what needs gradio is imported after the check that it is there)

import contextlib
import shutil
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the Space needs gradio: pip install -e '.[demo]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright: pip install it")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium on the path: install chromium by the system's packages", allow_module_level=True)

from gradio_client import Client, handle_file
from score_space.models import CIFAR, FASHION, MODELS
from score_space.page import TABS
from score_space.tabs import likelihood
from score_space.tabs.generate import METHODS

from diffusers_sde import ScoreSdePipeline, embedded_model_path
from diffusers_sde.seeding import image_generators

BUTTONS = {
    "Generate": "Generate",
    "Inpaint": "Inpaint",
    "Colorize": "Colorize",
    "Class-conditional": "Draw",
    "Edit": "Edit",
    "Interpolate": "Interpolate",
    "Likelihood": "Measure",
    "Forward and reverse": "Run both",
}
WITH_EXAMPLES = ("Inpaint", "Colorize", "Edit", "Likelihood", "Forward and reverse")
PATIENCE = 30_000  # milliseconds, for a slow core that others use, too


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where the Space is served, with its files in a folder of the test."""
    with socket.socket() as probe, pytest.MonkeyPatch.context() as patch:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        import app  # which builds the page, and with it the files of the examples

        options = {"prevent_thread_lock": True, "quiet": True, "server_name": "127.0.0.1", "server_port": port}
        _, url, _ = app.demo.launch(**options, **app.launch_options())
        yield url
        app.demo.close()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def new_page(browser, address):
    """A new user's page, which must ask nobody but the Space for anything, and log no error."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    context.set_default_timeout(PATIENCE)
    page, strangers, errors = context.new_page(), [], []
    local = (address, "data:", "blob:")
    page.on("request", lambda request: None if request.url.startswith(local) else strangers.append(request.url))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(address)
    page.get_by_role("tab", name="Generate").wait_for()
    yield page
    context.close()
    assert strangers == []
    assert errors == []


@pytest.fixture(scope="module")
def page(browser, address):
    """One user's page for many tests."""
    with new_page(browser, address) as page:
        yield page


@pytest.fixture
def fresh_page(browser, address):
    """A page without messages of other tests."""
    with new_page(browser, address) as page:
        yield page


@pytest.fixture
def evaluations():
    """A list that grows by one with every call of the embedded grey network, by whichever run."""
    calls = []
    hook = MODELS.get(FASHION).network.register_forward_pre_hook(lambda *_: calls.append(1))
    yield calls
    hook.remove()


def open_tab(page, title):
    page.get_by_role("tab", name=title, exact=True).click()
    panel = page.get_by_role("tabpanel").filter(visible=True)
    panel.get_by_role("button", name=BUTTONS[title], exact=True).wait_for()
    return panel


def set_steps(panel, steps):
    panel.get_by_role("spinbutton", name="Steps").fill(str(steps))


def start(panel, title):
    panel.get_by_role("button", name=BUTTONS[title], exact=True).click()


def status(panel, text):
    return panel.get_by_role("status").filter(has_text=text)


def take_example(panel):
    panel.locator(".gallery-item").first.click()


def error_text(page):
    toast = page.get_by_test_id("toast-body")
    toast.first.wait_for()
    return toast.first.inner_text()


@pytest.mark.parametrize("title", BUTTONS)
def test_every_tab_gives_a_result(page, monkeypatch, title):
    monkeypatch.setattr(likelihood, "TIMES", [0.5])
    panel = open_tab(page, title)
    if panel.get_by_role("spinbutton", name="Steps").count():
        set_steps(panel, 10)
    if title in WITH_EXAMPLES:
        take_example(panel)
        panel.get_by_role("button", name="Remove Image").or_(
            panel.get_by_role("button", name="Clear canvas")
        ).wait_for()
    if title == "Inpaint":
        paint(page, panel)
    if title == "Interpolate":
        panel.get_by_role("spinbutton", name="Images").fill("3")
    if title == "Likelihood":
        panel.get_by_role("spinbutton", name="Probes").fill("1")
    start(panel, title)
    status(panel, "Done: ").wait_for()
    if title == "Likelihood":
        panel.get_by_text("bits/dim").first.wait_for()
        panel.locator("svg.marks, canvas.marks").wait_for()
    elif title == "Forward and reverse":
        width = panel.locator(".strip img").evaluate("image => image.decode().then(() => image.naturalWidth)")
        assert width > 900
    else:
        panel.locator(".results img").first.wait_for()
        assert panel.locator(".results img").count() == {"Interpolate": 3, "Colorize": 5}.get(title, 4)


def paint(page, panel):
    """A stroke over the middle of the image."""
    page.wait_for_timeout(1000)  # the editor draws the image after it has it
    box = panel.locator("canvas").last.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 60, y)
    page.mouse.down()
    page.mouse.move(x + 60, y, steps=5)
    page.mouse.up()
    page.wait_for_timeout(300)


def test_the_tabs_are_those_of_this_test(page):
    assert set(TABS) == set(BUTTONS)
    assert [tab.inner_text() for tab in page.get_by_role("tab").all() if tab.is_visible()] == list(TABS)


@pytest.mark.parametrize("title", ["Generate", "Inpaint", "Likelihood"])
def test_fields_have_names_for_screen_readers(page, title):
    panel = open_tab(page, title)
    nameless = panel.evaluate(
        """panel => [...panel.querySelectorAll("input, textarea, select, button")]
            .filter(field => field.offsetParent !== null && field.type !== "file")
            .filter(field => !(field.getAttribute("aria-label") || field.getAttribute("aria-labelledby")
                || field.title || field.innerText || field.closest("label")
                || field.querySelector("img[alt]")
                || (field.id && panel.querySelector(`label[for="${field.id}"]`))))
            .map(field => field.outerHTML.slice(0, 200))"""
    )
    assert nameless == []


@pytest.mark.parametrize("moment", ["before the first step", "while it runs"])
def test_stop_ends_the_run_at_once(page, evaluations, moment):
    panel = open_tab(page, "Generate")
    set_steps(panel, 1000)
    start(panel, "Generate")
    if moment == "while it runs":
        status(panel, "Running: ").wait_for()
        page.wait_for_timeout(600)
    panel.get_by_role("button", name="Stop").click()
    status(panel, "Stopped").wait_for()
    made = settled(evaluations)
    page.wait_for_timeout(1000)
    assert len(evaluations) == made < 1000
    assert status(panel, "Stopped").count() == 1
    set_steps(panel, 10)  # and the next run is as any other
    start(panel, "Generate")
    status(panel, "Done: 20 network evaluations").wait_for()


def test_leaving_the_page_ends_the_run(browser, address, evaluations):
    context = browser.new_context()
    page = context.new_page()
    page.goto(address)
    panel = open_tab(page, "Generate")
    set_steps(panel, 1000)
    start(panel, "Generate")
    status(panel, "Running: ").wait_for()
    context.close()
    made = settled(evaluations, seconds=20)
    time.sleep(1)
    assert len(evaluations) == made < 1500


def settled(calls, seconds=5):
    """Number of calls when it has not grown for half a second."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        made = len(calls)
        time.sleep(0.5)
        if len(calls) == made:
            return made
    raise AssertionError(f"the network is still evaluated, {len(calls)} times so far.")


def test_an_upload_that_is_no_image_is_refused(fresh_page, tmp_path):
    (tmp_path / "notes.png").write_text("no image")
    panel = open_tab(fresh_page, "Edit")
    panel.get_by_test_id("file-upload").first.set_input_files(tmp_path / "notes.png")
    panel.get_by_role("button", name="Remove Image").wait_for()
    start(panel, "Edit")
    assert "not a picture that can be read" in error_text(fresh_page)


def test_a_huge_image_is_refused(fresh_page, tmp_path):
    Image.new("L", (6000, 6000)).save(tmp_path / "huge.png")
    panel = open_tab(fresh_page, "Likelihood")
    panel.get_by_test_id("file-upload").first.set_input_files(tmp_path / "huge.png")
    panel.get_by_role("button", name="Remove Image").wait_for()
    start(panel, "Likelihood")
    assert "at most 16.8 million" in error_text(fresh_page)


def test_a_model_that_is_not_there_is_said(fresh_page):
    panel = open_tab(fresh_page, "Generate")
    field = panel.get_by_role("combobox", name="Model")
    field.fill("no-such/model")
    field.press("Enter")
    text = error_text(fresh_page)
    assert "'no-such/model' cannot be loaded" in text
    assert "Choose an embedded model" in text


def test_choosing_a_model_shows_its_sde_and_sampler(page):
    panel = open_tab(page, "Generate")
    panel.get_by_text("VE SDE").wait_for()
    field = panel.get_by_role("combobox", name="Model")
    field.click()
    page.get_by_role("option", name=CIFAR).click()
    panel.get_by_text("VP SDE").wait_for()
    panel.get_by_role("button", name="Predictor and corrector").click()
    assert panel.get_by_role("combobox", name="Predictor").input_value() == "euler_maruyama"


def test_ten_users_at_once_get_each_their_own(address):
    """All at the same time on one network, some of them wrongly; every image as of the pipeline alone."""
    pipeline = ScoreSdePipeline.from_pretrained(embedded_model_path())
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, corrector="none")
    pipeline.set_progress_bar_config(disable=True)
    clients, answers, gate = [Client(address, verbose=False) for _ in range(10)], [None] * 10, threading.Barrier(10)

    def use(i):
        gate.wait()
        model = FASHION if i < 9 else "no-such/model"
        settings = (model, METHODS[0], 1, i, 10 + i % 3, "reverse_diffusion", "none", 0.16)
        try:
            gallery, line = clients[i].predict(*settings, api_name="/generate")
            answers[i] = np.asarray(Image.open(gallery[0]["image"])), line
        except Exception as error:
            answers[i] = str(error)

    threads = [threading.Thread(target=use, args=(i,)) for i in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "cannot be loaded" in answers[9]
    for i in range(9):
        image, line = answers[i]
        call = {"num_inference_steps": 10 + i % 3, "generator": image_generators(i, [0])}
        assert np.array_equal(image, pipeline(**call).images[0])
        assert f"Done: {10 + i % 3} network evaluations" in line


def test_a_client_without_a_browser_is_refused_likewise(address, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    client = Client(address, verbose=False)
    settings = (FASHION, handle_file(str(tmp_path / "notes.txt")), 1, 0)
    with pytest.raises(Exception, match="not a picture that can be read"):
        client.predict(*settings, api_name="/likelihood")


def test_example_files_are_there():
    assert len(list(Path(__file__).parents[2].glob("spaces/examples/*.png"))) >= 12
