"""The reference of the API in a real browser."""

from __future__ import annotations

from playwright.async_api import Page, expect
from tests.service.console_lab import ConsoleLab

from caelum.gateway.server import Gateway


async def test_the_reference_renders_and_filters(lab: ConsoleLab, page: Page) -> None:
    gateway = Gateway(lab.cloud.node)
    await gateway.start()
    try:
        await page.goto(f"http://127.0.0.1:{gateway.port}/docs")
        entry = page.locator("section#RequestConsoleAccess")
        await expect(entry.locator(".route")).to_contain_text("POST")
        await expect(entry.locator("table").first).to_contain_text("vmInstanceUuid")
        shown = page.locator("#index a:visible")
        assert await shown.count() > 20
        await page.locator("#filter").fill("RequestConsole")
        await expect(shown).to_have_text("RequestConsoleAccess")
        await expect(page.locator("section:visible", has_text="CreateZone")).to_have_count(0)
    finally:
        await gateway.stop(1)
