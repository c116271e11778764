"""Takes the screenshots of the page of a model, on which one translates and changes its attention, into docs/images.

They show the model of `make demo`, in Chromium without a screen. Without one of them the pictures stay as they are.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import browser
from browser import is_possible, wait_for

TEXT, LONG_TEXT = "March 5, 2026", "Sunday, March 5, 2026 at 9:30 PM"
ENCODER, CROSS = 0, 2  # radio buttons of the kinds of attention


def open_page(url: str, width: int, text: str = TEXT, dark: bool = False) -> Any:
    """Opens the page in a browser and types the text."""
    driver = browser.open_page(url, width, dark=dark)
    driver.find_element("css selector", "#source").send_keys(text)
    wait_for(driver, lambda: driver.find_element("css selector", "#changed").text)
    return driver


def click(driver: Any, css: str, index: int = 0) -> None:
    """Clicks the element of an index."""
    driver.find_elements("css selector", css)[index].click()


def slide(driver: Any, name: str, value: float) -> None:
    """Moves a slider."""
    script = (
        "const e = document.getElementById(arguments[0]); e.value = arguments[1]; e.dispatchEvent(new Event('input'))"
    )
    driver.execute_script(script, name, value)


def save(driver: Any, name: str, last: str, first: str = "#inside") -> None:
    """Takes a picture from the top of one element to the bottom of another."""
    wait_for(driver, lambda: driver.find_element("css selector", "#changed").get_attribute("aria-busy") == "false")
    corners = driver.execute_script(
        "const box = document.querySelector(arguments[0]).getBoundingClientRect();"
        "const end = document.querySelector(arguments[1]).getBoundingClientRect().bottom;"
        "return [box.left + scrollX, box.top + scrollY, box.width, end - box.top + 12]",
        first,
        last,
    )
    browser.save(driver, name, corners)


def main(run: str) -> None:
    """Exports the model of a run, serves it and takes the pictures."""
    from keras_attention.pipeline import RunFolder
    from keras_attention.server import Server
    from keras_attention.serving import export

    with tempfile.TemporaryDirectory() as folder:
        export(RunFolder(run).translator(), Path(folder) / "demo-fr", inspect=True)
        with Server(Path(folder) / "demo-fr", rest_port=0, grpc_port=0, page=True) as server:
            driver = open_page(server.url, 960, LONG_TEXT)
            click(driver, "#target-words > *", 2)
            save(driver, "page.png", "#others", first="main")
            driver.quit()
            driver = open_page(server.url, 760)
            click(driver, "#kinds input", CROSS)
            click(driver, "#layers input", 1)
            save(driver, "touch-heads.png", "#weights")
            click(driver, "#heads input")
            wait_for(driver, lambda: driver.find_elements("css selector", "#changed mark"))
            save(driver, "touch-off.png", "#heads")
            click(driver, "#reset")
            click(driver, "#kinds input", ENCODER)
            slide(driver, "window", 1)
            wait_for(driver, lambda: driver.find_elements("css selector", "#changed mark"))
            save(driver, "touch-window.png", "#heads")
            click(driver, "#reset")
            slide(driver, "scale", 0)
            wait_for(driver, lambda: driver.find_elements("css selector", "#changed mark"))
            save(driver, "touch-scale.png", "#heads")
            driver.quit()
            driver = open_page(server.url, 390, dark=True)
            click(driver, "#kinds input", CROSS)
            click(driver, "#layers input", 1)
            click(driver, "#heads input")
            wait_for(driver, lambda: driver.find_elements("css selector", "#changed mark"))
            save(driver, "touch-phone.png", "#weights")
            driver.quit()


if __name__ == "__main__":
    run = sys.argv[1] if len(sys.argv) > 1 else "runs/demo-fr"
    if is_possible(run):
        main(run)
