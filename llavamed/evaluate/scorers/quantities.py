"""The words for numbers and units that the strict scorer knows.

Everything is in lower case. A change here changes the version of the scorer, as in `terms`.
"""

_split = str.split

NUMBER_WORDS = {
    word: str(number)
    for number, word in enumerate(
        _split("zero one two three four five six seven eight nine ten eleven twelve")
    )
}
NUMBER_WORDS |= {
    word: str(10 * number)
    for number, word in enumerate(
        _split("twenty thirty forty fifty sixty seventy eighty ninety hundred"), start=2
    )
}
NUMBER_WORDS |= {
    "first": "1st",
    "second": "2nd",
    "third": "3rd",
    "fourth": "4th",
    "fifth": "5th",
    "sixth": "6th",
    "seventh": "7th",
    "eighth": "8th",
    "ninth": "9th",
    "tenth": "10th",
}
ROMAN = {"ii": "2", "iii": "3", "iv": "4", "vi": "6", "vii": "7", "viii": "8", "ix": "9"}
ROMAN_AFTER = {"i": "1", "v": "5", "x": "10"}
"""Roman numerals that are also words; they are numbers only after one of `NUMBERED`."""
NUMBERED = frozenset(
    _split(
        "grade type stage class segment zone level nerve phase factor category group degree "
        "cn salter fontaine"
    )
)

COUNTS = {"none": "0", "no": "0", "single": "1", "solitary": "1", "pair": "2", "couple": "2"}
COUNTS |= {"dozen": "12"}
"""Words that are numbers where a number is asked for."""

LENGTHS = {
    "mm": 1.0,
    "millimeter": 1.0,
    "cm": 10.0,
    "centimeter": 10.0,
    "m": 1000.0,
    "meter": 1000.0,
}
LENGTHS |= {"um": 1e-3, "micrometer": 1e-3, "inch": 25.4}
VOLUMES = {"ml": 1.0, "cc": 1.0, "milliliter": 1.0, "l": 1000.0, "liter": 1000.0}
WEIGHTS = {"mg": 1.0, "g": 1000.0, "gram": 1000.0, "kg": 1e6}
TIMES = {"day": 1.0, "week": 7.0, "month": 30.4, "year": 365.0}
UNITS: dict[str, tuple[str, float]] = {
    unit: (dimension, factor)
    for dimension, units in (
        ("length", LENGTHS),
        ("volume", VOLUMES),
        ("weight", WEIGHTS),
        ("time", TIMES),
    )
    for unit, factor in units.items()
} | {
    "percent": ("share", 1.0),
    "%": ("share", 1.0),
    "hu": ("density", 1.0),
    "degree": ("angle", 1.0),
}
"""Dimension of each unit, and its size in the first unit of that dimension."""
