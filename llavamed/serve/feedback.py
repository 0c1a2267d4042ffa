"""Accept the feedback of a user on an answer, which is kept only with consent."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from llavamed.errors import RequestError

_Text = Annotated[str, StringConstraints(max_length=20_000)]


class Feedback(BaseModel):
    """An opinion. The texts of question and answer come only if the user agreed to that, too."""

    model_config = ConfigDict(extra="forbid")

    consent: Literal[True]
    rating: Literal["up", "down"]
    reason: Annotated[str, StringConstraints(max_length=2000)] = ""
    model: Annotated[str, StringConstraints(max_length=200)]
    answer_id: Annotated[str, StringConstraints(max_length=100)]
    question: _Text | None = None
    answer: _Text | None = None


def parse_feedback(data: bytes) -> dict[str, Any]:
    """Return an opinion as a line of the feedback file.

    Raises:
        RequestError: It is not of this form, or comes without consent.
    """
    try:
        given = Feedback.model_validate_json(data)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
        name = ".".join(map(str, fault["loc"])) or "body"
        raise RequestError(
            f"{name}: {fault['msg'][0].lower()}{fault['msg'][1:]}; correct it",
            code="invalid_value",
            param=name,
        ) from None  # the error holds what was sent
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    return {"time": time, **given.model_dump(exclude_none=True)}
