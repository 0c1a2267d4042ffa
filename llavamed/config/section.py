"""What every section of the config shares: its strictness, and a few types of fields."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?$")]
"""Of a stage or dataset; without dots, which part the keys of overrides."""
Fraction = Annotated[float, Field(ge=0, le=1)]


ONE, SEVERAL = "one", "several"


def one_or_several(value: Any) -> str:
    """The tag of a field that takes one value, or several as a list or mapping."""
    return SEVERAL if isinstance(value, list | tuple | dict) else ONE


class Section(BaseModel):
    """A part of the tree: unknown keys are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
