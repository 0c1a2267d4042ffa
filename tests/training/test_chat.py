"""The terminal answers as the evaluation does, and a refused question leaves the conversation."""

import builtins
import io
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture

from llavamed.cli import chat as cli_chat
from llavamed.errors import CheckpointError, RequestError, SampleError
from llavamed.llm.request import Image, Message
from llavamed.model.generation import Generator, Prompt
from llavamed.processor.dicom import read_dicom
from llavamed.processor.dicom_limits import MAX_PIXELS
from llavamed.processor.image_files import is_dicom
from llavamed.processor.images import to_pixels
from llavamed.processor.turns import Turn
from llavamed.serve.conversation import Conversation, Settings
from llavamed.serve.export import open_export
from llavamed.serve.prompt import encode_messages
from llavamed.storage.location import locate
from llavamed.storage.manifest import ExportManifest, read, write
from tests.support.dicom_files import dicom_file

GRADIENT = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def generator(tiny_export: Path) -> Generator:
    return open_export(locate(str(tiny_export)), device="cpu")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pictures") / "chest.png"
    Picture.fromarray((GRADIENT // 16).astype(np.uint8)).save(file)
    return file


def evaluated(generator: Generator, picture: Path, question: str) -> str:
    pixels = to_pixels(picture.read_bytes(), generator.images)
    prompt = Prompt([Turn("user", f"<image>\n{question}")], [pixels])
    return generator.answer([prompt], max_new_tokens=20)[0]


def test_a_script_gets_the_answer_of_the_evaluation(
    tiny_export: Path, generator: Generator, picture: Path, llavamed: Run
) -> None:
    expected = evaluated(generator, picture, "What is shown?")
    words = ["--image", str(picture), "--ask", "What is shown?", "--max-tokens", "20"]
    code, out, _ = llavamed("chat", str(tiny_export), *words)
    assert (code, out) == (0, expected + "\n")
    assert len(expected.split()) > 1


def test_an_empty_question_is_refused_and_an_empty_answer_is_said(
    tiny_export: Path, llavamed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = llavamed("chat", str(tiny_export), "--ask", " ")
    assert (code, err) == (2, 'error: --ask="": holds no question; ask one, or leave --ask out\n')
    monkeypatch.setattr(Conversation, "ask", lambda *_: iter(["", ""]))
    code, out, err = llavamed("chat", str(tiny_export), "--ask", "Why?")
    assert (code, out, err) == (0, "\n", "the answer is empty: the model wrote nothing or blanks\n")


def test_a_conversation_remembers_forgets_and_goes_on_after_errors(
    tiny_export: Path,
    picture: Path,
    llavamed: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    saved, emptied = tmp_path / "saved.json", tmp_path / "emptied.json"
    names = ["a picture.png", "the doctor's.png"]
    for name in names:
        shutil.copy(picture, tmp_path / name)
    lines = [
        f"/image {tmp_path}/none.png",
        "/image",
        f"/image '{picture}'",
        "What is </s> shown?",
        "What is shown?",
        "/what",
        f"/save {saved}",
        "/reset",
        *(f"/image {tmp_path / name}" for name in names),
        *(f"/image {shlex.quote(str(tmp_path / name))}" for name in names),
        f"/image {tmp_path}/a\\ picture.png",  # as macOS quotes it
        f"/save {emptied}",
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    code, out, err = llavamed("chat", str(tiny_export), "--max-tokens", "6")
    assert code == 0
    assert out.startswith("For research only.")
    assert f"image={tmp_path}/none.png: there is no such file" in err
    assert out.count("/reset       forget") == 3  # at the start, and where no file is named
    assert f"attached: {picture}\n" in out
    assert [out.count(f"attached: {tmp_path / name}\n") for name in names] == [3, 2]
    assert "messages[0]: its text spells the special token </s>" in err
    turns = json.loads(saved.read_text())["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant"]
    assert turns[0]["content"][0]["type"] == "image"
    assert turns[0]["content"][1]["text"] == "What is shown?"
    assert turns[1]["content"][0]["text"] in out
    assert json.loads(emptied.read_text())["messages"] == []


def test_a_registered_model_needs_the_address_of_its_registry(
    llavamed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    code, _, err = llavamed("chat", "models:/rad@champion", "--ask", "Why?")
    assert code == 2
    assert "export=models:/rad@champion: MLFLOW_TRACKING_URI is not set" in err


def test_an_interrupt_stops_the_answer_and_at_the_prompt_the_conversation(
    tiny_export: Path, llavamed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = iter(["What is shown?", "Where?"])
    stream = Generator.stream
    is_first = [True]

    def read(_: str) -> str:
        if (line := next(asked, None)) is None:
            raise KeyboardInterrupt
        return line

    def interrupted(generator: Generator, *given: Any) -> Any:
        for answer in stream(generator, *given):
            yield answer
            if is_first.pop() if is_first else False:
                raise KeyboardInterrupt

    monkeypatch.setattr(cli_chat.console, "input", read)
    monkeypatch.setattr(Generator, "stream", interrupted)
    code, out, err = llavamed("chat", str(tiny_export), "--max-tokens", "6")
    assert code == 0
    assert "stopped: the conversation is as it was before this question" in err
    monkeypatch.setattr(Generator, "stream", stream)
    alone = Conversation(open_export(locate(str(tiny_export))), Settings(max_tokens=6))
    assert out.endswith("".join(alone.ask("Where?")) + "\n\n")


def test_an_answer_controls_no_terminal(
    tiny_export: Path, llavamed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Conversation, "ask", lambda *_: iter(["a\x07", "b\n\x9bc"]))
    assert llavamed("chat", str(tiny_export), "--ask", "Why?")[1] == "a\x07b\n\x9bc\n"
    monkeypatch.setattr(type(cli_chat.console), "is_terminal", True)
    assert llavamed("chat", str(tiny_export), "--ask", "Why?")[1] == "ab\nc\n"


def test_the_second_question_is_asked_with_the_first(generator: Generator, picture: Path) -> None:
    conversation = Conversation(generator, Settings(max_tokens=8))
    conversation.attach(str(picture))
    first = "".join(conversation.ask("What is shown?"))
    second = "".join(conversation.ask("Where?"))
    turns = [Turn("user", "<image>\nWhat is shown?"), Turn("assistant", first)]
    pixels = to_pixels(picture.read_bytes(), generator.images)
    prompt = Prompt([*turns, Turn("user", "Where?")], [pixels])
    assert second == generator.answer([prompt], max_new_tokens=8)[0]


def test_an_incomplete_export_is_refused(tiny_export: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no export there \(manifest.json is missing\)"):
        open_export(locate(str(tmp_path)))
    copy = tmp_path / "copy"
    locate(str(copy)).upload(tiny_export)
    manifest = read(ExportManifest, locate(str(copy)))
    write(locate(str(copy)), manifest.replace(template_hash="other"))
    with pytest.raises(CheckpointError, match="template=vicuna_v1 is not the one it was trained"):
        open_export(locate(str(copy)))
    write(locate(str(copy)), manifest)
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="its processor cannot be loaded: "):
        open_export(locate(str(copy)))


def png() -> Image:
    buffer = io.BytesIO()
    Picture.fromarray((GRADIENT // 16).astype(np.uint8)).save(buffer, "PNG")
    return Image(buffer.getvalue(), "image/png")


@pytest.mark.parametrize(
    ("messages", "code", "text"),
    [
        ([], "empty_messages", r"messages=\[\]: holds no question"),
        ([("user", "<image> Why?")], "image_count", "names <image> 1 times and it has 0 images"),
        ([("user", "<image><image>", png())], "image_count", "2 times and it has 1 images"),
        ([("system", "x", png()), ("user", "Why?")], "misplaced_image", "the system has 1 images"),
        ([("user", "a"), ("assistant", png()), ("user", "b")], "misplaced_image", "the assistant"),
        ([("user", "a </s> b")], "special_token", "spells the special token </s>"),
        ([("user", "a"), ("user", "b")], "roles_out_of_turn", "two user turns in a row"),
        ([("user", "a"), ("assistant", "b")], "no_question", "the last turn must be the user's"),
        ([("user", Image(b"x", "image/png"))], "corrupt_image", "in none of the known formats"),
        ([("user", "word " * 9000)], "context_length_exceeded", r"maximum context length is \d+"),
    ],
)
def test_what_cannot_be_asked_is_said(generator, messages, code, text) -> None:
    given = [Message(role, tuple(parts)) for role, *parts in messages]
    with pytest.raises(RequestError, match=text) as caught:
        encode_messages(given, generator, max_new_tokens=None, default=8)
    assert caught.value.code == code
    assert caught.value.status == 400


def test_the_answer_must_fit_as_well(generator: Generator) -> None:
    asked = [Message("user", ("Why?",))]
    prompt, room = encode_messages(asked, generator, max_new_tokens=None, default=10**6)
    assert len(prompt.input_ids) + room == generator.context_length
    with pytest.raises(RequestError, match=rf"take 0, and max_tokens={room + 1} come after it"):
        encode_messages(asked, generator, max_new_tokens=room + 1, default=8)


def grey(data: bytes) -> Any:
    return np.asarray(Picture.open(io.BytesIO(data))).astype(int)


def test_a_dicom_file_is_shown_as_a_viewer_does() -> None:
    plain = grey(read_dicom(dicom_file(GRADIENT)))
    assert (plain.min(), plain.max()) == (0, 255)
    low, high = np.percentile(GRADIENT, [0.5, 99.5])
    shown = np.clip((GRADIENT - low) / (high - low), 0, 1) * 255
    assert np.abs(plain - shown).max() <= 0.5
    assert (grey(read_dicom(dicom_file(GRADIENT, inverted=True))) == 255 - plain).all()
    windowed = grey(read_dicom(dicom_file(GRADIENT, window=(2000, 100))))
    assert (windowed[:30] == 0).all()
    assert (windowed[33:] == 255).all()


def test_a_dicom_file_is_an_image_of_a_conversation(generator: Generator, tmp_path: Path) -> None:
    file = tmp_path / "ct.dcm"
    file.write_bytes(dicom_file(GRADIENT))
    assert is_dicom(file.read_bytes())
    conversation = Conversation(generator, Settings(max_tokens=4))
    conversation.attach(str(file))
    assert "".join(conversation.ask("What is shown?"))


def test_dicom_files_that_cannot_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SampleError, match="corrupt_image: "):
        read_dicom(dicom_file(GRADIENT)[:-10])
    monkeypatch.setattr("llavamed.processor.dicom_limits.MAX_PIXELS", 64)
    with pytest.raises(SampleError, match=r"image_too_large: 64x64 pixels, .* at most 64 pixels"):
        read_dicom(dicom_file(GRADIENT))
    assert MAX_PIXELS == 40_000_000
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "pydicom":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SampleError, match="dicom_support: a DICOM file needs pydicom"):
        read_dicom(b"")
