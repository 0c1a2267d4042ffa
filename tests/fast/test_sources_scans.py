"""Scans become pictures by the standard's own steps, and only where they name nobody."""

import hashlib
import io
import json
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.pixels import apply_voi_lut, pixel_array

from llavamed.config.sources import Scans
from llavamed.data.record import check_record
from llavamed.data.sources import fetch_image, open_source
from llavamed.errors import DataError, SampleError
from llavamed.processor.dicom import _decode, check_deidentified, read_dicom
from llavamed.processor.grey_levels import apply_window
from llavamed.processor.nifti import choose_slices, otsu, read_nifti
from tests.support.dicom_files import with_tags

VOLUMES = Path(nibabel.__file__).parent / "tests" / "data"
PICTURES = [
    *("CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm"),
    *("MR_small_jpeg_ls_lossless.dcm", "MR_small_jp2klossless.dcm", "JPEG2000.dcm"),
    *("693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm", "image_dfl.dcm", "examples_palette.dcm"),
    *("SC_rgb_jpeg.dcm", "SC_rgb_rle_16bit_2frame.dcm", "examples_ybr_color.dcm"),
]
COLOURS = ("Red", "Green", "Blue")
DAMAGED = ["JPEG-lossy.dcm", "MR_truncated.dcm", "no_meta.dcm", "meta_missing_tsyntax.dcm"]


def file(name):
    return Path(get_testdata_file(name)).read_bytes()


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def changed(name, **tags):
    """A file of pydicom's with other tags."""
    return with_tags(file(name), **tags)


ATTESTED = {"PatientIdentityRemoved": "YES", "DeidentificationMethod": "by hand"}


@pytest.mark.parametrize("name", PICTURES)
def test_every_syntax_is_decoded(name):
    data = file(name)
    dataset = pydicom.dcmread(io.BytesIO(data))
    found = pixels(read_dicom(data))
    assert found.shape[:2] == (dataset.Rows, dataset.Columns)
    assert found.dtype == np.uint8
    assert np.ptp(found) > 0


def test_what_cannot_be_decoded_names_its_transfer_syntax():
    dataset = pydicom.dcmread(io.BytesIO(file("CT_small.dcm")))
    del dataset.PixelData
    syntax = dataset.file_meta.TransferSyntaxUID.name
    with pytest.raises(SampleError, match=f"corrupt_image: {syntax}: "):
        _decode(dataset, b"", 0)


def test_the_same_image_is_the_same_picture_in_every_syntax():
    names = ("MR_small", "MR_small_RLE", "MR_small_jp2klossless", "MR_small_implicit")
    found = [read_dicom(file(f"{name}.dcm")) for name in names]
    assert len(set(found)) == 1


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({}, "identifiable: its tags do not say that the patient's identity was removed"),
        ({"PatientIdentityRemoved": "YES"}, "identifiable"),
        ({"PatientIdentityRemoved": "NO", "DeidentificationMethod": "x"}, "identifiable"),
        (ATTESTED | {"BurnedInAnnotation": "YES"}, "burned_in_text: BurnedInAnnotation=YES"),
        (
            ATTESTED | {"Modality": "US"},
            "burned_in_text: BurnedInAnnotation=absent for modality US",
        ),
        (ATTESTED | {"Modality": "US", "BurnedInAnnotation": "NO"}, None),
        (ATTESTED, None),
    ],
)
def test_a_file_that_may_name_somebody_is_refused(tags, reason):
    data = changed("CT_small.dcm", **tags)
    if reason is None:
        check_deidentified(data)
        return
    with pytest.raises(SampleError, match=reason):
        check_deidentified(data)


def test_bright_is_dark_in_monochrome1():
    plain = pixels(read_dicom(file("CT_small.dcm")))
    data = changed("CT_small.dcm", PhotometricInterpretation="MONOCHROME1")
    assert (pixels(read_dicom(data)) == 255 - plain).all()


def test_the_first_of_several_windows_counts():
    several = changed("CT_small.dcm", WindowCenter=[40, 300], WindowWidth=[80, 1500])
    one = changed("CT_small.dcm", WindowCenter=40, WindowWidth=80)
    wide = changed("CT_small.dcm", WindowCenter=300, WindowWidth=1500)
    found = [pixels(read_dicom(data)) for data in (several, one, wide)]
    assert (found[0] == found[1]).all()
    assert (found[0] != found[2]).any()


