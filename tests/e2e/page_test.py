#!/usr/bin/env python3
"""The status page in a real browser: headless Chromium, at the sizes of a desk and of a phone.

Needs Debian's chromium-headless-shell (scripts/test-browser) and nothing beyond the standard library; without it the
tests fail. MILLRACE_BIN names the executable. MILLRACE_UPDATE_SCREENSHOTS=1 renews docs/status-*.png.
"""

import os
import pathlib
import sys
import threading
import unittest

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent), str(pathlib.Path(__file__).resolve().parent.parent / "support")]
from browser import Browser, Page
from service import ROOT, Service, greedy
from fake_gateway import FakeGateway, cell, status

DESK = {"width": 1280, "height": 860}
PHONE = {"width": 390, "height": 844, "phone": True, "dark": True}
SIZES = {"desk": DESK, "phone": PHONE, "desk dark": {**DESK, "dark": True}, "phone light": {**PHONE, "dark": False}}

# Text whose contrast with what is behind it is under WCAG's 4.5 (3 for large text).
POOR_CONTRAST = """(() => {
  const light = (c) => { const l = c.slice(0, 3).map((v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
                         return 0.2126 * l[0] + 0.7152 * l[1] + 0.0722 * l[2]; };
  const parse = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return n.length === 3 ? [...n, 1] : n; };
  const ground = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c[3] > 0) return c; }
                          return [255, 255, 255, 1]; };
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let n = walker.nextNode(); n; n = walker.nextNode()) {
    const e = n.parentElement;
    if (!n.textContent.trim() || !e.checkVisibility() || e.closest('noscript, :disabled')) continue;
    const style = getComputedStyle(e);
    const [a, b] = [light(parse(style.color)), light(ground(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < (parseFloat(style.fontSize) >= 24 ? 3 : 4.5)) poor.push(`${n.textContent.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return poor;
})()"""

# What fingers and keys use, and is smaller than 44 CSS pixels either way.
SMALL_TARGETS = """[...document.querySelectorAll('button, input, textarea, summary, .to-chat')].filter((e) => e.checkVisibility())
  .map((e) => [e.id || e.className || e.tagName, e.getBoundingClientRect()])
  .filter(([, r]) => r.height < 43.5 || r.width < 43.5).map(([name, r]) => `${name} ${r.width}x${r.height}`)"""

ANSWERED = "document.querySelectorAll('.assistant').length && document.getElementById('chat-stop').hidden"


