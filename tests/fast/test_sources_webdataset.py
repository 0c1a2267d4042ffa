import gzip
import io
import json
import tarfile

import pytest

from llavamed.config.sources import WebDataset
from llavamed.data.record import check_record
from llavamed.data.sources import open_source
from llavamed.data.sources.webdataset import DETAILED_WORDS, caption_turns
from llavamed.errors import DataError
from tests.support.refused_samples import refusal

TALK = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A lung."}]


def member(name, data=b"x", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def write(folder, *members, name="a.tar", format=tarfile.PAX_FORMAT):
    with tarfile.open(folder / name, "w", format=format) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return folder / name


def source(folder, name="a.tar"):
    return open_source(WebDataset(source="webdataset", path=f"{folder}/{name}"))


def dumped(value):
    return json.dumps(value).encode()


def test_members_that_share_a_name_and_follow_each_other_are_a_sample(tmp_path):
    long = "n" * 200  # which tar writes into a member of its own
    write(
        tmp_path,
        member("train", b"", type=tarfile.DIRTYPE),
        member("train/7.json", dumped({"conversations": TALK, "domain": {"ct": True}})),
        member("train/7.JPG", b"seven"),
        member("val/7.a.png", b"first"),
        member("val/7.b.png", b"second"),
        member("val/7.txt", b"A lung."),
        member("val/7.cls", b"3"),
        member("README", b"of no sample"),
        member(".hidden.jpg", b"of no sample"),
        member("val/._7.jpg", b"of no sample"),
        member(f"{long}.webp", b"long"),
        member(f"{long}.txt", b"Another."),
    )
    found = source(tmp_path)
    records = [found.parse(row) for row in found.rows()]
    assert found.count() == 3
    assert [record.id for record in records] == ["train/7", "val/7", long]
    assert [[found.load_image(image) for image in record.images] for record in records] == [
        [b"seven"],
        [b"first", b"second"],
        [b"long"],
    ]
    assert records[0].domain == "ct"
    for record in records:
        check_record(record)


def test_a_caption_is_asked_for_and_its_sample_described_beside_it(tmp_path):
    note = dumped({"key": "unused", "domain": "mri", "licence": "CC0-1.0", "pmid": 12})
    write(tmp_path, member("1.jpg"), member("1.txt", b" A knee.\n"), member("1.json", note))
    found = source(tmp_path)
    record = found.parse(next(found.rows()))
    assert record.turns == caption_turns("1", "A knee.", 1)
    assert record.turns[1].text == "A knee."
    assert (record.domain, record.licence, record.pmid) == ("mri", "CC0-1.0", "12")


def test_a_caption_beside_a_dialogue_is_told_and_a_byte_order_mark_is_no_word(tmp_path):
    talk = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "A knee."}]
    write(
        tmp_path,
        member("1.jpg"),
        member("1.txt", b"Unused."),
        member("1.json", dumped({"conversations": talk})),
        member("2.jpg"),
        member("2.txt", b"\xef\xbb\xbfA knee."),
    )
    found = source(tmp_path)
    first, second = map(found.parse, found.rows())
    assert (first.turns[1].text, first.unread_keys) == ("A knee.", ("txt members",))
    assert (second.turns[1].text, second.unread_keys) == ("A knee.", ())


def test_a_caption_without_its_picture_is_refused(tmp_path):
    write(tmp_path, member("1.dcm"), member("1.txt", b"A knee."))
    found = source(tmp_path)
    record = found.parse(next(found.rows()))
    assert record.unread_keys == ("dcm members",)
    assert refusal(check_record, record) == (
        "placeholder_mismatch",
        "1 <image> in the text, 0 images",
    )


def test_a_mask_is_no_second_picture_of_its_caption(tmp_path):
    write(
        tmp_path,
        *(member("7.jpg"), member("7.mask.png"), member("7.txt", b"A knee.")),
        *(member("8.left.jpg"), member("8.right.jpg"), member("8.txt", b"Two knees.")),
        *(member("9.Seg.png"), member("9.txt", b"A mask alone.")),
    )
    found = source(tmp_path)
    one, two, alone = map(found.parse, found.rows())
    assert (len(one.images), one.unread_keys) == (1, ("mask.png members",))
    assert (len(two.images), two.unread_keys) == (2, ())
    assert alone.unread_keys == ("seg.png members",)
    assert refusal(check_record, alone)[0] == "placeholder_mismatch"


