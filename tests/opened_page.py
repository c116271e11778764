"""The translation page, open in a browser without a screen."""

import pytest

pytest.importorskip("selenium", reason="needs selenium")

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

LONG = 60


class Page:
    """What a person does with the page and sees on it."""

    def __init__(self, browser, server):
        self.browser = browser
        browser.get(server.url + "/")

    def element(self, css):
        return self.browser.find_element(By.CSS_SELECTOR, css)

    def texts(self, css):
        return [each.text for each in self.browser.find_elements(By.CSS_SELECTOR, css)]

    def write(self, text):
        box = self.element("#source")
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys(text or Keys.DELETE)

    def wait(self, what):
        return WebDriverWait(self.browser, LONG, poll_frequency=0.02).until(lambda _: what())

    def wait_for_translation(self, text):
        self.wait(lambda: self.element("#translation").text == text)

    def shown(self, css):
        return self.element(css).is_displayed()

    def complaints(self):
        return [entry["message"] for entry in self.browser.get_log("browser")]
