"""The rule with which lmms-eval scores SLAKE, for comparison with tables made by it.

Source: lmms-eval, `tasks/slake/utils.py`, rewritten from what it computes: equality after lower
case, without punctuation and without whatever stands in parentheses, where a whole answer that
means yes or no in English or Chinese counts as that word. Known fault, kept on purpose: 正常
(normal) is a yes and 异常 (abnormal) a no, whatever was asked.
"""

import re
import string

from llavamed.evaluate.scorers.item import Item

NAME = "lmms-eval/2"

_PARENTHESES = (re.compile(r"\([^)]*\)"), re.compile(r"（[^）]*）"))
_FULL_WIDTH = "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～、《》【】"
_SPACES = str.maketrans(dict.fromkeys(string.punctuation + _FULL_WIDTH, " "))
_YES = frozenset(str.split("yes yeah yep true 是 是的 有 包含 可以 能 会 正常"))
_NO = frozenset(str.split("no nope false 否 不是 没有 无 不包含 不能 不会 不可以 不正常 异常"))


def score(item: Item) -> float:
    """Score one item by equality with the reference after normalization."""
    return float(_normalize(item.prediction) == _normalize(item.reference))


def _normalize(text: str) -> str:
    text = text.strip().lower()
    for pair in _PARENTHESES:
        text = pair.sub(" ", text)
    text = " ".join(text.translate(_SPACES).split())
    if text == "x ray":
        return "xray"
    return "yes" if text in _YES else "no" if text in _NO else text
