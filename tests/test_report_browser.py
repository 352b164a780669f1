"""The page of `report` in a browser: nothing fails, nothing is cut off, and its switches do what they say.

Skipped where there is no Chromium with its driver.
"""

import shutil

import pytest
from synthetic_runs import LOSSES, write_run, write_table_of_runs

from replication.analysis.arms import ARMS, head_of, label
from replication.cli import main

webdriver = pytest.importorskip("selenium.webdriver")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="no Chromium with its driver")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_table_of_runs(folder)
    assert main(["report", "--results", str(folder), "--out", str(folder / "report.html")]) == 0
    return (folder / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def shown(browser, address):
    """shown(width, scheme) -> the browser with the page open; whatever its console says fails the test."""

    def show(width=1400, scheme="light", where=address):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        browser.get(where)
        return browser

    yield show
    assert browser.get_log("browser") == []


SCALES = """return [...document.querySelectorAll(".panel svg")].filter((one) => one.viewBox.baseVal.width > 200)
    .map((one) => one.getBoundingClientRect().width / one.viewBox.baseVal.width)"""  # of panels with axes: 1 as drawn


def choose(browser, name, value):
    script = "const [name, value] = arguments, one = document.getElementById(name); one.value = value;"
    for event in ("input", "change"):
        script += f'one.dispatchEvent(new Event("{event}", {{bubbles: true}}));'
    browser.execute_script(script, name, value)


def visible(browser, selector):
    """The text of each element that can be seen."""
    found = "[...document.querySelectorAll(arguments[0])].filter((one) => one.getClientRects().length)"
    return browser.execute_script(f"return {found}.map((one) => one.textContent.trim())", selector)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [420, 1400])
def test_nothing_is_wider_than_the_screen_or_cut_off(width, scheme, shown):
    browser = shown(width, scheme)
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    outside = """return [...document.querySelectorAll("svg text, p, .switches *, figure, canvas")].filter((one) => {
        const box = one.getBoundingClientRect(), frame = (one.ownerSVGElement ?? document.body).getBoundingClientRect();
        return box.width && (box.left < frame.left - 1 || box.right > frame.right + 1);
    }).map((one) => one.textContent)"""
    assert browser.execute_script(outside) == []
    assert browser.execute_script(SCALES) == pytest.approx([1] * len(browser.execute_script(SCALES)), abs=0.01)


def test_a_single_run_is_shown_too(shown, tmp_path):
    write_run(tmp_path / "small" / "dense" / "seed-0", "dense", 0, 4.0)
    assert main(["report", "--results", str(tmp_path), "--out", str(tmp_path / "report.html")]) == 0
    browser = shown(where=(tmp_path / "report.html").as_uri())
    assert visible(browser, "#at-step")[0].startswith("dense, step") and len(browser.execute_script(SCALES)) > 8
    assert browser.execute_script(SCALES) == pytest.approx([1] * len(browser.execute_script(SCALES)), abs=0.01)


def test_every_picture_says_what_it_shows(shown):
    browser = shown()
    pictures = """return [...document.querySelectorAll("svg, canvas, img")]
        .filter((one) => one.getAttribute("aria-hidden") !== "true")
        .map((one) => [one.getAttribute("role"), one.getAttribute("aria-label")])"""
    found = browser.execute_script(pictures)
    assert len(found) > 20 and all(role == "img" and len(said) > 20 for role, said in found)
    drawn = """return [...document.querySelectorAll("[data-figure]")]
        .map((one) => one.querySelectorAll("svg, canvas").length)"""
    counts = browser.execute_script(drawn)
    assert len(counts) == 12 and all(counts)


