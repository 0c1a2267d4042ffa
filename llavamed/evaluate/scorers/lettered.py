"""Closed questions with lettered options."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from llavamed.evaluate.scorers.letter_patterns import (
    ALL_OTHERS,
    BARE,
    BRACKETED,
    BUT,
    BY_PLACE,
    CLOSING,
    CONFIRMED_AFTER,
    JOINED,
    JOINS,
    JUDGED,
    LEADING,
    NAME_GOES_ON,
    NAMED,
    NOR,
    NOT_A_LETTER,
    ONE,
    ORDINALS,
    RATED,
    REACH,
    REASON,
    REJECTED_AFTER,
    REJECTED_BEFORE,
    REJECTING,
    RIGHT,
    SEEMING,
    SENTENCE,
    SEVERAL,
    SHORT,
    STANDALONE,
)
from llavamed.evaluate.scorers.open_answer import measures, measures_agree, opposes
from llavamed.evaluate.scorers.unpack import conclusions
from llavamed.evaluate.scorers.vocabulary import FUNCTION_WORDS, UNDECIDED
from llavamed.evaluate.scorers.words import CHINESE, canonical, words_of


@dataclass(frozen=True, slots=True)
class _Mention:
    letter: str
    start: int
    end: int
    rejected: bool


def reference_letter(reference: str, options: Mapping[str, str]) -> str | None:
    """Return the letter of the option that a reference means, or None where it means none."""
    text = reference.strip()
    if found := re.match(r"\A[\W_]*([A-Za-z])(?:[\W_]|\Z)", text):
        letter = found[1].upper()
        rest = _words(text[found.end() :])
        if letter in options and (not rest or rest == _words(options[letter])):
            return letter
    return _by_words(_words(text), options)


def _by_words(words: list[str], options: Mapping[str, str]) -> str | None:
    """Return the only option whose text has exactly these words."""
    alike = [letter for letter, text in options.items() if words and _words(text) == words]
    return alike[0] if len(alike) == 1 else None


def chosen_letter(answer: str, options: Mapping[str, str]) -> str | None:
    """Return the letter of the option that an unpacked answer chooses, or None.

    None means no choice: no option, two of them, a letter that contradicts its text, a hedge.
    """
    for part, is_final in conclusions(answer):
        found = _choice(part, options)
        if found or (found is None and is_final):
            return found or None
    return None


def _choice(text: str, options: Mapping[str, str]) -> str | None:
    """Return a letter, None for an undecided text, or "" if no option is named."""
    if bare := BARE.match(text):
        letter = bare[1].upper()
        return letter if letter in options else _by_part(text, options) or None
    if (whole := _by_words(canonical(text), options)) is not None:
        return whole
    if place := BY_PLACE.match(text):
        return _in_place(place, list(options))
    text = ONE.sub("", text)
    if (reason := REASON.search(text)) and (found := _choice(text[: reason.start()], options)):
        return found
    if first := _first(text, options):
        return first
    if (excluded := _by_exclusion(text)) is not None:
        return excluded if excluded in options else None
    mentions = _mentions(text, options)
    kept = [mention for mention in mentions if not mention.rejected]
    confirmed = {each.letter for each in kept if CONFIRMED_AFTER.match(text[each.end :])}
    chosen = confirmed if len(confirmed) == 1 else {mention.letter for mention in kept}
    if letter := _leading(text, mentions, options):
        return letter
    closing = CLOSING.search(text)
    if len(chosen) > 1 and closing and _gives_reason(closing["clause"], options):
        return closing["letter"] if closing["letter"] in options else None
    if several := SEVERAL.search(text):
        alike = [each for each, words in options.items() if _same_several(several[1], words)]
        chosen = chosen or set(alike)
        if len(chosen) != 1:
            return None
    if len(chosen) > 1:
        return None
    if UNDECIDED.search(_blank(text, mentions)):
        return None
    if chosen:
        letter = next(iter(chosen))
        is_named = any(text[mention.start : mention.end] == letter for mention in mentions)
        left = _blank(text, [mention for mention in mentions if mention.rejected])
        is_opposed = not is_named and opposes(words_of(left), words_of(options[letter]))
        return None if is_opposed else letter
    return _left_over(text, mentions, options) if mentions else _by_content(text, options)


def _first(text: str, options: Mapping[str, str]) -> str | None:
    """Return the option that the first sentence is, and no other: "Liver. It lies below ..."."""
    sentences = [each for each in SENTENCE.split(text) if each and re.search(r"\w", each)]
    letters = [_by_words(canonical(each), options) for each in sentences]
    bare = BARE.match(sentences[0]) if sentences else None
    start = 1 if bare and len(sentences) > 1 else 0
    named = {bare[1].upper()} if bare else set()
    named |= {letter for letter in letters if letter}
    if len(sentences) < start + 2 or not letters[start] or len(named) != 1:
        return None
    return None if JOINS.match(sentences[start + 1]) else letters[start]


def _by_exclusion(text: str) -> str | None:
    """Return the letter that is left over: "A: no. B: yes.", "everything but B is wrong".

    None if nothing is excluded; an empty text if no option or several are left.
    """
    if len(judged := dict(JUDGED.findall(text))) > 1:
        right = [letter for letter, word in judged.items() if word.lower() in RIGHT]
        return right[0] if len(right) == 1 else ""
    rated = {letter: float(share) for letter, share in RATED.findall(text)}
    if len(rated) > 1:
        best = [letter for letter, share in rated.items() if share == max(rated.values())]
        return best[0] if len(best) == 1 else ""
    if (others := ALL_OTHERS.search(text)) and REJECTING.search(text):
        return others[1]
    return None


def _in_place(place: re.Match[str], letters: list[str]) -> str | None:
    """Return the letter in a named place of the list, None if there is none."""
    if place["number"]:
        at = int(place["number"]) - 1
    else:
        word = place["word"].lower()
        at = len(letters) - 1 if word == "last" else ORDINALS.index(word)
    return letters[at] if 0 <= at < len(letters) else None


def _leading(text: str, mentions: list[_Mention], options: Mapping[str, str]) -> str | None:
    """Return the letter that an answer begins with, if nothing after it says otherwise."""
    lead = LEADING.match(text)
    if not lead or not (lead[1].isupper() or len(text) < SHORT):
        return None
    letter = lead[1].upper()
    said = {mention.letter for mention in mentions if not mention.rejected}
    return letter if letter in options and said <= {letter} else None


def _same_several(word: str, option: str) -> bool:
    """Tell whether an option is "none of the above" where an answer says "none of these"."""
    found = SEVERAL.search(option)
    return found is not None and found[1].lower() == word.lower()


def _by_content(text: str, options: Mapping[str, str]) -> str:
    """Return the only option whose words the answer holds in another order, or whose measure."""
    said = words_of(text)
    measured = measures(said)
    stated = {word.text for word in said if not word.denied}
    alike = []
    for letter, words in options.items():
        option = words_of(words)
        wanted = {word.text for word in option}
        if said and said[0].denied and wanted <= {"0", "none"}:
            alike.append(letter)
        elif measured and measures(option):
            if measures_agree(said, option):
                alike.append(letter)
        elif len(wanted) > 1 and wanted <= stated and not opposes(said, option):
            if all(wanted <= set(canonical(other)) for other in options.values()):
                continue  # its own letter is lost: "vitamin A" among vitamins
            alike.append(letter)
    return alike[0] if len(alike) == 1 else _by_part(text, options)


def _left_over(text: str, rejected: list[_Mention], options: Mapping[str, str]) -> str | None:
    """Return the option whose own words are stated where the others named are rejected.

    "Acute rather than chronic cholecystitis" names only the chronic one in full.
    """
    stated = {word.text for word in words_of(text) if not word.denied}
    letters = {mention.letter for mention in rejected}
    own = _own_words(options)
    left = [each for each in options if each not in letters and own[each] and own[each] <= stated]
    return left[0] if len(left) == 1 else None


def _own_words(options: Mapping[str, str]) -> dict[str, set[str]]:
    """Return the words of each option that no other option has."""
    words = {letter: _content(text) for letter, text in options.items()}
    counts = Counter(word for each in words.values() for word in each)
    return {letter: {word for word in each if counts[word] == 1} for letter, each in words.items()}


def _by_part(text: str, options: Mapping[str, str]) -> str:
    """Return the only option that holds all words of an answer, if they are most of its own.

    Words that several options share ("lobe") do not choose, and may be left out.
    """
    wanted = _own_words(options)
    shared = set().union(*map(_content, options.values())).difference(*wanted.values())
    said = _content(" ".join([*sorted(shared), text])) - shared  # "grade" makes "I" a numeral
    alike = [letter for letter, words in wanted.items() if said and said == words]
    if len(alike) == 1:
        return alike[0]
    alike = [letter for letter, words in wanted.items() if len(said) > 1 and said <= words]
    is_most = len(alike) == 1 and 2 * len(said) > len(wanted[alike[0]])
    return alike[0] if is_most else ""


def _gives_reason(clause: str, options: Mapping[str, str]) -> bool:
    """Tell whether a clause has words of its own and names no option."""
    return len(clause.split()) > 2 and not _mentions(clause, options)


def _blank(text: str, mentions: list[_Mention]) -> str:
    """Blank out mentions of options, because "cannot be determined" may be an option."""
    for mention in mentions:
        width = mention.end - mention.start
        text = text[: mention.start] + " " * width + text[mention.end :]
    return text


def _words(text: str) -> list[str]:
    words = canonical(text)
    return [word for word in words[:-1] if word not in {"a", "an", "the"}] + words[-1:]


def _content(text: str) -> set[str]:
    """Return the words without function words, but always the last: "hepatitis A"."""
    words = _words(text)
    return set(words[:-1]) - FUNCTION_WORDS | set(words[-1:])


def _mentions(text: str, options: Mapping[str, str]) -> list[_Mention]:
    """Find all mentions of options, by letter or by text, in order."""
    texts = _text_mentions(text, options)
    letters = _letter_mentions(text, options, texts)
    return _reject_together(text, sorted([*texts, *letters], key=lambda each: each.start))


def _text_mentions(text: str, options: Mapping[str, str]) -> list[_Mention]:
    """Find the texts of options in an answer, longest first, so that none counts inside another."""
    found: list[_Mention] = []
    taken: list[range] = []
    plain = text
    for letter, words in sorted(options.items(), key=lambda option: -len(option[1])):
        for start, end in _occurrences(plain, words):
            span = range(start, end)
            if any(span.start < other.stop and other.start < span.stop for other in taken):
                continue
            taken.append(span)
            found.append(_mention(plain, letter, start, end))
    return found


def _occurrences(text: str, words: str) -> list[tuple[int, int]]:
    """Return where the text of an option occurs, on word bounds, in any known spelling."""
    wanted = _words(words)
    if not wanted:
        return []
    if CHINESE.search(words):
        return [found.span() for found in re.finditer(re.escape(words.strip()), text)]
    direct = r"[\s/_,-]+".join(
        re.escape(each) for each in re.split(r"[\s/_,-]+", words.strip()) if each
    )
    places = [
        m.span()
        for m in re.finditer(rf"(?<!\w)(?<!\bnon[\s-]){direct}(?:s|es)?(?!\w)", text, re.IGNORECASE)
    ]
    if places:
        return places
    bounds = [(m.start(), m.end()) for m in re.finditer(r"\S+", text)]
    for first in range(len(bounds)):
        for last in range(first, min(len(bounds), first + len(wanted) + 5)):
            piece = text[bounds[first][0] : bounds[last][1]]
            said = _words(piece)
            if first == last and piece.isupper() and set(wanted) <= set(said):
                said = wanted  # "CXR" is an X-ray
            if said == wanted and canonical(piece)[0] not in FUNCTION_WORDS:
                return [(bounds[first][0], bounds[last][1])]
    return []


def _letter_mentions(
    text: str, options: Mapping[str, str], texts: list[_Mention]
) -> list[_Mention]:
    """Find the letters that stand for options, and not for an article, a pronoun or a name."""
    found: dict[int, _Mention] = {}

    def add(letter: str, start: int, end: int) -> None:
        inside = any(each.start <= start < each.end for each in texts)
        if letter in options and not inside:
            found.setdefault(start, _mention(text, letter, start, end))

    for match in NAMED.finditer(text):
        group = 1 if match[1] else 2
        letter, start = match[group], match.start(group)
        stands_alone = letter.isupper() or not re.match(r"\s+\w", text[match.end(group) :])
        if stands_alone and not _is_article(text, letter.upper(), start):
            add(letter.upper(), start, match.end(group))
    for match in BRACKETED.finditer(text):
        add(match[1].upper(), match.start(1), match.end(1))
    for match in STANDALONE.finditer(text):
        start = match.start()
        if _stands_before(NOT_A_LETTER, text, start) or NAME_GOES_ON.match(text[match.end() :]):
            continue
        if _is_article(text, match[1], start):
            continue
        add(match[1], start, match.end())
    return list(found.values())


def _reject_together(text: str, mentions: list[_Mention]) -> list[_Mention]:
    """Reject what is named with a rejected option: "no A, B or C", "A and C are wrong"."""
    together = list(mentions)
    gaps = ["", *(text[before.end : after.start] for before, after in pairwise(together))]
    for place in range(1, len(together)):
        before, mention = together[place - 1], together[place]
        same = before.letter == mention.letter and not re.search(r"[\w,;]", gaps[place])
        if before.rejected and (same or _goes_on(gaps[place:])):
            together[place] = replace(mention, rejected=True)
    rejects = False  # whether what follows the mention rejects it, and all that are joined to it
    for place in reversed(range(1, len(together))):
        before, mention = together[place - 1], together[place]
        rejects = rejects or bool(REJECTED_AFTER.match(text[mention.end :]))
        rejects = rejects and bool(JOINED.fullmatch(gaps[place]))
        if rejects:
            together[place - 1] = replace(before, rejected=True)
    return together


def _goes_on(gaps: list[str]) -> bool:
    """Tell whether what stands between options joins them by commas up to an "or"."""
    last = next((gap for gap in gaps if gap.strip() != ","), "")
    return bool(NOR.fullmatch(last))


def _is_article(text: str, letter: str, start: int) -> bool:
    """Tell the article "A" and the pronoun "I" from the options of that name."""
    if letter not in {"A", "I"}:
        return False
    after = text[start + 1 :]
    if re.match(
        r"\s*(?:$|[.,;:)\]!?/&\"']|(?:is|and|or|nor|not|but|rather|instead|over|then|because|since|as|was|seems|looks|would|must|should)\b)",
        after,
    ):
        return letter == "I" and bool(re.match(r"\s+(?:was|and)\b", after))
    return True


def _mention(text: str, letter: str, start: int, end: int) -> _Mention:
    rejected = _stands_before(REJECTED_BEFORE, text, start)
    rejected |= _stands_before(SEEMING, text, start) and bool(BUT.match(text[end:]))
    return _Mention(letter, start, end, rejected or bool(REJECTED_AFTER.match(text[end:])))


def _stands_before(pattern: re.Pattern[str], text: str, place: int) -> bool:
    """Tell whether a pattern that ends where a text ends fits what precedes a place."""
    return bool(pattern.search(text, max(0, place - REACH), place))
