"""Weights that lack files or ends are found before anything is prepared for them."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from llavamed.errors import ConfigError
from llavamed.processor.weight_files import check_weight_files

KEY = "model.language_model.weights"
TENSORS = {"a": np.ones((4, 3), np.float32), "b": np.ones(5, np.float16)}


def write_weights(folder: Path, num_files: int) -> list[Path]:
    """Write weights as transformers does: in one file, or in several with an index."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    if num_files == 1:
        names = ["model.safetensors"]
    else:
        names = [f"model-{n + 1:05}-of-{num_files:05}.safetensors" for n in range(num_files)]
        index = {"weight_map": {f"{name}.a": name for name in names}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in names:
        save_file(TENSORS, folder / name)
    return [folder / name for name in names]


@pytest.mark.parametrize("num_files", [1, 3])
def test_whole_weights_pass(tmp_path, num_files):
    write_weights(tmp_path, num_files)
    (tmp_path / "consolidated.safetensors").write_bytes(b"")  # another copy, which nobody loads
    check_weight_files(str(tmp_path), KEY)
    check_weight_files(tmp_path.as_uri(), KEY)


@given(st.data())
def test_a_file_that_is_cut_off_anywhere_is_named(tmp_path_factory, data):
    files = write_weights(tmp_path_factory.mktemp("weights"), data.draw(st.sampled_from([1, 2])))
    file = data.draw(st.sampled_from(files))
    size = data.draw(st.integers(0, file.stat().st_size - 1))
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ConfigError, match=rf"{KEY}=.*: {file.name} is cut off at {size} bytes"):
        check_weight_files(str(file.parent), KEY)


@pytest.mark.parametrize("content", [b"\xff" * 100, b"<html>not found</html>" * 9, bytes(64)])
def test_a_file_of_another_kind_is_named(tmp_path, content):
    (file,) = write_weights(tmp_path, 1)
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"model\.safetensors is cut off at .*; copy it again"):
        check_weight_files(str(tmp_path), KEY)


@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_missing_files_are_counted(tmp_path, index):
    first, *others = write_weights(tmp_path, 3)
    (tmp_path / "model.safetensors.index.json").rename(tmp_path / index)
    for file in others:
        file.unlink()
    expected = rf"lacks 2 of the 3 files of its weights, the first is {others[0].name}; copy them"
    with pytest.raises(ConfigError, match=expected):
        check_weight_files(str(tmp_path), KEY)
    assert first.exists()


def test_a_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"holds no weights \(model\.safetensors\), only config"):
        check_weight_files(str(tmp_path), KEY)


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    (file,) = write_weights(tmp_path, 1)
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ConfigError, match=r"is a pointer of Git LFS; fetch the files, .*lfs pull"):
        check_weight_files(str(tmp_path), KEY)


def test_names_on_the_hub_and_gguf_files_are_left_to_their_readers(tmp_path):
    check_weight_files("openai/clip-vit-large-patch14", KEY)
    check_weight_files(str(tmp_path / "model.gguf"), KEY)
