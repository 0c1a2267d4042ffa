"""A config file that cannot be read is refused with the place in it, and shows none of it."""

import pytest

from llavamed.config.load import load_config
from llavamed.errors import ConfigError


def message(file):
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    return str(caught.value)


FILE_MISTAKES = {
    "empty": (b"", "must be a mapping with name, storage, model ...; correct the file"),
    "list": (b"- name", "must be a mapping with name, storage, model ...; correct the file"),
    "no YAML": (
        b"name: demo\nkey: [hunter2\n",
        r"not valid YAML: line 3, column 1: expected ',' or ']', but got '<stream end>'; correct",
    ),
    "not UTF-8": (b"name: \xff", "not valid YAML: 'utf-8' codec can't decode byte 0xff"),
    "key twice": (b"name: a\nname: b", "not valid YAML: line 2, column 1: the key 'name' occurs"),
    "template": (
        b"name: {{ name }}",
        "not valid YAML: line 1, column 8: a mapping or list cannot be a key, quote braces",
    ),
    "list as a key": (b"? [a]\n: b", "not valid YAML: line 1, column 3: a mapping or list cannot"),
    "tag": (
        b"name: !!timestamp 2026-13-45",
        "not valid YAML: line 1, column 7: the tag 'tag:yaml.org,2002:timestamp' is not read",
    ),
    "program": (b"name: !!python/name:os.system", "not valid YAML: line 1, column 7: the tag"),
    "anchor": (
        b"a: &x [1]\nb: *x",
        "not valid YAML: line 1, column 4: anchors and aliases are not",
    ),
    "itself": (b"&a [*a]", "not valid YAML: line 1, column 1: anchors and aliases are not read"),
    "alias": (b"b: *x", "not valid YAML: line 1, column 4: anchors and aliases are not read"),
    "too deep": (b"[" * 1000, "not valid YAML: line 1, column 34: more than 32 levels; correct"),
    "too many digits": (b"seed: " + b"9" * 5000, "not valid YAML: line 1, column 7: a number has"),
}


@pytest.mark.parametrize(("data", "sentence"), FILE_MISTAKES.values(), ids=FILE_MISTAKES)
def test_an_unreadable_file_is_named_with_what_is_wrong(data, sentence, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_bytes(data)
    found = message(file)
    assert found.startswith(f"config={file}: {sentence}")
    assert "hunter2" not in found
    assert "\n" not in found


def test_an_absent_file_is_named(tmp_path):
    file = tmp_path / "run.yaml"
    assert message(file) == (
        f"config={file}: cannot be read (No such file or directory); check the path"
    )
    assert "Is a directory" in message(tmp_path)
    uri = "s3://bucket/run.yaml"
    assert message(uri) == (
        f"config={uri}: is a URI, and this file is read from a disk only; copy it here"
    )
