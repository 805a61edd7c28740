"""The page of `uad report`: in a real browser where there is one, and as text."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import tiny_info

pytest.importorskip("jinja2", reason="jinja2 is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from engines.metadata import OUTPUTS
from uad.data.folder import Sample
from uad.evaluation.evaluate import Evaluation, ScoredImage
from uad.evaluation.metrics import PixelCurve
from uad.report.collect import Judged, Mistake
from uad.report.page import render

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NASTY = "<script>alert(1)</script>"
PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACw="
GOOD, DEFECTS = [1.0, 2.0, 3.0, 6.0], [2.5, 5.0, 7.0]
LOW, HIGH = 0.88, 7.12  # of a histogram: the scores from 1 to 7, and a fiftieth more on each side
FACTS = {"machine": "a test", "Python": "3"}


def judged(
    name: str,
    classes: tuple[str, ...] = ("nut", NASTY),
    reference: bool = False,
    defects: Sequence[float] = DEFECTS,
) -> Judged:
    """A model that gave `GOOD` and `defects` their scores, at a threshold of 4."""
    images = []
    for class_name in classes:
        for index, score in enumerate([*GOOD, *defects]):
            kind = "good" if index < len(GOOD) else "spot"
            image = ScoredImage(Sample(Path(f"{class_name[1:4]}{index}.png"), class_name, kind), score, 4.0)
            image.reference_score = score * 1.1 if reference else None
            images.append(image)
    curve = PixelCurve()
    mask = np.zeros((8, 8), bool)
    mask[2:4, 2:4] = True
    curve.update(np.random.default_rng(0).random((8, 8), np.float32) + mask, mask)
    figures: dict[str, Any] = {"image_auroc": 0.8, "pixel_auroc": 0.9, "aupro": None, "image_f1": 0.7}
    if reference:
        figures["agreement"] = {"spearman": 0.99, "flipped": 0.125}
    each = {name: {**figures, "n_good": len(GOOD), "n_bad": len(DEFECTS)} for name in classes}
    evaluation = Evaluation({**figures, "classes": each, "unknown_classes": {}}, images, {classes[0]: curve})
    mistake = [Mistake(images[4], PIXEL)]
    timing = {"latency_ms": dict.fromkeys(("p50", "p90", "p99"), 5.0), "ram_mb": 100.0, "ram_peak_mb": 110.0}
    timing.update(model=name, runtime="r", precision="fp32", images_per_second=200.0, ratio_to_first=1.0, file_mb=1.0)
    timing.update(load_s=0.5, device_mem_mb=None, parts_ms=None, unified_mb=None)
    info = tiny_info(classes=list(classes), thresholds=dict.fromkeys(classes, 4.0))
    return Judged(name, info, "onnxruntime", 1.0, evaluation, mistake, [], timing)


@pytest.fixture(scope="module")
def html() -> str:
    return render([judged("fp32.onnx"), judged(f"int8{NASTY}.onnx", reference=True)], FACTS)


class Found(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "action", "data"):
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")


def test_the_page_names_no_address_and_no_id_twice(html: str) -> None:
    found = Found()
    found.feed(html)
    assert found.addresses and all(address.startswith(("data:", "#")) for address in found.addresses)
    assert len(found.ids) == len(set(found.ids)) and found.tags.count("script") == 2
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org/)", html)


def test_names_are_text(html: str) -> None:
    assert "<script>alert" not in html and "&lt;script&gt;alert(1)&lt;/script&gt;" in html


def test_the_same_figures_give_the_same_page(html: str) -> None:
    assert render([judged("fp32.onnx"), judged(f"int8{NASTY}.onnx", reference=True)], FACTS) == html


def test_the_run_is_told_in_a_paragraph(html: str) -> None:
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", html))
    assert "judges 2 kinds of parts" in text and "its image AUROC is 0.800" in text
    assert "It misses 2 of 6 defects and calls 2 of 8 good parts defective" in text


def test_who_is_seen_as_another_and_who_is_unknown_is_told(html: str) -> None:
    assert "as another kind of part" not in html  # a file that tells no class
    one = judged("a.onnx")
    info = dataclasses.replace(one.info, outputs=list(OUTPUTS), limits={"nut": 1.05})
    images = [dataclasses.replace(each, seen_as=each.sample.class_name) for each in one.evaluation.images]
    images[0] = dataclasses.replace(images[0], seen_as="cog")
    images[1:3] = [dataclasses.replace(each, is_unknown=True) for each in images[1:3]]
    evaluation = dataclasses.replace(one.evaluation, images=images)
    text = render([dataclasses.replace(one, info=info, evaluation=evaluation)], FACTS)
    assert "It sees 1 of them as another kind of part, and calls 2 of all images unknown." in text


@pytest.mark.parametrize("name", ["_hidden", "50 $ and 60 $", "ü & <b>"])
def test_a_class_of_any_name_stands_in_every_figure(name: str) -> None:
    html = render([judged("a.onnx", ("nut", name))], FACTS)
    escaped = name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert html.count(escaped) >= 3 and "<b>" not in html  # the table, the thresholds, the curves


def test_a_model_without_defects_masks_or_timing_has_a_page() -> None:
    one = judged("a.onnx", ("nut",))
    good = [image for image in one.evaluation.images if not image.sample.is_defect]
    report = {
        **dict.fromkeys(("image_auroc", "pixel_auroc", "aupro", "image_f1")),
        "classes": {},
        "unknown_classes": {},
    }
    report["classes"]["nut"] = {**report, "n_good": 4, "n_bad": 0}
    bare = dataclasses.replace(one, evaluation=Evaluation(report, good, {}), misses=[], timing=None)
    html = render([bare], FACTS)
    assert "image AUROC is not known" in re.sub(r"\s+", " ", html) and "Speed and size" not in html


# In a browser ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(browser: Any, html: str, folder: Path, **settings: Any) -> tuple[Any, list[str]]:
    """A page, and what went wrong or was asked for since it was opened."""
    path = folder / "report.html"
    path.write_text(html, encoding="utf-8")
    page, said = browser.new_page(**settings), []
    page.on("console", lambda message: said.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: said.append(f"request: {request.url}"))
    page.goto(path.as_uri())
    asked = [line for line in said if not line.startswith(f"request: {path.as_uri()}")]
    return page, [line for line in asked if not line.startswith("request: data:")]


def move(slider: Any, place: float) -> None:
    """To this part of its way."""
    slider.evaluate(f"slider => {{ slider.value = {place}; slider.dispatchEvent(new Event('input')); }}")


def counts(section: Any) -> list[int]:
    return [int(section.locator(name).inner_text()) for name in (".gg", ".gd", ".dg", ".dd")]


def test_nothing_is_fetched_and_nothing_goes_wrong(browser: Any, html: str, tmp_path: Path) -> None:
    page, said = opened(browser, html, tmp_path)
    assert said == []
    assert page.locator("h3", has_text="alert").first.inner_text() == NASTY
    page.close()


def test_the_slider_moves_the_numbers(browser: Any, html: str, tmp_path: Path) -> None:
    page, _ = opened(browser, html, tmp_path)
    section = page.locator("section.threshold").nth(1)
    assert counts(section) == [3, 1, 1, 2]  # at the threshold of the file
    slider = section.locator("input")
    for threshold, expected in ((6.5, [4, 0, 2, 1]), (1.5, [1, 3, 0, 3])):
        move(slider, (threshold - LOW) / (HIGH - LOW))
        assert counts(section) == expected
        assert (
            float(section.locator("output").inner_text()) == threshold == float(slider.get_attribute("aria-valuetext"))
        )
    assert counts(page.locator("section.threshold").nth(0)) == [3, 1, 1, 2]  # each class has its own
    page.close()


def test_the_keyboard_reaches_the_slider(browser: Any, html: str, tmp_path: Path) -> None:
    page, _ = opened(browser, html, tmp_path)
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.type") == "range":
            break
    before = float(page.locator("output").first.inner_text())
    page.keyboard.press("End")
    assert float(page.locator("output").first.inner_text()) > before
    assert counts(page.locator("section.threshold").first) == [4, 0, 3, 0]
    page.close()


def test_the_mark_stands_at_the_threshold(browser: Any, html: str, tmp_path: Path) -> None:
    page, _ = opened(browser, html, tmp_path)
    section = page.locator("section.threshold").first
    place = "e => { const r = e.getBoundingClientRect(); return r.x + r.width / 2; }"
    mark, box = section.locator(".mark").evaluate(place), section.locator("svg").bounding_box()
    assert mark == pytest.approx(box["x"] + box["width"] * (0.12 + 0.85 * (4 - LOW) / (HIGH - LOW)), abs=2)
    page.close()


def test_scores_with_a_long_tail_have_a_logarithmic_axis(browser: Any, tmp_path: Path) -> None:
    page, said = opened(browser, render([judged("a.onnx", ("nut",), defects=[4.0, 5.0, 935.0])], FACTS), tmp_path)
    section = page.locator("section.threshold")
    assert said == [] and float(section.locator("output").inner_text()) == 4.0
    assert counts(section) == [3, 1, 1, 2]  # exp(log(4)) is less than 4 here, and what lies at the threshold not above
    move(section.locator("input"), 0.5)  # half of the way from 1 to 935 is the root of their product
    assert float(section.locator("output").inner_text()) == pytest.approx(935**0.5, rel=1e-3)
    assert counts(section) == [4, 0, 2, 1]
    page.close()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_it_fits_a_phone_and_a_desk_in_the_light_and_in_the_dark(
    width: int, scheme: str, browser: Any, html: str, tmp_path: Path
) -> None:
    page, said = opened(browser, html, tmp_path, viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width and said == []
    style = "(name, property) => getComputedStyle(document.querySelector(name))[property].match(/\\d+/g).map(Number)"
    colour = lambda name, what: sum(page.evaluate(f"({style})('{name}', '{what}')")[:3])  # noqa: E731
    back, text, drawn = (colour(*each) for each in (("body", "backgroundColor"), ("body", "color"), ("svg", "color")))
    assert (back > 600 and text < 150) if scheme == "light" else (back < 150 and text > 600)
    assert drawn == text
    page.close()
