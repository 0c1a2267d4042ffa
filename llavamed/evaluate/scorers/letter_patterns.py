"""Patterns by which the strict scorer finds option letters, and what chooses or rejects them.

Whoever changes a pattern here changes the version of the scorer.
"""

import re

BARE = re.compile(
    r"\A[\W_]*(?:(?:option|choice|answer|letter|选项?)[\W_]*)?([A-Za-z])[\W_]*\Z", re.IGNORECASE
)
LEADING = re.compile(
    r"\A[\s(\[{\"']*(?:(?:option|choice|answer|letter)\s+)?([A-Za-z])\s*[)\]}\"']*\s*(?:[:.,;)\]-]|\s[-–—]\s|\n)\s*(?=\S)"
)
NAMED = re.compile(
    r"\b(?:option|choice|answer|letter|alternative|select|choose|pick|chose|with|选项|选择|选|答案)\s*(?:is|would\s+be|:|是|为)?\s*"
    r"[(\[\"']?([A-Z])\b(?!['’]\w)|(?:选项|选择|选|答案是?|答案为)\s*([A-Z])",
    re.IGNORECASE,
)
BRACKETED = re.compile(r"[(\[]\s*([A-Za-z])\s*[)\]]")
STANDALONE = re.compile(r"(?<![A-Za-z0-9_-])([A-Z])(?![A-Za-z0-9_'’-])")
NAME_GOES_ON = re.compile(r"[\s-]+(?:lines?|cells?|waves?|signs?|mode|scans?|rings?)\b")
REASON = re.compile(r"[\s,]+(?:because|since|given\s+that)\b|,\s*which\b", re.IGNORECASE)
JUDGED = re.compile(
    r"\b([A-Z])\)?\s*(?::|-|–|=)\s*(?:[^\n:–=.;-]{1,60}\s[-–:]\s*)?(yes|true|correct|no|false|incorrect|wrong)\b",
    re.IGNORECASE,
)
"""A letter with a verdict, one of several: "A: no. B: yes."."""
NOT_A_LETTER = re.compile(
    r"\b(?:hepatitis|vitamins?|types?|grades?|groups?|stages?|class|influenza|factors?|views?|proteins?|figures?|fig|"
    r"panels?|segments?|zones?|parts?|images?|levels?|phases?|sections?|categor(?:y|ies)|lines?|waves?|"
    r"ig|scans?|mode|kerley|child-pugh|stanford|weber|cells?)\.?\s*\Z",
    re.IGNORECASE,
)
REJECTED_BEFORE = re.compile(
    r"(?:\bnot|\bcannot|n['’]t|\brather\s+than|\binstead\s+of|\bas\s+opposed\s+to|\bneither|\bnor|\bexcept(?:\s+for)?|\bexclud(?:e|es|ed|ing)|"
    r"\brul(?:e|es|ed|ing)\s+out|\bspar(?:es|ed|ing)|\bunlike|\b(?:anything|all|everything)\s+but|\b[A-Z]\s+over|\b(?:more|rather)\s+(?:likely|probable|plausible)\s+than|>|\breject(?:s|ed)?|\beliminat(?:e|es|ed|ing)|\bno|\bwithout|不是|排除|而非)"
    r"(?:\s+(?:a|an|the|think|believe|say|option|choice|answer|be|it['’]?s?|is|in|on|at|of|from|either|really|actually|"
    r"\w+(?:ed|en)\s+(?:by|with|using|from|in|on|as|for)|[A-Z]\s+(?:or|and|nor)))*[\s(\"']*\Z",
    re.IGNORECASE,
)
REJECTED_AFTER = re.compile(
    r"[\s)\"']*(?:(?:is|are|was|seems|appears|would\s+be|can\s+be|looks)\s*)?(?:\w+ly\s+|much\s+|far\s+)?"
    r"(?:n['’]t\b|not\b|unlikely|(?:the\s+)?(?:less|least)\s+(?:likely|probable)|incorrect|wrong|false|ruled\s+out|excluded|eliminated|rejected|不对|错误)",
    re.IGNORECASE,
)
REJECTED_LIST = re.compile(
    r"\b(?:ruled\s+out|excluded?|eliminated?|rejected?|incorrect|wrong|false|less\s+likely)"
    r"(?:\s+(?:options?|ones|choices|answers?|letters?))?\s*:\s*\(?[A-Z]\)?"
    r"(?:\s*(?:,|/|&|;|\band\b|\bor\b)+\s*\(?[A-Z]\)?)*(?=\W*(?:[.;\n]|\Z))",
    re.IGNORECASE,
)
"""Letters that a label rejects: "Ruled out: A, C"."""
CONFIRMED_AFTER = re.compile(
    r"[\s)\"']*is\s+(?:\w+\s+)?(?:(?:more|most)\s+(?:likely|probable|appropriate|consistent|fitting)|(?:best|better)(?:\s+(?:fit|match|choice|option|answer))?)\b(?!\s+than)"
    r"|[\s)\"']*(?:is|would\s+be)\s+(?:correct|(?:the|my)\s+(?:\w+\s+){0,2}(?:answer|choice|option))\b",
    re.IGNORECASE,
)
REACH = 200
"""Characters before a mention of an option in which it may be rejected."""
SHORT = 60
"""Longest answer, in characters, that may begin with a lower-case option letter."""
SEVERAL = re.compile(
    r"\b(both|all|none|neither|any)\s+of\s+(?:the\s+)?(?:above|these|them|options)\b", re.I
)