def test_members_that_are_not_read_are_told_once_a_sample(tmp_path):
    members = [
        "1.jpg",
        "1.txt",
        "1.cls",
        "1.nii.gz",
        "notes.md",
        "README",
        "2.JFIF",
        "2.txt",
        "x.dcm",
    ]
    write(tmp_path, *map(member, members))
    found = source(tmp_path)
    assert {row["id"]: found.parse(row).unread_keys for row in found.rows()} == {
        "1": ("cls members", "endingless members", "gz members", "md members"),
        "2": ("dcm members",),
    }


def test_a_shard_of_which_nothing_is_read_is_named(tmp_path):
    write(tmp_path, member("1.dcm"), member("1.xml"))
    with pytest.raises(
        DataError, match=r"a\.tar: no member of it is read, there are only dcm, xml; "
    ):
        source(tmp_path).count()


def test_the_question_follows_from_the_id_and_the_length_of_the_caption():
    brief, long = ("word " * (DETAILED_WORDS - 1), "word " * DETAILED_WORDS)
    ids = [f"PMC{number}_F1" for number in range(500)]
    asked = {
        caption: {caption_turns(id, caption, 1)[0].text for id in ids} for caption in (brief, long)
    }
    for questions in asked.values():
        assert len(questions) == 8, "four questions, the image before or behind"
        assert sum(text.startswith("<image>\n") for text in questions) == 4
    assert not asked[brief] & asked[long]
    first = [caption_turns(id, brief, 1)[0].text.startswith("<image>") for id in ids]
    assert 200 < sum(first) < 300
    assert caption_turns("a", brief, 2) == caption_turns("a", brief, 2)
    assert caption_turns("a", brief, 2)[0].text.count("<image>") == 2
    assert "<image>" not in caption_turns("a", brief, 0)[0].text


BAD = {
    "image alone": (
        [("jpg", b"x")],
        "no_conversations",
        "no .json or .txt stands next to the picture; members of one name must follow one another",
    ),
    "no dialogue": ([("json", b'{"a": 1}')], "no_conversations", "keys: a"),
    "list": ([("json", b"[]")], "not_json", "a list, not a mapping"),
    "cut off": ([("json", b'{"a"')], "not_json", "Expecting"),
    "bytes": ([("json", b"\xff")], "not_json", "can't decode"),
    "deep": ([("json", b"[" * 100_000)], "not_json", "recursion"),
    "caption's bytes": ([("txt", b"a \xff")], "not_unicode", "b'\\xff'"),
    "two captions": (
        [("a.txt", b"A."), ("b.txt", b"B.")],
        "several_texts",
        "two members ending in .txt",
    ),
    "two dialogues": ([("json", b"{}"), ("more.json", b"{}")], "several_texts", "ending in .json"),
    "role": ([("json", dumped({"turns": [{"role": "x"}]}))], "unknown_role", "'role' is 'x'"),
}


@pytest.mark.parametrize(("kinds", "reason", "detail"), BAD.values(), ids=BAD)
def test_an_unusable_sample_is_listed_and_refused(kinds, reason, detail, tmp_path):
    write(tmp_path, *(member(f"1.{kind}", data) for kind, data in kinds))
    found = source(tmp_path)
    (row,) = found.rows()
    assert row["id"] == "1"
    told = refusal(found.parse, row)
    assert told[0] == reason
    assert detail in told[1]


