"""The page in a real browser: everything works, by keyboard too, and nothing else is asked for."""

import base64
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture

from llavamed.errors import RequestError
from llavamed.serve.backend import Update
from llavamed.serve.openai import Choice, TokenCounts
from tests.support.dicom_files import dicom_file
from tests.support.running_service import EXPORT, TOKEN, RunningService, run_service, settings

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium; install Debian's chromium")

HOSTILE = "<img src=x onerror=alert(1)> <script>alert(2)</script> [a](javascript:alert(3))"
MARKDOWN = (
    f"# Findings\n\n- **left** lung\n- `code`\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n{HOSTILE}"
)


class Scripted:
    """Answers what the question asks for, so that every state of the page can be seen."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.is_open = 0

    async def answer(self, request: Any, read: Any) -> Any:
        import asyncio

        messages = await read()
        self.asked.append(messages)
        question = next(part for part in messages[-1].parts if isinstance(part, str))
        if question == "fail":
            raise RequestError("messages: cannot be answered <b>now</b>; wait", code="x")
        text = {"markdown": MARKDOWN, "nothing": ""}.get(question, f"Answer to {question}")
        self.is_open += 1
        try:
            for start in range(0, len(text), 7):
                yield Update([Choice(0, text[start : start + 7], None)], TokenCounts(3, start))
                await asyncio.sleep(0.005)
            if question == "endless":
                await asyncio.sleep(600)
            if question == "break":
                raise RequestError("model: failed in the middle; try again", code="y", status=500)
            yield Update([Choice(0, "", "stop")], TokenCounts(3, len(text)))
        finally:
            self.is_open -= 1

    def load(self) -> tuple[int, int]:
        return 0, self.is_open

    def check(self) -> None:
        """Always well."""

    async def close(self) -> None:
        """Nothing to free."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningService]:
    serving = settings(
        f"feedback_file={tmp_path}/opinions.jsonl", f"examples={json.dumps(['Why?', HOSTILE])}"
    )
    with run_service(serving, Scripted()) as service:
        yield service


@pytest.fixture
def page(browser: Any, running: RunningService) -> Iterator[Any]:
    context = browser.new_context(accept_downloads=True)
    page = open_page(context, running)
    foreign: list[str] = []
    page.on("request", lambda request: foreign.append(request.url))
    yield page
    allowed = (running.url, "data:", "blob:")
    assert [url for url in foreign if not url.startswith(allowed)] == []
    assert page.problems == []
    context.close()


def expect(locator: Any) -> Any:
    from playwright.sync_api import expect

    return expect(locator)


def open_page(context: Any, running: RunningService) -> Any:
    page = context.new_page()
    page.problems = []
    page.on("dialog", lambda dialog: page.problems.append(dialog.message))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.goto(f"{running.url}/#token={TOKEN}")
    expect(page.locator("#model")).to_have_text("llavamed")
    expect(page.locator("#export")).to_have_text(EXPORT)
    assert TOKEN not in page.url
    return page


def ask(page: Any, question: str) -> Any:
    number = page.locator(".answer").count()
    page.fill("#question", question)
    page.keyboard.press("Enter")
    answer = page.locator(".answer").nth(number)
    expect(answer).to_be_visible()
    return answer


def ended(answer: Any) -> Any:
    expect(answer.locator(".tools")).to_be_visible()
    return answer


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "<img src=x onerror=alert(4)>.png"
    Picture.fromarray(np.arange(1024, dtype=np.uint8).reshape(32, 32)).save(file)
    return file


def test_an_image_is_uploaded_looked_at_and_asked_about(
    page: Any, running: RunningService, picture: Path
) -> None:
    page.set_input_files("#files", str(picture))
    page.get_by_role("button", name=f"Look at {picture.name}").click()
    expect(page.locator("#viewer-title")).to_have_text(picture.name)
    shown = "async ([w, l]) => [...(await import('./page/viewer.js')).levels(w, l)]"
    whole = [int(page.locator(name).input_value()) for name in ("#window", "#level")]
    assert page.evaluate(shown, whole) == list(range(256))
    assert page.evaluate(shown, [2, 128]) == [0] * 128 + [255] * 128
    plain = page.locator("#canvas").screenshot()
    page.fill("#window", "40")
    assert page.locator("#canvas").screenshot() != plain
    page.click("#viewer-reset")
    assert page.locator("#canvas").screenshot() == plain
    page.locator("#canvas").focus()
    page.keyboard.press("+")
    assert page.locator("#canvas").screenshot() != plain
    page.keyboard.press("Escape")
    ended(ask(page, "What is shown?"))
    sent = running.service.backend.asked[-1][-1].parts[0]
    assert sent.data == picture.read_bytes()
    page.set_input_files("#files", str(picture))
    page.get_by_role("button", name=f"Remove {picture.name}").click()
    expect(page.locator("#attached li")).to_have_count(0)


