"""The keys of a row, read by their values, with a record of what nobody read."""

from collections.abc import Mapping
from typing import Any

from llavamed.errors import SampleError


class Fields:
    """A mapping as formats write it, where a key may be there and say nothing.

    Arrow gives every row of a column the keys of all of them, null where a row has none, so a key
    counts by its value and not by being there.
    """

    def __init__(self, values: Any) -> None:
        self._values: Mapping[Any, Any] = values if isinstance(values, Mapping) else {}
        self._read: set[Any] = set()
        self._unread_within: list[str] = []

    def named(self, *names: str) -> tuple[str, Any]:
        """The first of these keys that says something, and its value; else of no key, None.

        An empty value says less than any other and more than null.
        """
        there = [name for name in names if self._values.get(name) is not None]
        name = next((name for name in there if not _is_empty(self._values[name])), "")
        name = name or next(iter(there), "")
        self._read.add(name)
        return name, self._values.get(name)

    def take(self, *names: str) -> Any:
        """The value of the first of these keys that says something, or None."""
        return self.named(*names)[1]

    def has(self, name: str) -> bool:
        """Whether the key is there and not null."""
        return self._values.get(name) is not None

    def is_false(self, name: str) -> bool:
        """Whether the key says no."""
        return self._values.get(name) is False

    def text(self, *names: str) -> str:
        """The value as text, numbers and truths as JSON writes them; empty where there is none."""
        value = self.take(*names)
        if isinstance(value, bool):
            return str(value).lower()
        return "" if value is None else str(value)

    def refuse(self, names: Mapping[str, str]) -> None:
        """Raise SampleError, `unsupported_key`, where one of these keys says something.

        Args:
            names: Keys, each with what to do about it.
        """
        for name, advice in names.items():
            value = self._values.get(name)
            if not _is_empty(value):
                raise SampleError("unsupported_key", f"{name} is {value!r}: {advice}")

    def skip(self, *names: str) -> None:
        """Count these keys as read: they are understood and change nothing."""
        self._read.update(names)

    def note_unread(self, prefix: str, inner: "Fields") -> None:
        """Count what was not read of a mapping within this one as not read of this one."""
        self._unread_within += [f"{prefix}.{name}" for name in inner.unread()]

    def unread(self) -> list[str]:
        """Keys that say something and that nobody read, each once, in order."""
        own = [
            str(name)
            for name, value in self._values.items()
            if name not in self._read and not _is_empty(value)
        ]
        return list(dict.fromkeys(own + self._unread_within))

    def keys(self) -> str:
        """All keys, to be shown."""
        return ", ".join(sorted(map(str, self._values)))


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | bytes | list | Mapping) and not value)
