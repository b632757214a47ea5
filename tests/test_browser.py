"""The panel in a real browser: JupyterLab, Chromium, and hands on the controls.

Screenshots of each tab, light and dark, are left in ``out/screenshots``.
"""

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab
from playwright.sync_api import Page, expect, sync_playwright

ROOT = Path(__file__).parent.parent
SHOTS = ROOT / "out/screenshots"
PATIENCE = 240_000
"""Milliseconds that a slow machine may take for what takes a second or two."""

pytestmark = pytest.mark.timeout(900)

USABLE = 30.0
"""Seconds from Run All to a loaded model: three times the bar of 10, for a machine that is busy.

The figure itself is printed; `bench/playground.py` measures a fresh Python, which is not the same.
"""
UPDATES = 2.0
"""Changes of the progress bar in a second of drawing."""

_WATCH = """() => {
  window.seen = [];
  window.moments = [];
  window.captions = [];
  const bar = document.querySelector('.sg-progress .progress-bar');
  new MutationObserver(() => {
    window.seen.push(parseFloat(bar.style.width));
    window.moments.push(performance.now() / 1000);
  })
    .observe(bar, {attributes: true});
  const caption = document.querySelector('.sg-caption');
  new MutationObserver(() => window.captions.push(caption.textContent))
    .observe(caption, {childList: true, characterData: true, subtree: true});
}"""
_IS_UNDER_WAY = """() => {
  const width = parseFloat(document.querySelector('.sg-progress .progress-bar').style.width);
  return 0 < width && width < 100;
}"""
_HAS_KERNEL = """() => {
  const kernel = window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel;
  return kernel?.connectionStatus === 'connected' && kernel.status === 'idle';
}"""
_FAINT = """() => {
  const parse = text => {
    const numbers = text.match(/[\\d.]+/g).map(Number);
    return text.startsWith('color(') ? [...numbers.slice(0, 3).map(v => v * 255), numbers[3] ?? 1]
      : [...numbers.slice(0, 3), numbers[3] ?? 1];
  };
  const behind = element => {
    for (; element; element = element.parentElement) {
      const colour = parse(getComputedStyle(element).backgroundColor);
      if (colour[3] > 0) return colour;
    }
    return [255, 255, 255, 1];
  };
  const light = ([r, g, b]) => [[r, .2126], [g, .7152], [b, .0722]]
    .reduce((sum, [v, share]) => sum + share * (v / 255) ** 2.2, .05);
  const words = element => [...element.childNodes]
    .filter(node => node.nodeType === 3).map(node => node.data.trim()).join('');
  return [...document.querySelectorAll('.sg-panel *')]
    .filter(e => !['STYLE', 'OPTION'].includes(e.tagName) && e.checkVisibility())
    .filter(e => words(e) && !e.closest('[disabled]'))
    .map(e => {
      const back = behind(e), front = parse(getComputedStyle(e).color);
      const seen = front.map((v, i) => v * front[3] + back[i] * (1 - front[3]));
      const [low, high] = [light(seen), light(back)].sort((a, b) => a - b);
      return [words(e).slice(0, 40), high / low];
    })
    .filter(([, ratio]) => ratio < 3);
}"""
_RUN = """code => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel
  .requestExecute({code}).done.then(reply => reply.content.status)"""
_SLOW = """
import time
from stylegen.playground.press import below, value_trait

slow = True
for field in below(playground.view):
    if value_trait(field):
        field.observe(lambda _: time.sleep(0.1 if slow else 0), value_trait(field))
"""
_SIZE = "image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])"


@pytest.fixture(name="page", scope="module")
def _page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The playground's notebook, opened, run, and its model loaded."""
    chromium = shutil.which("chromium")
    assert chromium, "chromium is not installed: run tools/ensure_packages.sh"
    folder = tmp_path_factory.mktemp("lab") / "nbs"
    (folder / "guides").mkdir(parents=True)
    shutil.copy(ROOT / "nbs/guides/playground.ipynb", folder / "guides")
    with Lab(folder) as lab, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1360, "height": 1500})
        page.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        page.goto(lab.url("guides/playground.ipynb"))
        page.locator(".jp-Notebook .jp-Cell").first.wait_for()
        run_all(page)
        yield page
        browser.close()


def run_all(page: Page) -> None:
    """Run the notebook by the menu, and wait until a click draws: soon, on a free machine."""
    page.wait_for_function(_HAS_KERNEL)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator("[data-command='runmenu:run-all']").click()
    started = time.monotonic()
    expect(page.locator(".sg-state")).to_contain_text("ready")
    seconds = time.monotonic() - started
    print(f"usable {seconds:.1f} s after Run All in the browser; the bar is 10 s")
    assert seconds <= USABLE
    page.locator(".sg-generate").click()
    expect(page.locator(".sg-status").first).to_contain_text("Done: 1 picture in")
    page.locator(".sg-panel").scroll_into_view_if_needed()


def show(page: Page, tab: str) -> None:
    """Open one of the panel's tabs."""
    page.locator(".sg-tabs [role=tab]", has_text=tab).click()


def fill(page: Page, name: str, text: str) -> None:
    """Type into a field and leave it."""
    field = page.locator(f".sg-{name} input")
    field.fill(text)
    field.press("Enter")
    field.press("Tab")


def choose(page: Page, seed: int, lora: str, aspect: str, count: int = 1) -> None:
    """Set the controls as a person does."""
    show(page, "Draw")
    fill(page, "seed", str(seed))
    page.locator(".sg-lora select").select_option(lora)
    page.locator(".sg-aspect button", has_text=aspect).click()
    fill(page, "count", str(count))


