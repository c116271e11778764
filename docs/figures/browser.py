"""Chromium without a screen, for the scripts that take screenshots."""

import base64
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

IMAGES = Path(__file__).parent.parent / "images"


def is_possible(run: str) -> bool:
    """Returns whether the run and the browser exist, and says what is missing otherwise."""
    if Path(run).is_dir() and shutil.which("chromium") and shutil.which("chromedriver"):
        return True
    print(f"the screenshots need {run}, which keras-attention demo trains, and Chromium with its driver")
    return False


def open_page(url: str, width: int, height: int = 800, dark: bool = False) -> Any:
    """Opens a page."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    size = {"width": width, "height": height, "deviceScaleFactor": 1.5, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    driver.get(url)
    return driver


def wait_for(driver: Any, condition: Callable[[], Any]) -> None:
    """Waits until the page shows something."""
    from selenium.common.exceptions import JavascriptException  # of a page that is not complete
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, 60, poll_frequency=0.05, ignored_exceptions=[JavascriptException]).until(
        lambda _: condition()
    )


def save(driver: Any, name: str, box: Sequence[float] | None = None) -> None:
    """Takes a picture of the window, or of a box of the page: left, top, width and height."""
    options: dict[str, Any] = {}
    if box is not None:
        clip = {**dict(zip(("x", "y", "width", "height"), box, strict=True)), "scale": 1}
        options = {"captureBeyondViewport": True, "clip": clip}
    image = driver.execute_cdp_cmd("Page.captureScreenshot", options)["data"]
    (IMAGES / name).write_bytes(base64.b64decode(image))
    print(IMAGES / name)
