"""The rule with which lmms-eval scores SLAKE, for comparison with tables made by it.

Source: lmms-eval, `tasks/slake/utils.py`, rewritten from what it computes: equality after lower
case, without signs and without whatever stands in brackets, where a whole answer that means yes or
no in English or Chinese counts as that word.
"""

import re

from llavamed.evaluate.scorers.item import Item

NAME = "lmms-eval/1"

_BRACKETS = re.compile(r"\([^)]*\)|\[[^\]]*\]|（[^）]*）")
_YES = frozenset(str.split("yes y true 是 是的 有 对 正确 存在 包含 可以 正常"))
_NO = frozenset(str.split("no n false 否 不 不是 没有 无 错误 不存在 不包含 不可以 异常"))


def score(item: Item) -> float:
    """Score one item by equality with the reference after normalization."""
    return float(_normalize(item.prediction) == _normalize(item.reference))


def _normalize(text: str) -> str:
    text = _BRACKETS.sub(" ", text.lower())
    text = " ".join(re.sub(r"[^\w\s]", " ", text).split())
    return "yes" if text in _YES else "no" if text in _NO else text
