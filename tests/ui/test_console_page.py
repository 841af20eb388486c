"""The console page in a real browser: screen, serial line, and what a used link says."""

from __future__ import annotations

from typing import cast

from playwright.async_api import Browser, Page, expect
from tests.service.console_lab import ConsoleLab
from tests.ui.guest import BLUE, HEIGHT, PROMPT, WIDTH, Guest

COLOUR = """() => {
  const canvas = document.querySelector("#vnc canvas");
  const middle = canvas.getContext("2d").getImageData(canvas.width / 2, canvas.height / 2, 1, 1);
  return [canvas.width, canvas.height, ...middle.data];
}"""


def guest_of(lab: ConsoleLab) -> Guest:
    return cast("Guest", lab.agent)


async def link(lab: ConsoleLab, line: str = "vnc") -> str:
    return f"{lab.url}/?token={(await lab.request()).token}&line={line}"


async def test_the_serial_terminal_shows_the_prompt_and_takes_what_is_typed(lab: ConsoleLab, page: Page) -> None:
    await page.goto(await link(lab, "serial"))
    rows = page.locator("#serial .xterm-rows")
    await expect(rows).to_contain_text(PROMPT.strip())
    await expect(page.locator("#status")).to_have_text("Connected")
    await page.keyboard.type("root\n")
    await expect(rows).to_contain_text(f"{PROMPT}root")
    await expect(rows).to_contain_text("Password:")
    assert guest_of(lab).typed == b"root\r"


async def test_the_screen_draws_the_guests_picture_and_takes_keys(lab: ConsoleLab, page: Page) -> None:
    await page.goto(await link(lab))
    await expect(page.locator("#status")).to_have_text("Connected")
    # The picture comes a moment after the connection.
    await page.wait_for_function(f"({COLOUR})()[2] === {BLUE[0]}")
    assert await page.evaluate(COLOUR) == [WIDTH, HEIGHT, *BLUE, 255]
    await page.keyboard.press("a")
    screen = guest_of(lab).screen
    assert screen is not None
    await lab.cloud.until(lambda: screen.keys == [ord("a")])


async def test_the_token_leaves_the_address_and_a_reload_connects_again(lab: ConsoleLab, page: Page) -> None:
    await page.goto(await link(lab))
    await expect(page.locator("#status")).to_have_text("Connected")
    assert page.url == f"{lab.url}/"
    await expect(page.locator("#name")).to_have_text("vm")
    await page.reload()
    await expect(page.locator("#status")).to_have_text("Connected")
    await page.locator("#tab-serial").click()
    await expect(page.locator("#serial .xterm-rows")).to_contain_text(PROMPT.strip())


async def test_a_used_link_is_refused_and_says_what_to_do(lab: ConsoleLab, page: Page, browser: Browser) -> None:
    address = await link(lab)
    await page.goto(address)
    await expect(page.locator("#status")).to_have_text("Connected")
    paths = list(lab.agent.paths)
    another = await browser.new_page()  # with a storage of its own, as on somebody else's machine
    await another.goto(address)
    status = another.locator("#status")
    await expect(status).to_contain_text("the console token is unknown, used, expired")
    await expect(status).to_contain_text("request console access again")
    await expect(status).to_have_class("bad")
    assert await another.locator("#vnc canvas").count() == 0
    assert lab.agent.paths == paths
    await expect(page.locator("#status")).to_have_text("Connected")  # the first viewer is not disturbed
