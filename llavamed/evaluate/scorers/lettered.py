"""Closed questions with lettered options."""

import re
from collections import Counter
from collections.abc import Mapping

from llavamed.evaluate.scorers.letter_patterns import (
    ALL_OF,
    ALL_OTHERS,
    AND,
    BARE,
    BY_PLACE,
    CLOSING,
    CONFIRMED_AFTER,
    JOINS,
    JUDGED,
    LEADING,
    LETTER,
    NEITHER,
    NONE,
    ONE,
    OR,
    ORDINALS,
    RATED,
    REASON,
    REJECTING,
    RIGHT,
    SENTENCE,
    SEVERAL,
    SEVERAL_LETTERS,
    SHORT,
    STATED_FIRST,
)
from llavamed.evaluate.scorers.mentions import Mention, blank, find_mentions, without_articles
from llavamed.evaluate.scorers.open_answer import measures, measures_agree, opposes
from llavamed.evaluate.scorers.unpack import conclusions
from llavamed.evaluate.scorers.vocabulary import FUNCTION_WORDS, UNDECIDED
from llavamed.evaluate.scorers.words import as_worded, canonical, words_of


def reference_letter(reference: str, options: Mapping[str, str]) -> str | None:
    """Return the letter of the option that a reference means, or None where it means none."""
    text = reference.strip()
    if found := re.match(r"\A[\W_]*([A-Za-z])(?:[\W_]|\Z)", text):
        letter = found[1].upper()
        rest = without_articles(text[found.end() :])
        if letter in options and (not rest or rest == without_articles(options[letter])):
            return letter
    return _by_words(without_articles(text), options)


def without_repetitions(options: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the options with different texts, and for each letter the first of its text."""
    first: dict[str, str] = {}
    letters = {
        letter: first.setdefault(text.strip().rstrip(".").casefold(), letter)
        for letter, text in options.items()
    }
    return {letter: options[letter] for letter in first.values()}, letters


def has_letter(answer: str, options: Mapping[str, str]) -> bool:
    """Tell whether an answer names an option by its letter."""
    named = find_mentions(answer, options)
    return bool(BARE.match(answer)) or any(each.end - each.start == 1 for each in named)


def _by_words(words: list[str], options: Mapping[str, str]) -> str | None:
    """Return the only option whose text has exactly these words."""
    for drop in ((), ("bilateral",)):  # "red and blue" is "both red and blue"
        alike = [
            letter
            for letter, text in options.items()
            if words and [each for each in without_articles(text) if each not in drop] == words
        ]
        if len(alike) == 1 and (not drop or "and" in words):
            return alike[0]
    return None


def chosen_letter(answer: str, options: Mapping[str, str]) -> str | None:
    """Return the letter of the option that an unpacked answer chooses, or None.

    None means no choice: no option, two of them, a letter that contradicts its text, a hedge.
    """
    for part, is_final in conclusions(answer):
        stated = STATED_FIRST.match(part) if is_final and part != answer else None
        if stated and _stands(stated[1], part[stated.end() :], options):
            return stated[1]
        found = _choice(part, options)
        if found or (found is None and is_final):
            return found or None
    return None


def _stands(letter: str, rest: str, options: Mapping[str, str]) -> bool:
    """Tell whether a stated letter stands: "the answer is B. Note that A is common."."""
    named = [each for each in find_mentions(rest, options) if not each.rejected]
    by_text = {each.letter for each in named if each.end - each.start > 1}
    return letter in options and by_text <= {letter} and not JOINS.match(rest)


def _choice(text: str, options: Mapping[str, str]) -> str | None:
    """Return a letter, None for an undecided text, or "" if no option is named."""
    if bare := BARE.match(text):
        letter = bare[1].upper()
        return letter if letter in options else _by_part(text, options) or None
    if NEITHER.fullmatch(text):
        alike = [letter for letter, words in options.items() if NEITHER.match(words)]
        return alike[0] if len(alike) == 1 else None
    if (whole := _by_words(canonical(text), options)) is not None:
        return whole
    if place := BY_PLACE.match(text):
        return _in_place(place, list(options))
    if not any(canonical(words) == ["1"] for words in options.values()):
        text = ONE.sub("", text)
    if (reason := REASON.search(text)) and (found := _choice(text[: reason.start()], options)):
        return found
    if first := _first(text, options):
        return first
    if (excluded := _by_exclusion(text)) is not None:
        return excluded if excluded in options else None
    mentions = find_mentions(text, options)
    kept = [mention for mention in mentions if not mention.rejected]
    confirmed = {each.letter for each in kept if CONFIRMED_AFTER.match(text, each.end)}
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
        return _all_of(chosen, text, options)
    if UNDECIDED.search(blank(text, mentions)):
        return None
    if chosen:
        letter = next(iter(chosen))
        is_named = any(text[mention.start : mention.end] == letter for mention in mentions)
        left = blank(text, [mention for mention in mentions if mention.rejected])
        is_opposed = not is_named and opposes(words_of(left), words_of(options[letter]))
        return None if is_opposed else letter
    if len(options) == 2 and len(rejected := {mention.letter for mention in mentions}) == 1:
        return next(iter({*options} - rejected))  # "not present" of "present" and "absent"
    return _left_over(text, mentions, options) if mentions else _by_content(text, options)


def _all_of(chosen: set[str], text: str, options: Mapping[str, str]) -> str | None:
    """Return "all of the above" or "both A and B" where an answer joins just these by "and"."""
    if OR.search(text) or not AND.search(text):
        return None
    joined = [
        letter
        for letter, words in options.items()
        if (ALL_OF.search(words) and {*options} - chosen == {letter})
        or (SEVERAL_LETTERS.fullmatch(words) and set(LETTER.findall(words)) == chosen)
    ]
    return joined[0] if len(joined) == 1 else None


def _first(text: str, options: Mapping[str, str]) -> str | None:
    """Return the option that the first sentence is, and no other: "Liver. It lies below ..."."""
    sentences = [each for each in SENTENCE.split(text) if each and re.search(r"\w", each)]
    letters = [_by_words(canonical(each), options) for each in sentences]
    bare = [BARE.match(each) for each in sentences]
    start = 1 if len(bare) > 1 and bare[0] else 0
    named = {found[1].upper() for found in bare if found}
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


def _leading(text: str, mentions: list[Mention], options: Mapping[str, str]) -> str | None:
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
    alike = []
    for letter, words in options.items():
        option = words_of(words)
        wanted = {word.text for word in option}
        worded = as_worded(said, wanted)
        stated = {word.text for word in worded if not word.denied}
        if wanted <= {"0", "none"} and (
            text.strip(" .!").lower() in NONE
            or (said and (said[0].denied or {word.text for word in said} <= NONE))
        ):
            alike.append(letter)
        elif measured and measures(option):
            if measures_agree(said, option):
                alike.append(letter)
        elif len(wanted) > 1 and wanted <= stated and not opposes(worded, option):
            if all(wanted <= set(canonical(other)) for other in options.values()):
                continue  # its own letter is lost: "vitamin A" among vitamins
            alike.append(letter)
    return alike[0] if len(alike) == 1 else _by_part(text, options)


def _left_over(text: str, rejected: list[Mention], options: Mapping[str, str]) -> str | None:
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
    return len(clause.split()) > 2 and not find_mentions(clause, options)


def _content(text: str) -> set[str]:
    """Return the words without function words, but with names: "hepatitis A", "type A tumor"."""
    words = without_articles(text)
    return set(words[:-1]) - FUNCTION_WORDS.difference("a") | set(words[-1:])
