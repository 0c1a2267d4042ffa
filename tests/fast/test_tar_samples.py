"""Which members of a tar shard make a sample."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from llavamed.data.sources.tar_samples import IMAGES, Member, group_samples, read_name
from llavamed.processor.image_files import FORMATS


def grouped(*names):
    """The names of each sample's members, by its key."""
    members = [Member(*read_name(name), number, 1) for number, name in enumerate(names)]
    return [(key, [names[m.start] for m in found]) for key, found in group_samples(members)]


GROUPS = {
    "one name": {"7": ["7.jpg", "7.json"], "8": ["8.jpg", "8.txt"]},
    "views": {"a": ["a.left.jpg", "a.right.jpg", "a.json"], "b": ["b.json", "b.left.jpg"]},
    "numbered views": {"7": ["7.json", "7.0.jpg", "7.1.jpg"], "8": ["8.0.jpg", "8.json"]},
    "parts": {"7": ["7.image.jpg", "7.caption.txt"], "8": ["8.image.jpg", "8.caption.txt"]},
    "UIDs": {
        "1.2.840.113.7": ["1.2.840.113.7.jpg", "1.2.840.113.7.txt"],
        "1.2.840.113.8": ["1.2.840.113.8.jpg", "1.2.840.113.8.txt"],
    },
    "UIDs that begin another": {
        "1.2.3": ["1.2.3.jpg", "1.2.3.txt"],
        "1.2.3.4": ["1.2.3.4.jpg", "1.2.3.4.txt"],
    },
    "UIDs with views": {
        "1.2.3": ["1.2.3.left.jpg", "1.2.3.right.jpg", "1.2.3.json"],
        "1.2.4": ["1.2.4.left.jpg", "1.2.4.right.jpg", "1.2.4.json"],
    },
    "UIDs without their other half": {
        "1.2.3": ["1.2.3.jpg"],
        "1.2.4": ["1.2.4.txt"],
        "1.2.5": ["1.2.5.jpg", "1.2.5.txt"],
    },
    "UIDs and files of DICOM": {
        "1.2.3": ["1.2.3", "1.2.3.txt"],
        "1.2.4": ["1.2.4.dcm", "1.2.4.txt"],
    },
    "decimals": {"a/dose-0.5mm": ["a/dose-0.5mm.png", "a/dose-0.5mm.json"]},
    "folders with dots": {"v1.0/7": ["v1.0/7.jpg", "v1.0/7.txt"], "v1.0/8": ["v1.0/8.jpg"]},
    "a view beside a whole sample": {"7": ["7.jpg", "7.txt", "7.cls", "7.meta.json"]},
}


@pytest.mark.parametrize("samples", GROUPS.values(), ids=GROUPS)
def test_names_make_samples(samples):
    assert grouped(*(name for names in samples.values() for name in names)) == list(samples.items())


words = st.text("ab-_", min_size=1, max_size=3)
numbers = st.integers(0, 99).map(str)
stems = st.lists(words | numbers, min_size=1, max_size=5).map(".".join)


@given(
    keys=st.lists(stems, unique=True, max_size=6),
    kinds=st.lists(st.sampled_from(sorted(IMAGES)), min_size=1, max_size=2),
    text=st.sampled_from(["txt", "json"]),
)
def test_pictures_and_texts_of_the_same_name_are_a_sample_whatever_the_dots(keys, kinds, text):
    samples = [(key, [*(f"{key}.{kind}" for kind in kinds), f"{key}.{text}"]) for key in keys]
    assert grouped(*(name for _, names in samples for name in names)) == samples


@given(names=st.lists(stems, max_size=12))
def test_every_member_is_of_one_sample(names):
    found = [name for _, members in grouped(*names) for name in members]
    assert sorted(found) == sorted(names)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("7.JPG", ("7", "jpg")),
        ("a.b/7.tar.gz", ("a.b/7.tar", "gz")),
        ("1.2.840.113", ("1.2.840.113", "endingless")),
        ("a/README", ("a/README", "endingless")),
        ("a/._7.jpg", None),
        (".hidden", None),
    ],
)
def test_an_ending_begins_with_a_letter(name, parts):
    assert read_name(name) == parts


def test_pictures_are_the_endings_of_what_is_decoded():
    decoded = {*FORMATS, "MPO"}  # which opens as JPEG
    endings = {end[1:] for end, form in Image.registered_extensions().items() if form in decoded}
    assert endings == IMAGES