ALL_OF = re.compile(r"\A\W*all\s+(?:of\s+)?(?:the\s+)?(?:above|these|options)\b", re.I)
SEVERAL_LETTERS = re.compile(
    r"\W*(?:[Bb]oth\s+)?(?:[Oo]ptions?\s+)?[A-Z](?:\s*,\s*[A-Z])*,?\s+(?:and|&)\s+[A-Z]"
    r"(?:\s+are\s+\w+)?\W*"
)
"""An option that is several others: "both A and B"."""
LETTER = re.compile(r"\b[A-Z]\b")
AND = re.compile(r"&|\band\b|\bas\s+well\s+as\b", re.IGNORECASE)
OR = re.compile(r"\bor\b", re.IGNORECASE)
ALL_OTHERS = re.compile(
    r"\b(?:[Aa]ll|[Ee]verything|every\s+option|each|any)\s+(?:of\s+them\s+)?(?:but|except(?:\s+for)?|other\s+than|apart\s+from)"
    r"\s+(?:option\s+)?\(?([A-Z])\b"
)
RATED = re.compile(r"\b([A-Z])\)?\s*[:=-]?\s*\(?(\d+(?:\.\d+)?)\s*%")
"""A letter with its probability, one of several."""
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
BY_PLACE = re.compile(
    rf"\A\W*(?:the\s+)?(?:(?P<word>{'|'.join(ORDINALS)}|last)\s+(?:option|choice|answer|one|alternative)"
    r"|(?:option|choice)\s+(?:number\s+)?(?P<number>\d))\W*\Z",
    re.IGNORECASE,
)
"""An option named by its place in the list."""
ONE = re.compile(r"(?<=\w)\s+one\s*(?=[.!]?\s*\Z)", re.IGNORECASE)
"""A word that stands for the noun: "the left one"."""
SEEMING = re.compile(
    r"\b(?:looks?\s+like|resembles?|mimics?|simulates?)\s+(?:an?\s+)?\Z", re.IGNORECASE
)
BUT = re.compile(r"\W*(?:but|yet)\b", re.IGNORECASE)
RIGHT = frozenset({"yes", "true", "correct"})
REJECTING = re.compile(
    r"\b(?:exclud|eliminat|reject|rul\w+\s+out|wrong|incorrect|false|unlikely)", re.IGNORECASE
)
JOINED = re.compile(r"\s*(?:,|,?\s*(?:and|or|nor|&)\s+|/)\s*(?:option\s+)?")
NEITHER = re.compile(r"\W*neither\b\W*", re.IGNORECASE)
NONE = frozenset({"none", "nil", "nothing", "no", "0", "zero"})
NOR = re.compile(r"\s*,?\s*\b(?:or|nor)\s+(?:an?\s+)?")
SENTENCE = re.compile(r"(?<=[.;!?:)])\s+|\n+")
STATED_FIRST = re.compile(r"\A[\s(\[\"']*([A-Z])[)\]\"']*\s*[.;\n]\s*(?=\S)")
"""A letter that is the whole first sentence after a mark such as "the answer is"."""
JOINS = re.compile(r"\W*(?:or|and|no|not|nor|but|however)\b", re.IGNORECASE)
CLOSING = re.compile(
    r"(?:\A|[.;!?\n,])(?P<clause>[^.;!?\n,]+),\s*(?:so\s+|hence\s+)?\(?(?P<letter>[A-Z])\)?\s*\.?\s*\Z"
)
"""A letter at the end of a sentence, after the clause that gives the reason."""
