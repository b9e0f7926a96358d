"""The page as a browser sees it: nothing breaks, nothing is fetched, every picture loads, the slider shows training."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import Browser

LOUD = {"Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"}
SHOWN = "[...document.querySelectorAll('.player img')].map(i => i.src).join()"


@pytest.mark.parametrize("page", ["one_page", "two_runs_page"])
def test_opens_in_silence_and_every_picture_loads(browser: Browser, page: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(page)
    browser.open(path)
    assert browser.run("document.images.length") > 40
    assert browser.run("[...document.images].every(i => i.complete && i.naturalWidth > 0 && i.alt)")
    assert [e for e in browser.events if e["method"] in LOUD] == []
    requested = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in requested if not url.startswith("data:")] == [path.resolve().as_uri()]


def test_hostile_names_are_only_text(browser: Browser, one_page: Path) -> None:
    browser.open(one_page)
    # A source is titled by its last path component.
    assert browser.run("document.querySelector('h1').textContent").startswith("script>")
    assert "broken" in browser.run("document.querySelector('.command code').textContent")
    assert browser.run("document.title") != "broken"
    assert browser.run("document.querySelectorAll('script').length") == 2
    assert browser.run("document.querySelectorAll('img[src=x], b').length") == 0


def test_the_slider_shows_another_moment(browser: Browser, one_page: Path) -> None:
    browser.open(one_page)
    slider = "document.querySelector('.player input')"
    assert browser.run(f"[{slider}.value, {slider}.max]") == ["2", "2"]
    last, label = browser.run(SHOWN), browser.run("document.querySelector('.player output').textContent")
    assert label.startswith("step 3,000 · 192k images · 27 min 30 s")

    browser.run(f"{slider}.value = 0; {slider}.dispatchEvent(new Event('input', {{bubbles: true}}))")
    first = browser.run(SHOWN)
    assert browser.run("document.querySelector('.player output').textContent").startswith("step 1,000")
    assert all(a != b for a, b in zip(first.split(",data"), last.split(",data")))
    # The moment is marked in the curves of this run: at a third of the images, left of where the last one is.
    marks = "[...document.querySelectorAll('.moment.set')].map(l => l.transform.baseVal[0].matrix.e)"
    early = browser.run(marks)
    assert early

    browser.run("document.querySelector('.player').focus()")
    browser.press("ArrowRight")
    assert browser.run(f"{slider}.value") == "1"
    assert all(a < b for a, b in zip(early, browser.run(marks)))
    browser.press("ArrowRight")
    browser.press("ArrowRight")  # stays at the end
    assert browser.run(f"{slider}.value") == "2"
    assert browser.run(SHOWN) == last
    # With the focus in the slider itself an arrow is one step, not two.
    browser.run(f"{slider}.focus()")
    browser.press("ArrowLeft")
    assert browser.run(f"{slider}.value") == "1"
    assert browser.run(SHOWN) not in (first, last)


def test_play_runs_from_the_start_to_the_end_and_stops(browser: Browser, one_page: Path) -> None:
    browser.open(one_page)
    last = browser.run(SHOWN)
    browser.click(".play")
    assert browser.run("document.querySelector('.play').getAttribute('aria-label')") == "Pause"
    assert browser.run(SHOWN) != last
    ended = (
        "new Promise(done => { const look = () => document.querySelector('.play').getAttribute('aria-label') === 'Play' "
        "? done(true) : setTimeout(look, 50); look(); })"
    )
    assert browser.run(ended)
    assert browser.run(SHOWN) == last


def test_one_slider_moves_two_runs_at_equal_time(browser: Browser, two_runs_page: Path) -> None:
    browser.open(two_runs_page)
    sources = "[...document.querySelectorAll('#race .screen')].map(s => [...s.querySelectorAll('img')].map(i => i.src).join())"
    assert browser.run("document.querySelectorAll('#race .screen').length") == 2
    before = browser.run(sources)
    browser.run("document.querySelector('#race .player').focus()")
    for _ in range(5):
        browser.press("ArrowLeft")
    after = browser.run(sources)
    assert before[0] != after[0]
    assert browser.run("document.querySelector('#race input').value") == "0"


def test_a_click_shows_one_sample_at_every_resolution(browser: Browser, one_page: Path) -> None:
    browser.open(one_page)
    browser.click(".wall img", across=0.99)
    assert browser.run("document.querySelector('dialog').open")
    sizes = "[...document.querySelectorAll('dialog canvas')].map(c => c.width)"
    assert browser.run(sizes) == [8, 16, 32, 64]
    assert browser.run("document.querySelector('dialog p').textContent") == "Sample 8"
    # The last pixel is inside the picture, not in a gap.
    pixel = "document.querySelector('dialog canvas').getContext('2d').getImageData(7, 7, 1, 1).data[3]"
    assert browser.run(pixel) == 255
    browser.press("ArrowRight")
    assert browser.run("document.querySelector('dialog p').textContent") == "Sample 9"
    browser.press("Escape")
    assert not browser.run("document.querySelector('dialog').open")


@pytest.mark.parametrize("width", [360, 768, 1360])
def test_nothing_sticks_out_of_the_window(browser: Browser, one_page: Path, width: int) -> None:
    browser.open(one_page, width=width)
    assert browser.run("document.documentElement.scrollWidth") <= width


def test_columns_line_up_from_coarse_to_fine(browser: Browser, one_page: Path) -> None:
    browser.open(one_page)
    edges = browser.run(
        "[...document.querySelectorAll('.wall')[0].querySelectorAll('img')].map(i => { const b = i.getBoundingClientRect(); "
        "return [0, 1, 7].map(c => b.left + b.width * c * i.dataset.pitch / i.naturalWidth); })"
    )
    for row in edges[1:]:
        assert row == pytest.approx(edges[0], abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_curves_stand_out(browser: Browser, one_page: Path, scheme: str) -> None:
    """WCAG contrast of text (4.5) and of the palette's lines (3) against the page, in both colour schemes."""
    browser.open(one_page, scheme=scheme)
    read = "getComputedStyle(document.documentElement).getPropertyValue"
    names = ["page", "ink", "quiet", "accent", *(f"c{i}" for i in range(8))]
    colours = {
        name: browser.run(f"{read}.call(getComputedStyle(document.documentElement), '--{name}').trim()")
        for name in names
    }

    def luminance(colour: str) -> float:
        channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(name: str) -> float:
        low, high = sorted((luminance(colours[name]), luminance(colours["page"])))
        return (high + 0.05) / (low + 0.05)

    assert min(contrast(name) for name in ("ink", "quiet", "accent")) >= 4.5
    assert min(contrast(f"c{i}") for i in range(8)) >= 3.0
