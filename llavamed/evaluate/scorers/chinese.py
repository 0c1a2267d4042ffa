"""Read yes and no in Chinese and Japanese, whose words are not divided by spaces."""

import re

from llavamed.evaluate.scorers.vocabulary import CHINESE_NO, CHINESE_YES, UNDECIDED
from llavamed.evaluate.scorers.words import CHINESE

ABSENT = object()
"""The text neither answers yes or no nor leaves the question open."""
_CHINESE_TERMS = (
    (re.compile("核?磁共振(?:成像)?"), " MRI "),
    (re.compile("(?:电子)?计算机(?:[Xx]线)?断层(?:扫描|成像)?"), " CT "),
    (re.compile(r"[Xx]\s*-?(?:光|射线|线)片?"), " X-ray "),
    (re.compile("超声波?"), " ultrasound "),
    (re.compile("横断位|横轴位|横切面|轴位|轴向"), "横断面"),
    (re.compile("冠状位"), "冠状面"),
    (re.compile("矢状位"), "矢状面"),
)
_CHINESE_DIGITS = {word: str(number) for number, word in enumerate("零一二三四五六七八九十")}
_CHINESE_DIGITS |= {"两": "2"}
_CHINESE_NUMBER = re.compile(
    r"(?<![第A-Za-z\d])([零一二两三四五六七八九十]|\d+)\s*(?:[个只块处条枚颗片]|\W*\Z)"
)
_JAPANESE = re.compile(
    r"(?P<no>いいえ|ありません|みられません|見られません|認めません|認められません|ではない)"
    r"|(?P<yes>はい|あります|みられます|見られます|認めます|認められます)"
)
_YES_OR_NO = re.compile("|".join(sorted([*CHINESE_NO, *CHINESE_YES], key=len, reverse=True)))
_OPPOSITES = {"正常": "异常", "异常": "正常"}
_NOTHING_ABNORMAL = re.compile("(?:没有|没|未见|未发现|无|不存在|看不到)(?:任何|明显|明确)*异常")
_NORMAL, _ABNORMAL = re.compile("(?<!不)正常"), re.compile("不正常|异常")
_ANSWERED = re.compile("是|不|对|否|并非|没错")
"""The beginning of an answer to the question itself."""
_OF_DISEASES = "炎癌肌结浸水肿病积支血包不管肥硬梗气囊衰"
"""Characters that make a disease or a part of the organ before them."""
_COMPOUNDS = re.compile("不张|不规则|不?对称|非增强")
"""Words with the characters for yes and no that answer nothing."""
_SEEING = re.compile("[见看显示发现到了]*")
_IS_LATIN = re.compile(r"是否?为?\s*([A-Z][A-Z-]+|[A-Z]\d+)")
"""The sequence or modality that a text says or asks something to be: "this is T1"."""
_IS_SOMETHING = re.compile("这?是(?!的|不|没|无)([\u3400-\u9fff]{2,}?)(?:的|图像|图)?")
_SAID_NOT = re.compile(r"(?<![不是])是(不(?!是)|没|无|未)")
"""A denial that "is" only introduces."""


def fold(text: str) -> str:
    """Write Chinese names of modalities, and numbers before a counter, as other languages do."""
    if not CHINESE.search(text):
        return text
    for pattern, name in _CHINESE_TERMS:
        text = pattern.sub(name, text)
    return _CHINESE_NUMBER.sub(lambda found: f" {_CHINESE_DIGITS.get(found[1], found[1])} ", text)


def without_particles(text: str) -> str:
    """Return a text without signs and the words that make no difference: 肝 is 肝脏, 左 is 左侧."""
    return re.sub(r"[\W的脏部侧]|(?<=[图像片其])中", "", text)


def name_pattern(name: str) -> str:
    """Return a pattern for a name, which for one character is an organ and no disease of it."""
    return re.escape(name) if len(name) > 1 else f"(?<!中){re.escape(name)}(?![{_OF_DISEASES}])"


def chinese_verdict(text: str, question: str, reference: str) -> object:
    """Return True, False, None for an undecided text, or `ABSENT` where no word says either."""
    if UNDECIDED.search(text) or "わかりません" in text:
        return None
    if japanese := _JAPANESE.search(text):
        return japanese.lastgroup == "yes"
    bare = re.sub(r"\W", "", text)
    opposed = _OPPOSITES.get(bare)
    if opposed and (bare in question or opposed in question):
        return bare in question
    if bare == "否":
        return False
    asks_normal, asks_abnormal = "正常" in question, "异常" in question or "不正常" in question
    if asks_normal != asks_abnormal and (is_normal := _calls_normal(bare)) is not None:
        return is_normal == asks_normal
    if len(bare) > 1 and bare in question and not re.match("有?没|是?不|是否|无|未", bare):
        return True
    other = _IS_SOMETHING.fullmatch(text.strip(" .。!"))
    if other and other[1] not in question:
        return None
    text = _COMPOUNDS.sub("", _SAID_NOT.sub(r"\1", text))
    if CHINESE.search(question) and not any(each in text for each in CHINESE_NO):
        named, asked = ({*_IS_LATIN.findall(fold(each).upper())} for each in (text, question))
        if named and asked and not named & asked:
            return False  # "this is T1" for "is this T2?"
    parts = [each for each in re.split("[,,。;;、]", text) if each]
    about = [each for each in parts if not _is_elsewhere(each, question)]
    text = ",".join(about or parts)
    wanted = re.sub(r"\W", "", reference)
    core = wanted.lstrip("不没未非") if CHINESE.search(wanted) else ""
    if len(core) > 1 and core in CHINESE_YES:
        found = re.findall(rf"(不|没有?|未|非)?{core}", text)
        if found and len({bool(each) for each in found}) == 1:
            return not found[0]
    found = list(_YES_OR_NO.finditer(text))
    if not found or (len(found) == 1 and _is_of_another(text, found[0], question)):
        return ABSENT
    says_yes = [match[0] in CHINESE_YES for match in found]
    if len(set(says_yes)) == 1 or (
        found[0].start() == 0 and re.match(r"\W|$", text[found[0].end() :])
    ):
        return says_yes[0]
    strong = [match[0] in CHINESE_YES for match in found if len(match[0]) > 1]
    return strong[0] if len(set(strong)) == 1 else None


def _calls_normal(text: str) -> bool | None:
    """Return whether a text calls something normal, or None where it says neither or both."""
    if _ANSWERED.match(text):
        return None
    is_normal = bool(_NORMAL.search(text) or _NOTHING_ABNORMAL.search(text))
    is_abnormal = bool(_ABNORMAL.search(_NOTHING_ABNORMAL.sub("", text)))
    return is_normal if is_normal != is_abnormal else None


def _is_of_another(text: str, found: re.Match[str], question: str) -> bool:
    """Tell whether a single "not" is of a word that was not asked: "not normal" of a bladder.

    One that an answer begins with is of the question, whatever words follow: "no clear mass".
    """
    denied = re.split(r"\W", text[found.end() :])[0]
    is_asked = bool(set(denied) & set(question)) or bool(_SEEING.fullmatch(denied))
    is_not = len(found[0]) == 1 and found[0] in CHINESE_NO
    is_of_question = found.start() == 0 and denied != "正常"
    return is_not and not is_asked and not is_of_question


def _is_elsewhere(text: str, question: str) -> bool:
    """Tell whether a clause denies something that the question does not name."""
    denied = re.search(r"(?:没有|未见|不存在|无)([\u3400-\u9fff]{2,})", text)
    return denied is not None and not set(denied[1]) & set(question)
