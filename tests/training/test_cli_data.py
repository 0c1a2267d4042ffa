import json
import subprocess
import sys

import pytest
import transformers

from tests.support.small_tokenizers import llama_like

TURNS = [
    {"from": "human", "value": "<image>\nWhat is shown?"},
    {"from": "gpt", "value": "A lung.\nNo mass."},
]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = llama_like()
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def label(tokenizer_folder, tmp_path, llavamed):
    """Run `data labels` over a file of these bytes; gives exit code, rows and errors."""

    def call(text, *words, template="vicuna_v1", tokenizer=tokenizer_folder):
        file = tmp_path / "dialogues.json"
        file.write_bytes(text)
        options = ["--template", template, "--tokenizer", tokenizer, *words]
        code, out, err = llavamed("data", "labels", str(file), *options)
        return code, [json.loads(line) for line in out.splitlines()], err

    return call


def lines(*items):
    return "\n".join(json.dumps(item) for item in items).encode()


def test_a_list_and_lines_give_the_same_rows(label):
    items = [{"id": "a", "conversations": TURNS}, {"id": "b", "conversations": TURNS[1:]}]
    as_list, as_lines = label(json.dumps(items).encode()), label(lines(*items))
    assert as_list == as_lines
    assert as_list[0] == 0
    assert [row.keys() for row in as_list[1]] == [{"id", "input_ids", "labels", "problem"}] * 2


@pytest.mark.parametrize("name", ["seven", 7, 7.5, True, None, "\u2028\ud800"], ids=repr)
def test_an_id_comes_back_as_it_was(name, label):
    (row,) = label(json.dumps([{"id": name, "conversations": TURNS}]).encode())[1]
    assert type(row["id"]) is type(name)
    assert row["id"] in (name, "\u2028?")  # the JSON reader makes a question mark of half a letter


def test_a_row_without_id_is_numbered(label):
    rows = label(lines({"conversations": TURNS}, {"id": "x"}, {"conversations": TURNS}))[1]
    assert [row["id"] for row in rows] == [0, "x", 2]


@pytest.mark.parametrize("count", [1, 5])
def test_images_are_counted_from_the_text_alone(count, label):
    item = {"conversations": TURNS, "image": ["a.png", "b.png"]}
    (row,) = label(lines(item), "--image-tokens", str(count))[1]
    image = llama_like().convert_tokens_to_ids("<image>")
    assert row["input_ids"].count(image) == count
    assert row["problem"] is None


def test_text_is_cut_only_where_it_is_asked_for(label):
    long = {"from": "gpt", "value": "word " * 3000}
    item = {"conversations": [{"from": "human", "value": "Say it."}, long]}
    (whole,), (cut,) = label(lines(item))[1], label(lines(item), "--max-length", "300")[1]
    assert len(whole["input_ids"]) > 3000
    assert (cut["input_ids"], cut["labels"]) == (whole["input_ids"][:300], whole["labels"][:300])


def test_problems_are_rows_and_a_count_and_no_failure(label):
    items = [
        {"id": 1, "conversations": TURNS},
        {"id": 2, "conversations": [{"from": "doctor", "value": "hm"}]},
        {"id": 3},
        {"id": 4, "conversations": [TURNS[0], TURNS[0], TURNS[1]]},
        {"id": 5, "conversations": []},
        {"id": 6, "conversations": [{"from": "human", "value": "word " * 400}, TURNS[1]]},
        "text",
    ]
    code, rows, err = label(json.dumps(items).encode(), "--max-length", "100")
    reasons = [row["problem"] and row["problem"].partition(": ")[0] for row in rows]
    assert reasons == [
        None,
        "unknown_role",
        "no_conversations",
        "roles_out_of_turn",
        "no_supervised_token",
        "no_supervised_token",
        "no_conversations",
    ]
    for row, reason in zip(rows, reasons, strict=True):
        if reason == "no_supervised_token":  # is shown all the same: the mask is what is looked for
            assert set(row["labels"]) <= {-100}
            assert len(row["labels"]) == len(row["input_ids"])
        elif reason is not None:
            assert row["input_ids"] == row["labels"] == []
    assert code == 0
    assert err == (
        "7 dialogues, 6 with a problem (2 no_conversations, 2 no_supervised_token, "
        "1 unknown_role, 1 roles_out_of_turn)\n"
    )


def test_mistakes_are_a_sentence_and_a_code(label, tmp_path):
    text = lines({"conversations": TURNS})
    cases = [
        (label(b"<html>"), 1, "dialogues.json: not JSON: it begins with nei"),
        (label(text + b"\n{"), 1, "dialogues.json: not JSON: "),
        (label(text, template="vicuna"), 2, "template=vicuna: is not a template of llavamed; use"),
        (label(text, tokenizer=f"{tmp_path}/no"), 2, f"tokenizer={tmp_path}/no: no such folder; "),
        (label(text, tokenizer="far/too/deep"), 2, "tokenizer=far/too/deep: no such folder; give"),
        (label(text, tokenizer=str(tmp_path)), 2, f"tokenizer={tmp_path}: has no tokenizer that "),
        (label(text, template="tokenizer"), 2, "template=tokenizer: the tokenizer "),
    ]
    for (code, _, err), expected_code, sentence in cases:
        assert (code, err.startswith("error: "), sentence in err) == (expected_code, True, True)


def test_an_absent_file_is_named(tokenizer_folder, llavamed):
    words = ["/none.json", "--template", "plain", "--tokenizer", tokenizer_folder]
    said = "error: path=/none.json: no such file; check the dataset's path\n"
    assert llavamed("data", "labels", *words) == (1, "", said)


def test_a_slow_tokenizer_is_refused_before_anything_is_printed(label, tmp_path):
    transformers.ByT5Tokenizer().save_pretrained(tmp_path / "bytes")
    code, rows, err = label(lines({"id": 1}), tokenizer=str(tmp_path / "bytes"))
    assert (code, rows) == (2, [])
    assert "bytes: is a slow tokenizer, which cannot map tokens to places in the text; use" in err


def test_rows_before_a_damage_are_printed_and_nothing_else_is(tokenizer_folder, tmp_path):
    good = lines({"id": 1, "conversations": TURNS})
    code = "import sys; from llavamed.cli.main import main; main(sys.argv[1:])"
    file = tmp_path / "cut.jsonl"
    file.write_bytes(good + b"\n" + b'{"id": ')
    words = ["data", "labels", str(file), "--template", "plain", "--tokenizer", tokenizer_folder]
    found = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 1
    (row,) = [json.loads(line) for line in found.stdout.splitlines()]
    assert row["problem"] is None
    assert "not JSON" in found.stderr.splitlines()[-1]
