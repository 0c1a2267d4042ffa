import pytest

from llavamed.data import record
from llavamed.data.prepared.decontaminate import CONTAMINATION_SCHEMA, ContaminationRow
from llavamed.data.prepared.sample_tables import SampleCounts
from llavamed.data.record import Record, check_record
from llavamed.errors import SampleError
from llavamed.processor.turns import Turn
from llavamed.storage.manifest import DatasetManifest

QUESTION, ANSWER = Turn("user", "<image>\nWhere?"), Turn("assistant", "Here.")


@pytest.mark.parametrize(
    ("turns", "reason", "detail"),
    [
        ((), "empty_dialogue", "0 turns, no question and answer"),
        ((QUESTION,), "empty_dialogue", "1 turns, no question and answer"),
        ((ANSWER,), "empty_dialogue", "1 turns, no question and answer"),
        ((Turn("doctor", "hm"), QUESTION, ANSWER), "unknown_role", "turn 0 has role 'doctor'"),
        ((QUESTION, Turn("assistant", " \n")), "empty_answer", "no assistant turn has any text"),
        ((QUESTION, QUESTION, ANSWER), "placeholder_mismatch", "2 <image> in the text, 1 images"),
        ((Turn("user", "Where?"), ANSWER), "placeholder_mismatch", "0 <image> in the text, 1 im"),
        ((QUESTION, Turn("assistant", "\ud83d")), "not_unicode", "in it"),
    ],
    ids=lambda value: value if isinstance(value, str) and "_" in value else "",
)
def test_a_record_no_template_could_render_is_refused(turns, reason, detail):
    with pytest.raises(SampleError, match=f"{reason}: ") as caught:
        check_record(Record("1", ("a.jpg",), turns))
    assert caught.value.reason == reason
    assert detail in caught.value.detail


def test_good_records_pass():
    check_record(Record("1", ("a.jpg",), (QUESTION, ANSWER)))
    check_record(Record("1", (), (Turn("system", "Be brief."), Turn("user", "Where?"), ANSWER)))


@pytest.mark.parametrize(
    ("row", "schema"),
    [
        (record.ShardRow, record.SHARD_SCHEMA),
        (record.ContentRow, record.CONTENT_SCHEMA),
        (record.QuarantineRow, record.QUARANTINE_SCHEMA),
        (ContaminationRow, CONTAMINATION_SCHEMA),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_typed_row_has_the_columns_of_its_schema(row, schema):
    assert row.__required_keys__ == {*schema.names}


def test_the_counts_of_samples_are_fields_of_the_manifest():
    assert SampleCounts.__required_keys__ <= DatasetManifest.model_fields.keys()