def test_a_table_of_values_counts_before_a_window():
    table = Dataset()
    table.LUTDescriptor = [4096, 0, 12]
    table.LUTData = np.arange(4095, -1, -1, dtype="<u2").tobytes()
    dark_is_bright = changed("MR_small.dcm", VOILUTSequence=[table])
    found = pixels(read_dicom(dark_is_bright)).astype(int)
    stored = pixel_array(pydicom.dcmread(io.BytesIO(dark_is_bright)))
    assert (found == np.round((4095 - np.clip(stored, 0, 4095)) * (255 / 4095))).all()


def table_of(entries, first, bits, *, packed=False):
    table = Dataset()
    table.LUTDescriptor = [len(entries), first, bits]
    table["LUTDescriptor"].VR = "SS" if first < 0 else "US"
    data = np.asarray(entries, dtype=np.uint8 if packed else "<u2").tobytes()
    table.add_new("LUTData", "OW", data)
    return table


@pytest.mark.parametrize("packed", [False, True])
def test_a_table_may_have_fewer_bits_than_the_values_it_is_for(packed):
    """As those of scanners with twelve bits for screens of eight."""
    entries = np.arange(4096) // 16
    data = changed("MR_small.dcm", VOILUTSequence=[table_of(entries, 0, 8, packed=packed)])
    stored = pixel_array(pydicom.dcmread(io.BytesIO(data)))
    assert stored.max() > 255
    assert (pixels(read_dicom(data)) == entries[np.clip(stored, 0, 4095)]).all()


@given(
    first=st.integers(-300, 300),
    bits=st.integers(8, 16),
    number=st.integers(2, 500),
    name=st.sampled_from(["VOILUTSequence", "ModalityLUTSequence"]),
)
def test_values_outside_a_table_get_its_first_or_last_entry(first, bits, number, name):
    entries = np.linspace(0, 2**bits - 1, number).round().astype(int)
    window = {"WindowCenter": 2 ** (bits - 1), "WindowWidth": 2**bits}
    data = changed("MR_small.dcm", **window, **{name: [table_of(entries, first, bits)]})
    stored = pixel_array(pydicom.dcmread(io.BytesIO(data))).astype(int)
    levels = entries[np.clip(stored - first, 0, number - 1)] * (255 / (2**bits - 1))
    assert (pixels(read_dicom(data)) == levels.round()).all()


def test_a_palette_may_have_more_entries_than_eight_bits_can_number():
    number = 1000
    entries = {name: (np.arange(number) * k % 256) for k, name in enumerate(COLOURS, start=1)}
    stored = np.arange(128 * 128, dtype="<u2").reshape(128, 128) % 1500
    tags = {"PhotometricInterpretation": "PALETTE COLOR", "PixelRepresentation": 0}
    for name, each in entries.items():
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [number, 0, 8]
        tags[f"{name}PaletteColorLookupTableData"] = each.astype(np.uint8).tobytes()
    found = pixels(read_dicom(changed("CT_small.dcm", PixelData=stored.tobytes(), **tags)))
    places = np.clip(stored, 0, number - 1)
    assert (found == np.stack([each[places] for each in entries.values()], axis=-1)).all()


def test_padding_is_black_and_may_be_a_range():
    data = changed("CT_small.dcm", PixelPaddingValue=200, PixelPaddingRangeLimit=-50)
    stored = pixel_array(pydicom.dcmread(io.BytesIO(data)))
    is_padding = (stored >= -50) & (stored <= 200)
    assert 0 < is_padding.mean() < 1
    plain = pixels(read_dicom(file("CT_small.dcm")))
    assert (pixels(read_dicom(data)) == np.where(is_padding, 0, plain)).all()


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_the_same_in_strips_of_any_height(name, monkeypatch):
    whole = read_dicom(file(name))
    monkeypatch.setattr("llavamed.processor.dicom._STRIP_ROWS", 7)
    assert read_dicom(file(name)) == whole


NO_PICTURE = "no_picture: it is an object of modality"
DAMAGED_TAGS = r"corrupt_image: damaged tags: \w+$"  # without their text
MORE = "corrupt_image: {} are coded in 8x8 pixels"
TOO_LARGE = r"image_too_large: 6000x60*00 pixels, \d+ bytes; at"
SMALL, LARGE = {"Rows": 8, "Columns": 8}, {"Columns": 6000}