def test_a_dicom_file_is_shown_and_sent_as_it_is(
    page: Any, running: RunningService, tmp_path: Path
) -> None:
    file = tmp_path / "ct.dcm"
    file.write_bytes(dicom_file(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)))
    page.set_input_files("#files", str(file))
    expect(page.locator("#attached img")).to_have_attribute("src", re.compile("^data:image/png;"))
    page.get_by_role("button", name="Look at ct.dcm").click()
    expect(page.locator("#viewer-title")).to_have_text("ct.dcm")
    plain = page.locator("#canvas").screenshot()
    page.fill("#window", "40")
    assert page.locator("#canvas").screenshot() != plain
    page.keyboard.press("Escape")
    ended(ask(page, "What is shown?"))
    assert running.service.backend.asked[-1][-1].parts[0].data == file.read_bytes()
    file.write_bytes(b"no DICOM file")
    page.set_input_files("#files", str(file))
    expect(page.locator("#problem")).to_contain_text("ct.dcm: body: is not a DICOM file")
    expect(page.locator("#attached li")).to_have_text("ct.dcm×")


def test_images_are_dropped_and_pasted(page: Any, picture: Path) -> None:
    scan = dicom_file(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64))
    for kind, name, media_type, data in (
        ("drop", "a.png", "image/png", picture.read_bytes()),
        ("paste", "a.png", "image/png", picture.read_bytes()),
        ("drop", "IM000001", "", scan),  # as on a CD
        ("drop", "notes.txt", "text/plain", b"-"),
    ):
        page.evaluate(
            """([kind, name, type, data]) => {
              const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
              const transfer = new DataTransfer();
              transfer.items.add(new File([bytes], name, { type }));
              const event = kind === "drop"
                ? new DragEvent("drop", { dataTransfer: transfer, cancelable: true })
                : new ClipboardEvent("paste", { clipboardData: transfer, cancelable: true });
              document.dispatchEvent(event);
            }""",
            [kind, name, media_type, base64.b64encode(data).decode()],
        )
    expect(page.locator("#attached img")).to_have_count(3)
    expect(page.locator("#problem")).to_have_text("notes.txt: is no image.")
    expect(page.locator("#attached li")).to_have_count(3)


def test_answers_are_shown_as_markdown_and_nothing_in_them_runs(page: Any) -> None:
    answer = ended(ask(page, "markdown"))
    text = answer.locator(".text")
    assert text.locator("h3").inner_text() == "Findings"
    assert text.locator("li").all_inner_texts() == ["left lung", "code"]
    assert text.locator("td").all_inner_texts() == ["1", "2"]
    assert HOSTILE in text.inner_text()
    assert text.locator("img, script, a").count() == 0
    question = ended(ask(page, HOSTILE))
    assert HOSTILE in question.inner_text()
    assert page.locator("#log img, #log script, #log a").count() == 0
    for said, shown in (
        ("see ```x = 1```\nb", "<p>see <code>x = 1</code><br>b</p>"),
        ("```x = 1```", "<p><code>x = 1</code></p>"),
        ("> " * 50_000 + "deep", "<blockquote><p>deep</p></blockquote>"),
        ("`" * 50_000, f"<p>{'`' * 50_000}</p>"),  # in no time
    ):
        script = """async (text) => (await import('./page/markdown.js')).render(text)
          .map((node) => node.outerHTML).join("")"""
        assert page.evaluate(script, said) == shown


def test_the_examples_are_those_of_the_service(page: Any) -> None:
    expect(page.locator("#examples button")).to_have_text(["Why?", HOSTILE])
    page.locator("#examples button").nth(1).click()
    expect(page.locator("#question")).to_have_value(HOSTILE)


def test_an_answer_is_stopped_and_its_generation_ends(page: Any, running: RunningService) -> None:
    answer = ask(page, "endless")
    expect(answer.locator(".text")).to_have_text("Answer to endless")
    page.click("#stop")
    expect(answer).to_contain_text("You stopped this answer.")
    expect(page.locator("#send")).to_be_visible()
    for _ in range(200):
        if running.service.backend.is_open == 0:
            break
        page.wait_for_timeout(20)
    assert running.service.backend.is_open == 0


def test_errors_are_shown_in_the_words_of_the_service(page: Any, running: RunningService) -> None:
    expect(ended(ask(page, "nothing"))).to_contain_text("The answer is empty: the model wrote")
    page.click("#new")
    failed = ended(ask(page, "fail"))
    expect(failed.locator(".error")).to_have_text("messages: cannot be answered <b>now</b>; wait")
    broken = ended(ask(page, "break"))
    expect(broken.locator(".text")).to_have_text("Answer to break")
    expect(broken.locator(".error")).to_have_text("model: failed in the middle; try again")
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")  # http
    broken.get_by_role("button", name="Copy").click()
    expect(page.locator("#problem")).to_contain_text("This browser does not allow copying here.")
    broken.get_by_role("button", name="Try again").click()
    expect(page.locator(".answer")).to_have_count(2)
    expect(page.locator("#send")).to_be_visible()
    ended(ask(page, "next"))
    asked = [message.parts[-1] for message in running.service.backend.asked[-1]]
    assert asked == ["break", "Answer to break", "next"]  # what was not answered is left out