def test_the_convention_changes_every_number_of_times_and_the_axes(shown):
    browser = shown()
    cells = "#table1-rows tbody td:nth-child(2) span"
    before, axes = visible(browser, cells), visible(browser, "#figure-loss_curves text.quiet")
    claims = visible(browser, "#verdicts h3")
    choose(browser, "convention", "blocks_only")
    after = visible(browser, cells)
    assert len(before) == len(after) == len(LOSSES) and before[0] == after[0] == "1.00×" and before[-1] != after[-1]
    assert after[-1] in " ".join(visible(browser, "#figure-conventions svg text"))
    assert visible(browser, "#figure-loss_curves text.quiet") != axes
    assert "training FLOPs (blocks only)" in visible(browser, "#figure-loss_curves text.quiet")
    assert visible(browser, "#verdicts h3") == claims and "(head_counted_full)" in claims[0]
    assert "(blocks only)" in visible(browser, "#figure-flops_by_step h3 span")[0]
    assert "blocks only" in visible(browser, "#at-step")[0] and "blocks only" in visible(browser, "#said")[0]


def test_the_reading_of_the_head_changes_which_arms_are_shown(shown):
    browser = shown()
    choose(browser, "head", "dense")
    arms = visible(browser, "#table1-rows tbody th")
    assert arms == [label(arm) for arm in ARMS if arm in LOSSES and head_of(arm) in ("", "dense")]
    shown = visible(browser, "#figure-quality_against_cost .legend li")
    assert shown == [*arms, "frontier of smaller dense models"]
    assert visible(browser, "#at-step")[0].startswith("MST, dense head, step")
    assert all("head masked" not in claim for claim in visible(browser, "#verdicts h3"))
    choose(browser, "head", "masked")
    assert "MST, dense head" not in visible(browser, "#table1-rows tbody th")


def test_the_slider_goes_through_a_run(shown):
    browser = shown()
    for place, phase in ((0, "warm-up"), (40, "ultra-sparsification"), (79, "restoration")):
        choose(browser, "step", place)
        assert f"step {5 * (place + 1)} of 400: {phase}; sparsity" in visible(browser, "#at-step")[0]
        assert phase in browser.execute_script("return document.getElementById('step').getAttribute('aria-valuetext')")
    assert "Density by layer after the update at step 400" in visible(browser, "#run-drawing text.title")
    choose(browser, "run-arm", "dense")
    assert visible(browser, "#at-step")[0].startswith("dense, step 400 of 400: training; sparsity 0 %")


def test_a_heading_sorts_by_numbers_and_the_first_one_goes_back(shown):
    browser = shown()
    press = "document.querySelectorAll('#table1-rows thead button')[arguments[0]].click()"
    order = visible(browser, "#table1-rows tbody th")
    browser.execute_script(press, 2)
    losses = [float(cell.split()[0]) for cell in visible(browser, "#table1-rows tbody td:nth-child(3)")]
    assert losses == sorted(losses) and losses[0] < losses[-1]
    assert browser.execute_script("return document.querySelector('[aria-sort]').textContent").startswith("val. loss")
    browser.execute_script(press, 0)
    assert visible(browser, "#table1-rows tbody th") == order


def test_the_keyboard_reaches_what_can_be_changed_and_changes_it(shown):
    browser, keys, reached = shown(), webdriver.Keys, []
    for _ in range(60):
        browser.switch_to.active_element.send_keys(keys.TAB)
        reached.append(browser.switch_to.active_element.get_attribute("id"))
        ring = "return getComputedStyle(document.activeElement).outlineStyle"
        assert browser.execute_script(ring) != "none", reached
        if reached[-1] == "step":
            break
    assert [name for name in reached if name in ("convention", "head", "theme", "run-arm", "step")] == [
        *("convention", "head", "theme", "run-arm", "step")
    ]
    before = visible(browser, "#at-step")
    browser.switch_to.active_element.send_keys(keys.ARROW_RIGHT)
    assert visible(browser, "#at-step") != before


@pytest.mark.parametrize(("scheme", "other"), [("light", "dark"), ("dark", "light")])
def test_light_and_dark_follow_the_reader(scheme, other, shown):
    browser = shown(1400, scheme)
    ground = "return getComputedStyle(document.body).backgroundColor"
    colours = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 29)"}
    assert browser.execute_script(ground) == colours[scheme]
    browser.execute_script("document.getElementById('theme').click()")
    assert browser.execute_script(ground) == colours[other]
    assert browser.execute_script("return document.getElementById('theme').ariaPressed") == str(other == "dark").lower()