@pytest.mark.parametrize(
    ("name", "tags", "reason"),
    [
        *((name, {}, "corrupt_image") for name in DAMAGED),
        *((name, {}, NO_PICTURE) for name in ("liver_1frame.dcm", "rtdose.dcm", "test-SR.dcm")),
        ("CT_small.dcm", {"RescaleSlope": ""}, DAMAGED_TAGS),
        ("CT_small.dcm", {"VOILUTSequence": [Dataset()]}, DAMAGED_TAGS),
        ("CT_small.dcm", {"ModalityLUTSequence": [table_of([], 0, 16)]}, DAMAGED_TAGS),
        ("CT_small.dcm", {"Rows": [128, 128]}, DAMAGED_TAGS),
        ("MR_small_RLE.dcm", SMALL, MORE.format("6108 bytes")),
        ("693_J2KI.dcm", SMALL, MORE.format("512x512 pixels")),
        ("SC_jpeg_no_color_transform.dcm", SMALL, MORE.format("256x256 pixels")),
        ("MR_small_RLE.dcm", LARGE | {"Rows": 60000}, TOO_LARGE),
        ("MR_small_RLE.dcm", LARGE | {"Rows": 6000, "BitsAllocated": 64}, TOO_LARGE),
    ],
    ids=str,
)
def test_what_makes_no_picture_is_refused(name, tags, reason):
    with pytest.raises(SampleError, match=reason):
        read_dicom(changed(name, **tags) if tags else file(name))


def test_a_damaged_jpeg_in_a_dicom_file_ends_no_process():
    """GDCM throws past Python where the start of a segment is lost, and the process ends."""
    data = bytearray(file("SC_rgb_jpeg.dcm"))
    segment = data.index(b"\xff\xd8\xff") + 118
    assert data[segment] == 0xFF
    data[segment] = 130
    assert pixels(read_dicom(bytes(data))).shape == (256, 256, 3)


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [("MR_small_jpeg_ls_lossless.dcm", 6, 232), ("SC_rgb_jpeg_gdcm.dcm", 22, 208)],
)
def test_a_file_that_ends_gdcm_ends_nothing_else(name, place, value):
    """The bits of a sample, damaged: GDCM throws past Python, or writes where it must not."""
    data = bytearray(file(name))
    data[data.index(b"\xff\xd8\xff") + place] = value
    for _ in range(2):
        with pytest.raises(
            SampleError, match=r"corrupt_image: JPEG.*: RuntimeError: GDCM has ended"
        ):
            read_dicom(bytes(data))
        assert np.ptp(pixels(read_dicom(file(name)))) > 0


