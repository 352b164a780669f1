"""The page of `report` in a browser: nothing fails, nothing is cut off, and its switch and headings do what they say.

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


WIDTHS = "return [...document.images].map((one) => one.getBoundingClientRect().width)"


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
    outside = """return [...document.querySelectorAll("p, .switches *, figure, img")].filter((one) => {
        const box = one.getBoundingClientRect(), frame = document.body.getBoundingClientRect();
        return box.width && (box.left < frame.left - 1 || box.right > frame.right + 1);
    }).map((one) => one.textContent)"""
    assert browser.execute_script(outside) == []
    least = 390 if width == 420 else 540  # in which words of 9 points are 9.4 pixels high, and 13
    assert all(shown >= least for shown in browser.execute_script(WIDTHS))


def test_a_single_run_is_shown_too(shown, tmp_path):
    write_run(tmp_path / "small" / "dense" / "seed-0", "dense", 0, 4.0)
    assert main(["report", "--results", str(tmp_path), "--out", str(tmp_path / "report.html")]) == 0
    browser = shown(where=(tmp_path / "report.html").as_uri())
    assert len(browser.execute_script(WIDTHS)) > 6 and all(browser.execute_script(WIDTHS))
    assert "No arm has a seed in common with dense." in visible(browser, ".missing")


def test_every_picture_is_decoded_and_says_what_it_shows_on_a_light_card(shown):
    browser = shown(scheme="dark")
    pictures = """return [...document.images].map((one) =>
        [one.complete && one.naturalWidth, one.alt, getComputedStyle(one).backgroundColor])"""
    found = browser.execute_script(pictures)
    assert len(found) == 22
    for wide, said, ground in found:
        assert wide > 300 and len(said) > 60 and ground == "rgb(255, 255, 255)"


def test_the_reading_of_the_head_changes_which_arms_are_shown(shown):
    browser = shown()
    choose(browser, "head", "dense")
    arms = visible(browser, "#table1-rows tbody th")
    assert arms == [label(arm) for arm in ARMS if arm in LOSSES and head_of(arm) in ("", "dense")]
    assert all("head masked" not in claim for claim in visible(browser, "#verdicts h3"))
    choose(browser, "head", "masked")
    assert "MST, dense head" not in visible(browser, "#table1-rows tbody th")


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
        if reached[-1] == "theme":
            break
    assert [name for name in reached if name in ("head", "theme")] == ["head", "theme"]
    browser.switch_to.active_element.send_keys(keys.SPACE)
    assert browser.switch_to.active_element.get_attribute("aria-pressed") == "true"


@pytest.mark.parametrize(("scheme", "other"), [("light", "dark"), ("dark", "light")])
def test_light_and_dark_follow_the_reader(scheme, other, shown):
    browser = shown(1400, scheme)
    ground = "return getComputedStyle(document.body).backgroundColor"
    colours = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 29)"}
    assert browser.execute_script(ground) == colours[scheme]
    browser.execute_script("document.getElementById('theme').click()")
    assert browser.execute_script(ground) == colours[other]
    assert browser.execute_script("return document.getElementById('theme').ariaPressed") == str(other == "dark").lower()
