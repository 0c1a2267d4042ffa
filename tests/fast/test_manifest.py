"""Manifests come back as they were written, or are refused with what was found and needed."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavamed.errors import CheckpointError, DamagedFileError, DataError, LlavaMedError
from llavamed.processor.images import ImageSettings
from llavamed.storage.fingerprint import differences, fingerprint
from llavamed.storage.location import MANIFEST, locate
from llavamed.storage.manifest import (
    CheckpointManifest,
    DatasetManifest,
    ExportManifest,
    FiguresManifest,
    ImageFacts,
    Manifest,
    ScoresManifest,
    dump,
    find,
    read,
    write,
)
from tests.support.manifests import (
    SETTINGS,
    checkpoint_manifest,
    dataset_manifest,
    export_manifest,
    scores_manifest,
)

EXAMPLES: list[Manifest] = [
    dataset_manifest(fingerprint="0123", quarantined={"corrupt_image": 3}),
    checkpoint_manifest(settings=SETTINGS.replace(seed=1, stages={"align": {"lr": 1e-3}})),
    FiguresManifest(
        made_from="01", fingerprint="23", num_figures=3, num_kept=1, refused={"md5_mismatch": 2}
    ),
    export_manifest(mfu=0.4, step_seconds={"p95": 0.25}),
    scores_manifest(conditions=("trained",), failures={"right": 1}, overlaps={"rad": {"image": 1}}),
]
FOUND = st.sampled_from(EXAMPLES)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def place_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return locate(str(tmp_path_factory.mktemp("place")))


@pytest.mark.parametrize("manifest", EXAMPLES, ids=lambda manifest: type(manifest).__name__)
def test_what_is_written_is_read(manifest: Manifest, tmp_path: Path) -> None:
    place = locate(str(tmp_path))
    assert find(type(manifest), place) is None
    with pytest.raises(FileNotFoundError):
        read(type(manifest), place)
    write(place, manifest)
    assert read(type(manifest), place) == manifest
    assert dump(manifest) == (tmp_path / manifest.FILE).read_bytes()


@given(model=st.dictionaries(st.text(), PLAIN, max_size=4))
def test_settings_come_back_with_the_same_fingerprint(
    model: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    place, settings = place_of(tmp_path_factory), SETTINGS.replace(model=model)
    write(place, checkpoint_manifest(settings=settings))
    again = read(CheckpointManifest, place).settings
    prints = [fingerprint(each.model_dump(mode="json")) for each in (again, settings)]
    assert prints[0] == prints[1]
    assert settings.differences(again) == []


@given(manifest=FOUND, position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_bit_that_flipped_is_found(
    manifest: Manifest, position: int, bit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = place_of(tmp_path_factory)
    write(place, manifest)
    file = Path(f"{place}/{manifest.FILE}")
    data = bytearray(file.read_bytes())
    data[position % len(data)] ^= 1 << bit
    file.write_bytes(data)
    with suppress(DamagedFileError, manifest.ERROR):
        assert read(type(manifest), place) == manifest  # white space, or the case of an escape


@pytest.mark.parametrize(
    ("kind", "manifest", "error", "hint"),
    [
        (DatasetManifest, dataset_manifest(), DataError, "prepare the dataset again"),
        (CheckpointManifest, checkpoint_manifest(), CheckpointError, "resume with the program"),
        (ExportManifest, export_manifest(), CheckpointError, "use the program that exported it"),
        (ScoresManifest, scores_manifest(), DataError, "delete the evaluation's folder to score"),
    ],
    ids=["dataset", "checkpoint", "export", "scores"],
)
@pytest.mark.parametrize("version", [None, 99])
def test_another_version_is_refused_with_both_numbers(
    kind: type[Manifest],
    manifest: Manifest,
    error: type[LlavaMedError],
    hint: str,
    version: int | None,
    tmp_path: Path,
) -> None:
    write(locate(str(tmp_path)), manifest)
    file = tmp_path / kind.FILE
    facts = json.loads(file.read_text())
    del facts["schema_version"]
    file.write_text(json.dumps(facts if version is None else facts | {"schema_version": version}))
    found = "none" if version is None else version
    message = rf"schema_version={found}: this program reads {kind.VERSION}; {hint}"
    with pytest.raises(error, match=message):
        find(kind, locate(str(tmp_path)))


def test_what_was_changed_by_hand_is_refused(tmp_path: Path) -> None:
    place = locate(str(tmp_path))
    write(place, export_manifest())
    file = tmp_path / MANIFEST
    file.write_text(file.read_text().replace('"steps": 1', '"steps": 2'))
    with pytest.raises(DamagedFileError, match=r"manifest.json: differs from its checksum"):
        read(ExportManifest, place)
    file.write_text("[]")
    with pytest.raises(DamagedFileError, match=r"manifest.json: is not a manifest"):
        read(ExportManifest, place)
    body = {"schema_version": ExportManifest.VERSION, "steps": "many"}
    file.write_text(json.dumps(body | {"checksum": fingerprint(body)}))
    with pytest.raises(CheckpointError, match=r"stage.*steps.*: not what schema_version=1 holds"):
        read(ExportManifest, place)


def test_a_difference_names_the_key_and_both_values() -> None:
    before = {"seed": 0, "stages": {"align": {"optimizer": {"lr": 1e-3}, "lora": None}}}
    now = {"seed": 0, "stages": {"align": {"optimizer": {"lr": 2e-3}, "lora": {"r": 8}}}}
    assert differences(before, now) == [
        "stages.align.optimizer.lr=0.002, was 0.001",
        "stages.align.lora.r=8, was not set",
        "stages.align.lora=not set, was null",
    ]
    assert differences({"a": 1}, {"a": 1, "b": {}}, "x.") == ["x.b={}, was not set"]
    assert differences({"a": (1, 2)}, {"a": [1, 2]}) == []


@given(before=st.dictionaries(st.sampled_from("abc"), PLAIN), now=PLAIN)
def test_nothing_differs_exactly_where_the_fingerprints_are_the_same(
    before: dict[str, Any], now: Any
) -> None:
    changed = before | {"a": now}
    is_same = fingerprint(before) == fingerprint(changed)
    assert is_same == (differences(before, changed) == [])


def test_a_manifest_knows_all_that_makes_an_image() -> None:
    facts = {name: field.annotation for name, field in ImageFacts.model_fields.items()}
    assert facts == get_type_hints(ImageSettings)