def test_names_and_links_lead_nowhere(tmp_path):
    (tmp_path / "secret.txt").write_bytes(b"secret")
    file = write(
        tmp_path,
        member("../../etc/passwd.txt", b"harmless"),
        member("/etc/shadow.txt", b"harmless"),
        member("1.jpg", b"", type=tarfile.SYMTYPE, linkname="secret.txt"),
        member("2.txt", b"", type=tarfile.LNKTYPE, linkname="secret.txt"),
        member("3.txt", b"", type=tarfile.FIFOTYPE),
        member("4.txt", b"good"),
    )
    before = sorted(tmp_path.rglob("*"))
    found = source(tmp_path)
    records = [found.parse(row) for row in found.rows()]
    assert [(r.id, r.turns[1].text) for r in records] == [
        ("../../etc/passwd", "harmless"),
        ("/etc/shadow", "harmless"),
        ("4", "good"),
    ]
    assert sorted(tmp_path.rglob("*")) == before
    file.write_bytes(file.read_bytes()[:512])
    with pytest.raises(DataError, match=r"a\.tar: not a tar archive: it ends before byte [\d,]+; "):
        found.parse({"id": "1", "file": str(file), "images": [], "txt": [512, 4]})
    file.unlink()
    with pytest.raises(DataError, match=r"path=/.*/a\.tar: no such file; check"):
        found.load_image(f"{file}#512+4")


def change(data, start, piece):
    return data[:start] + piece + data[start + len(piece) :]


NEGATIVE = b"\xff" * 11 + b"\x00"  # a size of -256 in base 256
DAMAGE = {
    "empty": lambda data: b"",
    "page": lambda data: b"<html>" * 200,
    "body cut off": lambda data: data[:700],
    "cut off between members": lambda data: data[:1024],
    "header cut off": lambda data: data[:1100],
    "damaged header": lambda data: change(data, 1024 + 10, b"\xff" * 30),
    "negative size": lambda data: change_size(data, 1024, NEGATIVE),
    "huge size": lambda data: change_size(data, 1024, b"\x80" + b"\x7f" * 11),
}


def change_size(data, start, size):
    header = change(data[start : start + 512], 124, size)
    header = change(header, 148, b" " * 8)
    header = change(header, 148, b"%06o\0 " % sum(header))
    return change(data, start, header)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_shard_is_named_and_never_ends_early(damage, tmp_path):
    file = write(tmp_path, *(member(f"{number}.txt", b"A lung.") for number in range(3)))
    file.write_bytes(damage(file.read_bytes()))
    found = source(tmp_path)
    for call in (found.count, found.content_hash, lambda: list(found.rows())):
        with pytest.raises(DataError, match=r"path=/.*/a\.tar: not a tar archive: .*; download"):
            call()


def test_a_compressed_shard_is_named_as_such(tmp_path):
    file = write(tmp_path, member("1.txt", b"A lung."))
    file.write_bytes(gzip.compress(file.read_bytes()))
    found = source(tmp_path)
    for call in (found.count, found.content_hash, lambda: list(found.rows())):
        with pytest.raises(
            DataError, match=r"a\.tar: is compressed by gzip, .*; unpack it with gunz"
        ):
            call()


def test_names_with_half_a_character_are_listed(tmp_path):
    write(tmp_path, member("\udce9.jpg"), member("\udce9.txt"), format=tarfile.GNU_FORMAT)
    found = source(tmp_path)
    (row,) = found.rows()
    assert json.loads(json.dumps(row))["id"] == "\udce9"
    assert refusal(check_record, found.parse(row))[0] == "not_unicode"
    found.content_hash()


def test_dicom_uids_are_samples(reference_data):
    file = reference_data / "cases/data/webdataset/dicom-uids-captions.tar"
    if not file.exists():
        pytest.skip("the cases are not here")
    found = source(file.parent, file.name)
    records = [found.parse(row) for row in found.rows()]
    assert [record.id for record in records] == [f"1.2.840.113619.2.55.{n}" for n in range(3)]
    for record in records:
        assert len(record.images) == 1
        check_record(record)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_hash_knows_texts_and_not_times(format, tmp_path):
    def digest(text, mtime):
        write(tmp_path, member("1.jpg"), member("1.txt", text, mtime=mtime), format=format)
        return source(tmp_path).content_hash()

    assert digest(b"A lung.", 0) == digest(b"A lung.", 99)
    assert digest(b"A lung.", 0) != digest(b"A bone.", 0)
