"""Read the keys of a row by their values, and keep track of the keys that are not read."""

from collections.abc import Mapping
from typing import Any

from llavamed.errors import SampleError


class Fields:
    """A mapping from a published format, where a key may be present without a value.

    Arrow gives each row the keys of all rows, with null where a row has none, so a key only counts
    if it has a value.
    """

    def __init__(self, values: Any) -> None:
        self._values: Mapping[Any, Any] = values if isinstance(values, Mapping) else {}
        self._read: set[Any] = set()
        self._unread_within: list[str] = []

    def named(self, *names: str) -> tuple[str, Any]:
        """Return the first of these keys with a value, and the value; ("", None) if there is none.

        An empty value counts only if no other key has a non-empty one; null never counts.
        """
        there = [name for name in names if self._values.get(name) is not None]
        name = next((name for name in there if not _is_empty(self._values[name])), "")
        name = name or next(iter(there), "")
        self._read.add(name)
        return name, self._values.get(name)

    def take(self, *names: str) -> Any:
        """Return the value of the first of these keys that has one, or None."""
        return self.named(*names)[1]

    def has(self, name: str) -> bool:
        """Return whether the key is present and not null."""
        return self._values.get(name) is not None

    def is_false(self, name: str) -> bool:
        """Return whether the value of the key is false."""
        return self._values.get(name) is False

    def text(self, *names: str) -> str:
        """Return the value as text, numbers and booleans as in JSON; empty if there is none."""
        value = self.take(*names)
        if isinstance(value, bool):
            return str(value).lower()
        return "" if value is None else str(value)

    def refuse(self, names: Mapping[str, str]) -> None:
        """Raise SampleError (`unsupported_key`) if one of these keys has a value.

        Args:
            names: The keys, each with advice for the message.
        """
        for name, advice in names.items():
            value = self._values.get(name)
            if not _is_empty(value):
                raise SampleError("unsupported_key", f"{name} is {value!r}: {advice}")

    def skip(self, *names: str) -> None:
        """Mark keys as read that are known and change nothing."""
        self._read.update(names)

    def note_unread(self, prefix: str, inner: "Fields") -> None:
        """Add the unread keys of a mapping within this one to the unread keys of this one."""
        self._unread_within += [f"{prefix}.{name}" for name in inner.unread()]

    def unread(self) -> list[str]:
        """Return the distinct keys that have a value and were not read, in order."""
        own = [
            str(name)
            for name, value in self._values.items()
            if name not in self._read and not _is_empty(value)
        ]
        return list(dict.fromkeys(own + self._unread_within))

    def keys(self) -> str:
        """Return all keys, for a message."""
        return ", ".join(sorted(map(str, self._values)))


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | bytes | list | Mapping) and not value)