def test_frames_are_named_by_number_and_the_first_is_the_default():
    data = file("examples_ybr_color.dcm")
    number = int(pydicom.dcmread(io.BytesIO(data)).NumberOfFrames)
    frames = [read_dicom(data, frame=each) for each in (0, number // 2)]
    assert read_dicom(data) == frames[0] != frames[1]
    with pytest.raises(SampleError, match=rf"no_such_frame: frame {number} of {number}"):
        read_dicom(data, frame=number)


@given(
    st.lists(st.integers(-3000, 3000), min_size=1, max_size=50),
    st.integers(-1000, 1000),
    st.integers(2, 2000),
)
def test_a_window_is_that_of_the_standard(values, centre, width):
    dataset = Dataset()
    dataset.WindowCenter, dataset.WindowWidth = centre, width
    dataset.PhotometricInterpretation, dataset.BitsStored, dataset.PixelRepresentation = (
        *("MONOCHROME2", 16),
        1,
    )
    array = np.array(values, np.int16)
    expected = (apply_voi_lut(array, dataset) + 2**15) / (2**16 - 1)
    assert np.allclose(apply_window(array.astype(float), centre, width), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["example4d.nii.gz", "anatomical.nii", "functional.nii"])
def test_a_volume_gives_upright_slices_of_its_middle(name):
    data = (VOLUMES / name).read_bytes()
    image = nibabel.as_closest_canonical(nibabel.load(VOLUMES / name))
    volume = np.asarray(image.dataobj)
    volume = volume[..., 0] if volume.ndim == 4 else volume
    chosen = choose_slices(volume, 3)
    assert chosen == sorted(chosen)
    depth = volume.shape[2]
    assert all(0.2 * depth - 1 <= each <= 0.8 * depth for each in chosen)
    for number, position in enumerate(chosen):
        found = pixels(read_nifti(data, number=number, count=3)).astype(float)
        plane = np.rot90(volume[::-1, :, position]).astype(float)
        assert found.shape == plane.shape
        assert np.corrcoef(found.ravel(), plane.ravel())[0, 1] > 0.9


def test_an_empty_slice_is_replaced_by_the_nearest_that_is_not():
    volume = np.zeros((8, 8, 20))
    volume[2:6, 2:6, 13:] = 1
    assert choose_slices(volume, 2) == [13, 13]


@given(st.floats(0, 10), st.floats(20, 30), st.integers(5, 50), st.integers(5, 50))
def test_the_threshold_lies_between_two_classes(dark, bright, some, others):
    values = np.array([dark] * some + [bright] * others, np.float32)
    assert dark <= otsu(values) < bright


def test_a_volume_whose_values_can_hardly_be_told_apart_is_refused():
    values = np.full((4, 4, 4), 1e30)
    values[0] *= 1 + 1e-7
    data = nibabel.Nifti1Image(values, np.eye(4)).to_bytes()
    with pytest.raises(SampleError, match=r"corrupt_image: every value is about 1e\+30"):
        read_nifti(data)


@pytest.mark.parametrize("data", [b"", b"\x1f\x8bno gzip", b"no volume" * 100])
def test_what_is_no_volume_is_refused(data):
    with pytest.raises(SampleError, match="corrupt_image"):
        read_nifti(data)


@pytest.fixture
def scans(tmp_path):
    """A source of a volume, a CT and a PNG, of which the first two are attested by a list."""
    files = {
        "brain.nii.gz": (VOLUMES / "example4d.nii.gz").read_bytes(),
        "ct.dcm": file("CT_small.dcm"),
        "mr.dcm": file("MR_small.dcm"),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    turns = [
        {"from": "human", "value": "<image>\n<image>\nWhat is it?"},
        {"from": "gpt", "value": "A brain, and a chest."},
    ]
    row = {"id": "1", "image": ["brain.nii.gz", "ct.dcm"], "conversations": turns}
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    hashes = [hashlib.sha256(files[name]).hexdigest() for name in ("brain.nii.gz", "ct.dcm")]
    (tmp_path / "attested").write_text("".join(f"{each}  a name\n" for each in hashes))
    return {
        "source": "scans",
        "path": f"{tmp_path}/rows.json",
        "image_folder": str(tmp_path),
        "attested": f"{tmp_path}/attested",
        "attested_sha256": hashlib.sha256((tmp_path / "attested").read_bytes()).hexdigest(),
    }


def test_a_volume_becomes_slices_with_placeholders_of_their_own(scans):
    source = open_source(Scans(**scans, slices_per_volume=3))
    [row] = source.rows()
    record = source.parse(row)
    check_record(record)
    assert len(record.images) == 4
    assert record.turns[0].text == "<image><image><image>\n<image>\nWhat is it?"
    found = [pixels(fetch_image(source, each)) for each in record.images]
    assert [each.shape for each in found] == [(96, 128)] * 3 + [(128, 128)]
    assert (found[0] != found[2]).any()


def test_a_scan_that_is_not_on_the_list_is_refused(scans):
    source = open_source(Scans(**scans))
    with pytest.raises(SampleError, match="identifiable"):
        source.load_image("mr.dcm")
    unlisted = open_source(Scans(**scans | {"attested": None, "attested_sha256": None}))
    with pytest.raises(
        SampleError, match="nothing in a NIfTI file attests that it was de-identified"
    ):
        unlisted.load_image("brain.nii.gz")


def test_a_list_that_was_changed_is_refused(scans):
    with Path(scans["attested"]).open("a") as lines:
        lines.write("0" * 64 + "\n")
    source = open_source(Scans(**scans))
    with pytest.raises(
        DataError, match=r"has the SHA-256 .*, and attested_sha256 is .*; check who"
    ):
        source.load_image("ct.dcm")
    Path(scans["attested"]).unlink()
    with pytest.raises(DataError, match=r"attested=.*: no such file; check the path"):
        open_source(Scans(**scans)).load_image("ct.dcm")


def test_a_list_without_its_hash_is_refused(scans):
    with pytest.raises(ValueError, match=r"attested=.*: needs attested_sha256, which"):
        Scans(**scans | {"attested_sha256": None})
