import pytest

from llavamed.data.record import Record, check_record
from llavamed.errors import SampleError
from llavamed.processor.turns import Turn

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
