"""The cache of answers on an object store."""

from llavamed.llm.answer import AnswerCache
from tests.fast.test_llm_client import answers, question
from tests.support.chat_endpoint import chat_endpoint


def test_answers_in_a_bucket_are_paid_for_once(s3_uri):
    folder = f"{s3_uri}/answers"
    questions = [question(str(number)) for number in range(10)]
    with chat_endpoint() as endpoint:
        first = answers(endpoint, folder, *questions)
        again = answers(endpoint, folder, *questions)
        assert len(endpoint.bodies) == 10
    assert {answer.is_cached for answer in first} == {False}
    assert {answer.is_cached for answer in again} == {True}
    assert AnswerCache(folder).read(first[0].key)["completion"]["id"] == first[0].response_id
    assert AnswerCache(folder).read("0" * 64) is None