def draw(page: Page, seed: int, lora: str, aspect: str) -> None:
    """Draw one picture and wait for it."""
    choose(page, seed, lora, aspect)
    page.locator(".sg-generate").click()
    expect(page.locator(".sg-caption").first).to_contain_text(f"{lora}, seed {seed}, ")
    expect(page.locator(".sg-stop")).to_be_disabled()
    expect(page.locator(".sg-status").first).to_contain_text("Done: 1 picture in")


def test_generate(page: Page) -> None:
    """Seed, LoRA and aspect ratio are changed; progress moves; the picture has their pixels."""
    choose(page, 0, "neon", "1:2")
    page.evaluate(_WATCH)
    page.locator(".sg-generate").click()
    page.wait_for_function(_IS_UNDER_WAY)  # the status still speaks of the picture before
    expect(page.locator(".sg-status").first).to_contain_text("Done: 1 picture in")
    widths, captions = page.evaluate("() => [window.seen, window.captions]")
    assert widths[-1] == 100 and widths == sorted(widths) and len(set(widths)) > 1
    moments = page.evaluate("() => window.moments")
    rate = (len(set(widths)) - 1) / (moments[-1] - moments[0])
    print(f"{rate:.1f} updates a second")
    assert rate >= UPDATES
    assert any("a preview" in caption for caption in captions)
    assert page.locator(".sg-picture").first.evaluate(_SIZE) == [512, 1024]
    expect(page.locator(".sg-caption").first).to_have_text("neon, seed 0, 512×1024, 25 steps")


def test_stop(page: Page) -> None:
    """A second run is stopped while it draws, and the panel draws on."""
    choose(page, 1, "mosaic", "1:1", count=12)
    page.locator(".sg-generate").click()
    page.wait_for_function(_IS_UNDER_WAY)
    page.locator(".sg-stop").click()
    status = page.locator(".sg-status").first
    expect(status).to_have_text(re.compile(r"Stopped; \d+ of 12 pictures kept\."))
    expect(page.locator(".sg-stop")).to_be_disabled()
    draw(page, 2, "mosaic", "1:1")


def test_grid(page: Page) -> None:
    """Two LoRAs by two seeds: the cost first, then one labelled sheet."""
    draw(page, 3, "neon", "1:1")  # so that the pace is known
    show(page, "Compare")
    for axis, name, values in (("x", "lora", "watercolour, mosaic"), ("y", "seed", "0, 1")):
        page.locator(f".sg-{axis}-axis select").select_option(name)
        expect(page.locator(f".sg-{axis}-values input")).not_to_have_value("")  # a suggestion
        fill(page, f"{axis}-values", values)
    expect(page.locator(".sg-estimate")).to_contain_text("4 pictures, about")
    page.locator(".sg-draw-grid").click()
    expect(page.locator(".sg-status").first).to_contain_text("Done: 4 pictures in")
    expect(page.locator(".sg-estimate")).to_contain_text("4 of 4 are there")
    assert page.locator(".sg-sheet").evaluate(_SIZE) == [110 + 2 * 198, 30 + 2 * 198 + 6]


def test_recall(page: Page) -> None:
    """A click in the gallery sets the controls as they were."""
    draw(page, 11, "hatching", "2:2")
    draw(page, 12, "neon", "1:1")
    show(page, "History")
    page.locator(".sg-gallery .sg-tile[title*='seed 11, 768×768']").click()
    expect(page.locator(".sg-status").first).to_contain_text("Recalled")
    show(page, "Draw")
    expect(page.locator(".sg-seed input")).to_have_value("11")
    expect(page.locator(".sg-lora select")).to_have_value("hatching")
    expect(page.locator(".sg-aspect button.mod-active")).to_contain_text("2:2")


def test_typed_and_pressed_at_once(page: Page) -> None:
    """What is typed and chosen is what is drawn, 16 of 16, though the kernel is slow to hear it."""
    show(page, "Draw")
    steps = page.locator(".sg-steps .widget-readout")
    steps.fill("1")
    steps.press("Enter")
    assert page.evaluate(_RUN, _SLOW) == "ok"
    wrong = []
    for turn in range(16):
        lora, ratio = ("neon", "hatching", "mosaic")[turn % 3], ("1:1", "1:2")[turn % 2]
        before = page.locator(".sg-caption").first.text_content()
        choose(page, 1000 + turn, lora, ratio)
        page.locator(".sg-generate").click()
        expect(page.locator(".sg-caption").first).not_to_have_text(before or "")
        size = {"1:1": "512×512", "1:2": "512×1024"}[ratio]
        caption = page.locator(".sg-caption").first.text_content() or ""
        wrong += [] if caption.startswith(f"{lora}, seed {1000 + turn}, {size}, 1 ") else [caption]
    page.evaluate(_RUN, "slow = False")
    steps.fill("25")
    steps.press("Enter")
    assert wrong == []


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_screenshots(page: Page, theme: str) -> None:
    """Text stands out from what is behind it, in either theme; each tab is kept as a picture."""
    command = "theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})"
    page.evaluate(command, theme)
    expect(page.locator(f"body[data-jp-theme-name='{theme}']")).to_have_count(1)
    draw(page, 3 if theme.endswith("Light") else 4, "hatching", "1:1")
    SHOTS.mkdir(parents=True, exist_ok=True)
    for tab in ("Draw", "Compare", "History"):
        show(page, tab)
        assert page.evaluate(_FAINT) == []
        page.locator(".sg-panel").screenshot(path=SHOTS / f"{tab}-{theme[11:]}.png".lower())