class PageCase(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.browser = Browser()

    @classmethod
    def tearDownClass(cls):
        cls.browser.close()

    def page(self, url: str, state: str = "Ready", **size) -> Page:
        page = Page(self.browser, **(size or DESK))
        self.addCleanup(page.close)
        page.open(f"{url}/status")
        page.wait("the first answer", f"document.getElementById('health')?.textContent.startsWith('{state}')")
        return page

    def say(self, page: Page, text: str):
        page.click("#chat-input")
        page.write(text)
        page.press("Enter", 13, "\r")

    def expect_clean(self, page: Page, url: str):
        """No complaint of the browser, nothing asked of anybody else."""
        self.assertEqual(page.complaints(), [])
        requests = page.requests()
        self.assertGreater(len(requests), 5)
        self.assertEqual([r for r in requests if not r.startswith(url + "/")], [])

    def expect_fit(self, page: Page):
        page.wait("no sideways scrolling", "document.documentElement.scrollWidth <= innerWidth")
        self.assertEqual(page.run(POOR_CONTRAST), [])


class Live(PageCase):
    """Against the real command with a cell of 2 x 2."""

    def test_map_chat_and_loss(self):
        service = Service("--embedded", "--stages", "2", "--lanes", "2")
        url = f"http://127.0.0.1:{service.port}"
        stop = threading.Event()

        def keep_busy():
            while not stop.is_set():
                service.post("/v1/completions", greedy(200))

        clients = [threading.Thread(target=keep_busy) for _ in range(3)]
        for client in clients:
            client.start()
        pages = []
        try:
            for name, size in (("desk", DESK), ("phone", PHONE)):
                page = self.page(url, **size)
                pages.append(page)
                page.wait("all four workers", "document.querySelectorAll('.tile .bars').length === 4")
                self.assertEqual(page.run("[...document.querySelectorAll('.tile')].map((t) => t.dataset.stage + t.dataset.lane)"),
                                 ["00", "01", "10", "11"])
                page.wait("figures in the map", "[...document.querySelectorAll('.tile .load')].every((l) => l.textContent.startsWith('load'))")
                page.wait("workers at work", "[...document.querySelectorAll('.tile .busy')].every((b) => parseInt(b.textContent) > 0)")
                page.wait("a rate", "parseFloat(document.getElementById('output-rate').textContent) > 0")
                page.wait("latencies", "[...document.querySelectorAll('#latency td')].some((t) => t.textContent.endsWith(' ms'))")
                page.wait("history", "document.querySelector('#output-spark polyline')?.getAttribute('points').includes(' ')")
                self.say(page, "Quote Genesis 1:3.")
                page.wait("the answer's figures", "document.querySelector('.assistant .quiet')?.textContent.includes('tokens')")
                self.assertEqual(page.text(".user .text"), "Quote Genesis 1:3.")
                self.assertGreater(len(page.text(".assistant .text")), 10)
                self.assertEqual(page.run("document.querySelectorAll('#chat .error').length"), 0)
                self.expect_fit(page)
                self.expect_clean(page, url)
                if os.environ.get("MILLRACE_UPDATE_SCREENSHOTS"):
                    page.run("document.activeElement.blur(); scrollTo(0, 0)")
                    page.screenshot(ROOT / f"docs/status-{name}.png")
            stop.set()
            for client in clients:
                client.join()
            self.assertEqual(service.stop(), 0)
            for page in pages:
                self.expect_loss_and_recovery_are_told(page)
            self.say(pages[0], "Are you there?")
            pages[0].wait("the chat's error", "document.querySelector('#chat .error')?.textContent === 'The gateway cannot be reached.'")
            again = Service("--embedded", "--set", f"gateway.port={service.port}")
            try:
                for page in pages:
                    page.wait("the recovery", "document.getElementById('health').textContent === 'Ready'")
                    self.assertTrue(page.run("document.getElementById('notice').hidden"))
                    page.wait("the new cell's map", "document.querySelectorAll('.tile').length === 1")
            finally:
                again.stop()
        finally:
            stop.set()
            service.stop()

    def expect_loss_and_recovery_are_told(self, page: Page):
        page.wait("the loss", "document.getElementById('health').textContent === 'Unreachable'")
        self.assertIn("Trying again. The figures below are from", page.text("#notice"))
        self.assertEqual(page.run("document.querySelectorAll('.tile').length"), 4)  # still to be seen, as old

    def test_a_key_is_asked_for_kept_for_the_tab_and_used(self):
        service = Service("--embedded", "--set", 'gateway.api_keys=["open sesame"]')
        url = f"http://127.0.0.1:{service.port}"
        try:
            page = self.page(url, "Key needed")
            self.assertTrue(page.run("document.getElementById('key-form').checkVisibility()"))
            page.wait("focus", "document.activeElement.id === 'key-input'")
            page.write("wrong")
            page.press("Enter", 13, "\r")
            page.wait("the refusal", "document.getElementById('key-error').textContent === 'This key was refused.'")
            count = len(page.requests())
            page.run("new Promise((done) => setTimeout(done, 2500))")
            self.assertEqual(len(page.requests()), count)  # no asking on and on without a key
            page.click("#key-input")
            page.write("open sesame")
            page.click("#key-form button")
            page.wait("the data", "document.getElementById('health').textContent === 'Ready'")
            self.assertTrue(page.run("document.getElementById('key-form').hidden"))
            self.say(page, "Quote Genesis 1:3.")
            page.wait("an answer", "document.querySelector('.assistant .quiet')?.textContent.includes('tokens')")
            page.open(f"{url}/status")
            page.wait("the data after a reload", "document.getElementById('health')?.textContent === 'Ready'")
            self.assertEqual(page.run("localStorage.length + document.cookie.length"), 0)
        finally:
            service.stop()


class Scripted(PageCase):
    """Against a stand-in that does what a test needs."""

    def setUp(self):
        self.fake = FakeGateway(status([cell("cell-0"), cell("cell-1", tilt=0.8),
                                        cell("cell-2", "suspect", reason="no step for 12 s while 31 sequences run"),
                                        cell("cell-3", "gone", reason="the connection ended without a goodbye")]))
        self.addCleanup(self.fake.close)

    def test_clusters_in_trouble_at_all_sizes_and_schemes(self):
        for name, size in SIZES.items():
            with self.subTest(name):
                page = self.page(self.fake.url, **size)
                self.assertEqual(page.run("document.querySelectorAll('.tile').length"), 4 * 2 * 4)
                self.assertEqual(page.run("[...document.querySelectorAll('.cell .pill')].map((p) => p.textContent)"),
                                 ["Healthy", "Healthy", "Suspect", "Gone"])
                self.assertEqual(page.text("[data-cell=cell-2] .reason"), "no step for 12 s while 31 sequences run")
                self.assertEqual(page.run("document.querySelector('[data-cell=cell-3] .map').checkVisibility()"), False)
                self.assertGreater(page.run("document.querySelectorAll('[data-cell=cell-1] rect.high').length"), 0)
                self.assertIn("12 queue full", page.text("#errors-detail"))
                self.expect_fit(page)
                if "phone" in name:
                    self.assertEqual(page.run(SMALL_TARGETS), [])
                self.expect_clean(page, self.fake.url)

    def test_everything_has_a_name_and_is_reached_by_keys(self):
        page = self.page(self.fake.url)
        nodes = page.call("Accessibility.getFullAXTree")["nodes"]
        named = {"button", "textbox", "spinbutton", "meter", "image", "link", "region", "log", "table", "DisclosureTriangle"}
        seen = set()
        for node in nodes:
            role = node.get("role", {}).get("value")
            if node.get("ignored") or role not in named - {"table"}:
                continue
            seen.add(role)
            self.assertTrue(node.get("name", {}).get("value"), f"{role}: {node}")
        self.assertLessEqual({"button", "textbox", "meter", "image", "link", "log"}, seen)
        page.press("Tab", 9)
        self.assertEqual(page.run("document.activeElement.textContent"), "Skip to chat")
        self.assertTrue(page.run("document.activeElement.getBoundingClientRect().height > 20"))
        page.press("Enter", 13, "\r")
        page.wait("the chat's focus", "location.hash === '#chat-input'")

    def test_what_a_model_says_is_text_only(self):
        evil = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>\u202e & <b>"
        self.fake.chat = [evil[:9], evil[9:], "\nnext line"]
        self.fake.status["cells"][0]["id"] = self.fake.status["cells"][0]["reason"] = evil
        self.fake.status["service"]["model"] = evil
        page = self.page(self.fake.url)
        self.say(page, evil)
        page.wait("the answer", ANSWERED)
        self.assertEqual(page.run("document.querySelector('.assistant .text').textContent"), evil + "\nnext line")
        self.assertEqual(page.run("document.querySelector('.user .text').textContent"), evil)
        self.assertEqual(page.run("document.querySelectorAll('main img, main script, .turn b').length"), 0)
        self.assertNotEqual(page.run("document.title"), "hacked")
        self.expect_clean(page, self.fake.url)

    def test_an_answer_can_be_stopped_and_the_talk_goes_on(self):
        self.fake.chat = ["one ", "two ", *[part for _ in range(600) for part in (0.1, "more ")]]
        page = self.page(self.fake.url)
        self.say(page, "first")
        page.wait("some text", "document.querySelector('.assistant .text')?.textContent.includes('two')")
        self.assertEqual(page.run("document.getElementById('chat-send').hidden"), True)
        page.click("#chat-stop")
        page.wait("the stop", "document.querySelector('.assistant .quiet')?.textContent === 'stopped'")
        self.assertTrue(self.fake.gone.wait(60))  # and the gateway has been told by the closed connection
        said = page.run("document.querySelector('.assistant .text').textContent")
        self.fake.chat = ["fine"]
        self.say(page, "second")
        page.wait("the second answer", "document.querySelectorAll('.assistant .quiet').length === 2")
        self.assertEqual([(m["role"], m["content"]) for m in self.fake.asked[-1]["messages"]],
                         [("user", "first"), ("assistant", said), ("user", "second")])
        page.click("#chat-clear")
        self.assertEqual(page.run("document.querySelectorAll('.turn').length"), 0)
        self.say(page, "third")
        page.wait("the third answer", ANSWERED)
        self.assertEqual(len(self.fake.asked[-1]["messages"]), 1)

    def test_sampling_fields_are_sent(self):
        page = self.page(self.fake.url)
        page.click("#chat summary")
        page.run("document.getElementById('chat-max').value = ''")
        page.click("#chat-max")
        page.write("77")
        page.click("#chat-temperature")
        page.write("0.5")
        self.say(page, "hello")
        page.wait("the answer", ANSWERED)
        asked = self.fake.asked[-1]
        self.assertEqual((asked["max_tokens"], asked["temperature"], asked["stream"], asked["model"]),
                         (77, 0.5, True, "lfm2-24b-a2b"))

    def test_errors_are_shown_where_they_happen(self):
        page = self.page(self.fake.url)
        cases = [((503, "the queue of 256 sequences has no room"), "the queue of 256 sequences has no room"),
                 (["Half", {"error": {"message": "the cell was lost"}}], "the cell was lost"),
                 (["Half", False], "the answer broke off")]
        for number, (self.fake.chat, words) in enumerate(cases, 1):
            self.say(page, f"question {number}")
            page.wait(words, f"document.querySelectorAll('#chat .error').length === {number}")
            self.assertEqual(page.run(f"document.querySelectorAll('#chat .error')[{number - 1}].textContent"), words)
            self.assertFalse(page.run("document.getElementById('chat-send').hidden"))
        # A question that got no answer at all is not asked again.
        self.assertEqual([m["content"] for m in self.fake.asked[-1]["messages"]], ["question 2", "Half", "question 3"])

    def test_a_gateway_of_another_version_or_that_stands_still_is_told(self):
        page = self.page(self.fake.url)
        self.fake.status = {**self.fake.status, "format": "millrace-status/9"}
        page.wait("the notice", "document.getElementById('notice').textContent.includes('different versions')")
        self.fake.status = {**self.fake.status, "format": "millrace-status/1"}
        page.wait("no notice", "document.getElementById('notice').hidden")
        self.fake.frozen = 1.5
        page.wait("the notice", "document.getElementById('notice').textContent.includes('have stood still for')")

    def test_a_large_cluster_stays_usable(self):
        self.fake.status["cells"] = [cell(f"cell-{i:02}", stages=4, lanes=8, layers=10) for i in range(64)]
        page = self.page(self.fake.url)
        self.assertEqual(page.run("document.querySelectorAll('.cell').length"), 64)
        self.assertEqual(page.run("document.querySelectorAll('.cell[open]').length"), 6)
        page.click("[data-cell=cell-40] summary")
        page.wait("its map", "document.querySelectorAll('[data-cell=cell-40] .bars').length === 32")
        self.expect_fit(page)


if __name__ == "__main__":
    unittest.main(verbosity=2)