def test_without_a_token_the_page_asks_for_one(browser: Any, running: RunningService) -> None:
    page = browser.new_page()
    page.goto(running.url)
    expect(page.locator("#settings")).to_be_visible()
    expect(page.locator("#problem")).to_contain_text("no token is sent")
    page.fill("#token", "wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#settings")).to_contain_text("the token is not known")
    page.fill("#token", TOKEN)
    page.keyboard.press("Enter")
    expect(page.locator("#model")).to_have_text("llavamed")
    assert page.evaluate("localStorage.length + sessionStorage.length") == 0
    for token, text in (("wrong", "the token is not known"), (TOKEN, "")):
        page.goto(f"{running.url}/#token={token}")  # a new link in the same tab
        expect(page.locator("#problem")).to_contain_text(text)
        assert token not in page.url
    expect(page.locator("#problem")).to_be_hidden()
    page.close()


def test_two_tabs_do_not_know_of_each_other(page: Any, running: RunningService) -> None:
    other = open_page(page.context, running)
    ended(ask(page, "first"))
    assert "Answer to second" in ended(ask(other, "second")).inner_text()
    assert page.locator(".answer").count() == other.locator(".answer").count() == 1
    assert len(running.service.backend.asked[-1]) == 1
    with other.expect_event("dialog") as asked:
        other.close(run_before_unload=True)
    assert asked.value.type == "beforeunload", "a conversation is not lost by mistake"
    asked.value.accept()


def test_the_keyboard_is_enough(page: Any) -> None:
    reached = set()
    page.locator("body").press("Tab")
    for _ in range(14):
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        page.keyboard.press("Tab")
    assert {"new", "save-json", "open-settings", "files", "question", "send"} <= reached
    answer = ask(page, "endless")
    expect(answer.locator(".text")).to_have_text("Answer to endless")
    page.keyboard.press("Escape")
    expect(answer).to_contain_text("You stopped this answer.")
    answer.get_by_role("button", name="Regenerate").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#stop")).to_be_visible()
    page.locator("#stop").press("Enter")
    expect(page.locator("#question")).to_be_focused()
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, input, textarea")].filter((each) =>
          !each.textContent.trim() && !each.ariaLabel && !each.labels?.length).length"""
    )
    assert unnamed == 0


def test_a_question_is_edited_and_the_conversation_saved(
    page: Any, running: RunningService, picture: Path
) -> None:
    page.set_input_files("#files", str(picture))
    ended(ask(page, "first"))
    ended(ask(page, "second"))
    assert len(running.service.backend.asked[-1]) == 3
    page.get_by_role("button", name="Edit").first.click()
    expect(page.locator("#question")).to_have_value("first")
    expect(page.locator(".answer")).to_have_count(0)
    ended(ask(page, "third"))
    assert running.service.backend.asked[-1][-1].parts[0].data == picture.read_bytes()
    with page.expect_download() as waiting:
        page.click("#save-json")
    saved = json.loads(Path(waiting.value.path()).read_text(encoding="utf-8"))
    assert saved["notice"].startswith("For research only.")
    assert saved["turns"][0]["answers"][0]["text"] == "Answer to third"
    assert len(saved["turns"][0]["images"][0]["sha256"]) == 64
    with page.expect_download() as waiting:
        page.click("#save-markdown")
    assert "Answer to third" in Path(waiting.value.path()).read_text(encoding="utf-8")


def test_an_opinion_is_kept_only_with_consent(
    page: Any, running: RunningService, tmp_path: Path
) -> None:
    answer, file = ended(ask(page, "first")), tmp_path / "opinions.jsonl"
    answer.get_by_role("button", name="Bad").click()
    expect(page.locator("#opinion-send")).to_be_disabled()
    page.get_by_role("button", name="Cancel").click()
    assert file.read_text() == ""
    answer.get_by_role("button", name="Bad").click()
    page.fill("#reason", "It is the other side.")
    page.check("#consent")
    page.click("#opinion-send")
    expect(page.locator("#status")).to_have_text("Your opinion was kept.")
    kept = json.loads(file.read_text())
    assert (kept["rating"], kept["reason"]) == ("down", "It is the other side.")
    assert "answer" not in kept


def test_two_models_are_compared_side_by_side(page: Any, running: RunningService) -> None:
    page.click("#open-settings")
    page.check("#compare")
    page.get_by_role("button", name="Done").click()
    ask(page, "both")
    expect(page.locator(".answers.two .answer .tools")).to_have_count(2)
    assert page.locator(".answer .text").all_inner_texts() == ["Answer to both"] * 2
    page.click("#open-settings")
    page.fill("#second-url", "http://[")
    page.keyboard.press("Escape")
    ask(page, "one of two")
    expect(page.locator(".answer .error")).to_have_text(
        "The service cannot be reached. Is it running?"
    )
    expect(page.locator("#send")).to_be_visible()
    assert "Answer to one of two" in page.locator(".answer").nth(2).inner_text()


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_is_wider_than_the_window(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 700})
    ended(ask(page, "markdown"))
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.emulate_media(media="print")
    for control in ("nav", "#composer", ".tools >> nth=0"):
        expect(page.locator(control)).to_be_hidden()
    expect(page.locator(".notice").first).to_be_visible()
