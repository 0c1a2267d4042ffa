"""What every section of the config shares: its strictness, and types that several fields have."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?$")]
"""Name of a stage or dataset. It has no dots, because dots separate the keys of an override."""
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
"""A positive number that fits the 32-bit integers of the libraries that we use."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""A seed that numpy, torch and Python all accept."""


def added_later(default: Any) -> Any:
    """Return a field that dumps leave out at its default.

    So a new setting does not change fingerprints of runs and datasets that do not use it.
    """
    return Field(default, exclude_if=lambda value: value == default)


ONE, SEVERAL, SWITCH, NUMBER = "[one]", "[several]", "[switch]", "[number]"
"""Tags of the forms that a field takes, which no key can be: names have no brackets."""


def one_or_several(value: Any) -> str:
    """Return the tag of a field that takes one value, or several as a list or mapping."""
    return SEVERAL if isinstance(value, list | tuple | dict) else ONE


def switch_or_number(value: Any) -> str:
    """Return the tag of a field that takes true and false, which 1 and 0 mean too, or a number."""
    return NUMBER if isinstance(value, int | float) and value not in (0, 1) else SWITCH


class Section(BaseModel):
    """A part of the tree. It refuses unknown keys and infinite numbers, and never changes."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )
