"""The words by which the strict scorer tells a yes, a no, a denial and a hedge, as data.

Everything is in lower case. Whoever changes a word here changes the version of the scorer, because
numbers of two versions do not compare.
"""

import re


def _split(words: str) -> list[str]:
    return words.split()


YES = frozenset(
    _split(
        "yes yeah aye yep yup yea y true correct indeed affirmative affirmed absolutely certainly "
        "definitely sure agreed present positive confirmed ja ya jawohl sí si oui sim sì да "
        "はい 예 네 evet tak có نعم"
    )
)
"""Words that say yes by themselves. `positive` and `present` count at the end of a sentence too."""

EMPHASIS = frozenset(_split("indeed absolutely certainly definitely sure"))
"""Words of `YES` that only stress a no after them."""

NO = frozenset(
    _split(
        "no nope nah nay n false incorrect wrong negative absent none never not nein kein keine "
        "keiner non não нет いいえ 아니요 아니오 nee nie hayır không لا nil"
    )
)
"""Words that say no by themselves."""

LEADING_ONLY = frozenset(_split("y n ya sure wrong correct si da true false non nie tak có"))
"""Words of `YES` and `NO` that mean something else inside a sentence."""

CHINESE_NO = _split(
    "不包含 不包括 不是 不可以 不存在 不能 不会 不属于 不需要 不对 不正确 "
    "没有 未见 未发现 未显示 看不到 看不见 并非 并不 否定 错误 错 否 无 没 不 非"
)
CHINESE_YES = _split("是的 没错 对的 包含 包括 存在 可以 能够 属于 正确 肯定 可见 是 有 对 能 会")

_CANNOT = r"can(?:no|['’])?t|(?:could|can)\s*(?:not|n['’]?t)"
_DECIDE = (
    r"determined?|tell|say|said|known|established|ascertained|inferred|assess(?:ed)?|evaluated?|answer(?:ed)?|judged?|conclude|provide|help|assist|"
    r"confirm(?:ed)?|give|offer|share|comply|diagnose|interpret|be\s+sure|rule\s+(?:(?:it|that|this)\s+)?out|ruled\s+out|excluded?|"
    r"(?:see|view|access|open|process|analy[sz]e|look\s+at|examine|inspect|read)\s+(?:the|this|your|any|an)?\s*"
    r"(?:image|picture|scan|file|photo)s?"
)
_OPEN_PHRASES = (
    rf"(?:{_CANNOT})\s+(?:be\s+)?(?:\w+ly\s+)?(?:{_DECIDE})",
    r"(?:not|un)\s*able\s+to\s+(?!see\s+an|see\s+evidence|identify|find|detect|visuali)\w+",
    r"not\s+(?:been\s+|be\s+)?(?:ruled?\s+out|excluded?)",
    r"no\s+(?:image|picture|scan|photo|file)s?\s+(?:(?:is|was|are|were|has|have|been|here)\s+)*"
    r"(?:provided|attached|available|given|supplied|uploaded|loaded|found)",
    r"(?:image|picture|scan|photo|file)s?\s+(?:\w+\s+){0,3}(?:did\s*(?:not|n['’]?t)|failed\s+to|could\s*(?:not|n['’]?t)"
    r"(?:\s+be)?)\s+(?:load|open|upload|display|arrive)(?:ed)?",
    r"n/a|not\s+(?:applicable|necessarily|known)|know\s+nothing|no\s?(?:one|body)\s+(?:can|could|knows)",
    r"(?:not|\w+n['’]t)\s+(?:possible|enough|sufficient|certain|sure|clear(?=\s+(?:if|whether|from)\b|\W*\Z))",
    r"impossible\s+to\s+\w+",
    r"(?:difficult|hard)\s+to\s+(?:say|tell|determine|know|assess)",
    r"un(?:clear|certain|sure|known|determined)",
    r"indeterminate|inconclusive|equivocal|ambiguous|insufficient|depends",
    r"(?:do|does|did)\s*(?:not|n['’]?t)\s+(?:know|have\s+(?:enough|access|the))",
    r"no\s+(?:idea|clue|opinion|way\s+(?:to|of)|information|comment|(?:definite\s+)?answer)",
    r"(?:rather|prefer)\s+not|(?:decline|refuse|will\s+not|won['’]?t)\s+(?:to\s+)?"
    r"(?:answer|comment|guess|speculate|say|give|provide)",
    r"(?:not|\w+n['’]t)\s+(?:seen?|receiv\w+|got)\s+(?:the|your|any|an)\s+"
    r"(?:image|picture|scan|file|photo)s?(?!\s+(?:of|show))",
    r"do(?:es)?\s*(?:not|n['’]t)\s+(?:say|tell|mention|specify|state)",
    r"(?:unwise|premature|wrong|hesitant|reluctant)\s+to\s+(?:say|conclude|answer)",
    r"not\s+(?:\w+ly\s+)?(?:mentioned|specified|stated|described|reported)",
    r"maybe|perhaps|i\s+hope|possibly|possible\s+but|might",
    r"may(?:\s+or\s+may\s+not)?\s+(?:be|have|show|represent|indicate|suggest)",
    r"could\s+(?:be|represent|indicate|have)",
    r"(?:radiologist|doctor|physician|clinician|specialist|professional)s?\s+(?:should|must|needs?\s+to|has\s+to)",
    r"(?:consult|ask)\s+(?:a|an|your)\s+(?:\w+\s+){0,2}(?:radiologist|doctor|physician|clinician|specialist|professional)",
    r"no\s+evidence\s+(?:for|of)\s+(?:or|and|nor)\s+against|no\s+reason\s+to\s+(?:exclude|deny)",
    r"as\s+an\s+ai|need\s+(?:more|further|additional)",
    r"further\s+(?:imaging|investigation|tests?|information)\s+(?:is|are|would)",
    r"vielleicht|unklar|nicht\s+sicher|wei(?:ß|ss)\s+(?:es\s+)?nicht|je\s+ne\s+sais\s+pas|no\s+(?:lo\s+)?sé|"
    r"quizás|tal\s+vez|peut-être|talvez|forse|misschien",
    r"no\s+se\s+puede|nicht\s+(?:beurteilbar|bestimmbar|erkennbar,?\s+ob)|não\s+sei|non\s+(?:lo\s+)?so|не\s+знаю",
)
_OPEN_CHINESE = (
    "可能 也许 不能排除 不除外 不能确定 不能判断 难以确定 不确定 无法 不清楚 不知道 看不出 "
    "难以判断 不好说"
)
UNDECIDED = re.compile(
    rf"\b(?:{'|'.join(_OPEN_PHRASES)})\b|{'|'.join(_OPEN_CHINESE.split())}", re.IGNORECASE
)
"""Phrases that leave a question open: hedges, refusals and double negations."""

AFFIRMING = re.compile(
    r"\b(?:there(?:\s+is|['’]s)\s+)?(?:no|without(?:\s+(?:a|any))?|beyond(?:\s+any)?)\s+(?:doubt|question|reason\s+to\s+doubt)\b"
    r"|\bnot\s+(?:only|just|merely)\b|\bundoubtedly\b|\bnothing\s+but\b",
    re.IGNORECASE,
)
"""Phrases that contain a denial but deny nothing."""

YES_ALONE = re.compile(
    r"\W*(?:(?:most|very|quite|highly)\s+)?(?:likely|probably|probable)\W*"
    r"|\W*(?:(?:certainly|definitely|clearly|surely)\W+)?(?:(?:i\s+(?:would\s+)?(?:think|believe|guess|suppose|say)|(?:it\s+)?(?:seems|appears|looks))\s+so"
    r"|quite\s+so|i\s+(?:\w+ly\s+)?agree|(?:i[\'’]?m\s+)?afraid\s+so|you\s+bet|(?:it\s+)?sure\s+is"
    r"|of\s+course|definitely|certainly|exactly|precisely|clearly|obviously"
    r"|right(?=\s*[.!])|u[hm][- ]huh"
    r"|(?:only\s+|just\s+)?(?:slight|mild|moderate|marked|severe|massive|minimal)ly"
    r"|(?:it|they)(?:['’](?:s|re)|\s+(?:is|are))\s+(?:there|visible|seen|so)"
    r"|there(?:['’]s|\s+(?:is|are))\s+(?:several|many|multiple|some|numerous|plenty|a\s+(?:few|lot|couple)|one|two|three|four|\d+)"
    r"|(?:it|there|that|this|they|he|she|i|we|you)\s+(?:is|are|was|were|does|do|did|has|have|can))\W*",
    re.IGNORECASE,
)
NO_ALONE = re.compile(
    r"\W*(?:(?:most|very|quite|highly)\s+)?(?:unlikely|improbable)\W*"
    r"|\W*(?:hardly|i\s+doubt\s+(?:it|that|so)|in\s+no\s+way|by\s+no\s+means"
    r"|far\s+from\s+it|i\s+(?:\w+ly\s+)?disagree|(?:that|this|it)(?:[\'’]?s|\s+is)\s+wrong|i\s+would(?:\s+not|n[\'’]t)\s+say\s+so|not\s+quite|not\s+(?:\w+ly)"
    r"|not\s+(?:(?:to|in|from)\s+my\s+\w+|that\s+i\s+(?:can\s+)?(?:see|tell|know\s+of)|as\s+far\s+as\s+i\s+can\s+(?:see|tell)"
    r"|(?:in|on|from)\s+(?:this|the)\s+(?:image|picture|scan|slice|view|film))|(?:it\s+)?(?:would\s+)?(?:seems?|appears?)\s+not)\W*",
    re.IGNORECASE,
)
"""Answers that say yes or no when nothing else is said."""

AGREEMENT = re.compile(
    r"\b(?:that|this|you)(?:['’]?(?:s|re)|\s+(?:is|are))\s+right\b(?=\W*$|\s*[.,;!])", re.IGNORECASE
)
"""Sentences in which "right" means correct and not a side."""

STATED = re.compile(
    r"\b(?:is|are|was|were|'s)\s+(?:(?P<yes>(?:\w+ly\s+)?(?:true|correct|the\s+case|(?:(?:very|most|highly)\s+)?(?:likely|probable)"
    r"(?=\W*(?:[.,;!]|\Z)|\s+that\b(?!.*\b(?:no|not)\b))))"
    r"|(?P<no>(?:\w+ly\s+|very\s+)?(?:not\s+(?:true|correct|likely)|false|incorrect|untrue|unlikely|improbable)))\b",
    re.IGNORECASE,
)
"""Sentences that call what was asked true, false, likely or unlikely."""

OTHER_DENIALS = frozenset(
    _split("kein keine nicht sans sin ningún ninguna aucun aucune pas geen nessun nessuna nenhuma")
)
"""Words of other languages that deny what follows them."""
DENIAL_BEFORE = _split(
    "no not without absent negative lack lacks lacking excludes excluded devoid "
    "never neither nor non exclude cannot cant couldnt wont unable isnt aint arent wasnt werent "
    "doesnt dont didnt hasnt havent"
) + sorted(OTHER_DENIALS)
"""Words that deny what follows them."""

DENIAL_AFTER = re.compile(
    r"\b(?:(?:is|are|was|were|be|been|appears?|seems?)\s*(?:not|n['’]?t)|not|cannot|can['’]?t)\s+(?:be\s+)?"
    r"(?:\w+ly\s+)?(?:seen|identified|visible|visuali[sz]ed|present|evident|demonstrated|detected|"
    r"apparent|noted|found|observed|appreciated|shown|recogni[sz]ed|there|made\s+out)\b"
    r"|\bno\s+longer\s+(?:seen|visible|present|evident|there|identified|apparent)\b"
    r"|\b(?:has|have)\s+(?:disappeared|resolved|vanished|cleared)\b|\b(?:is|are)\s+gone\b"
    r"|\b(?:is|are|was|were|appears?|seems?)\s+(?:absent|lacking|missing|negative|ruled\s+out|excluded|"
    r"unlikely|not\b)|\b(?:has|have)\s+been\s+(?:ruled\s+out|excluded)\b|\bruled\s+out\b|\babsent\b|(?<=\w)-free\b",
    re.IGNORECASE,
)
"""Phrases that deny what stands before them."""

FUNCTION_WORDS = frozenset(
    _split(
        "a an the of in on at is are was were be it its this that there here to for by with "
        "and or any some as into from has have had been being which who these those does do "
        "did i would think say believe see image picture scan shows show showing shown seen "
        "view side sided located located most likely probably evidence sign signs definite "
        "definitely clearly clear really plane section slice"
    )
)
"""Words that carry no content."""

OF_ANSWERING = frozenset(
    _split(
        "answer conclusion diagnosis opinion comment information question something decision "
        "determination assessment interpretation verdict statement judgment judgement certainty "
        "imaging given attach attached provide provided supply supplied upload uploaded receive "
        "received qualified able allowed permitted authorized licensed trained designed equipped "
        "meant intended comfortable access response reply message file attachment "
        "confirm determinable determined assessable assessed evaluable evaluated interpretable deny"
    )
)
"""Words whose denial says something of answering, and nothing of what was asked."""
ANAPHORIC = frozenset(
    word[:5]
    for word in _split(
        "so 1 any that such thing kind sort like case true correct right visible visualized detect "
        "detected identified identify found find noted note see look appear present evident know "
        "knowledge my as can could tell far whatsoever out ruled they them me abnormal abnormality "
        "finding absolutely all least slightest suggest indicate"
    )
)
"""Stems of words that name nothing of their own: a denial of them is about what was asked."""
WEAKENING = frozenset(
    _split("definitive firm further reliable certain final more enough additional your my")
)
"""Words between a denial and what it denies."""

OTHER_SENTENCES = re.compile(
    r"\bnon\s+(?:c['’]è|ci\s+sono|vi\s+(?:è|sono)|si\s+ved\w+)|\bn[ãa]o\s+(?:há|existe\w*)\b"
    r"|\bn['’](?:y\s+a|est|a)\s+pas\b|\A\W*pas\s+d[e'’]|\bno\s+hay\b",
    re.IGNORECASE,
)
"""Words of other languages that say that something is not there."""

EXISTS = re.compile(
    r"\bthere(?:\s+(?:is|are|appears?\s+to\s+be|seems?\s+to\s+be)|['’]s)\b"
    r"|\b(?:shows?|demonstrates?|reveals?|displays?|exhibits?|contains?|has|have|had|depicts?"
    r"|confirms?|(?:i|we|you)\s+(?:can\s+|do\s+)?(?:see|find|note|identify))\b"
    r"|\b(?:is|are|was|were|be)\s+(?:\w+ly\s+)?(?:seen|visible|present|noted|identified|evident|found"
    r"|visuali[sz]ed|observed|detected|demonstrated|apparent|appreciated|shown|there|used|given)\b"
    r"|\b(?:this|it|that|these|they)\s+(?:is|are)\s+|\b(?:is|are)\s+(?:\w+\s+)?evidence\s+of\b"
    r"|\bsuggest(?:s|ing|ive\s+of)\b|\bsuggested\s+by\b|\bin\s+(?:place|situ|position)\b"
    r"|\bindicat(?:es|ing|ive\s+of)\b"
    r"|\b(?:consistent|compatible)\s+with\b",
    re.IGNORECASE,
)
"""Sentences that say that something is there."""

UNASSERTED = re.compile(
    r"\b(?:if|whether|unless|should|would|could|can(?!\s+(?:\w+ly\s+)?(?:be\s+)?(?:see|find|note|identif))|may|might"
    r"|ask(?:s|ed|ing)?|check\w*|search\w*|screen\w*|important|question|determine|suspect\w*|suspicious|concern\w*|susp|differential|history|risk"
    r"|little|hardly|barely|scarcely|few|doubt\w*|question\w*|removed|resected|treated|simulat\w+"
    r"|mimic\w*|resembl\w+|like|look(?:ing)?\s+for|assess\w*|evaluat\w+|exclude\w*|rule|normal\s+variant"
    r"|potential\w*|possib\w+|consider\w*|criteria|defined|typical\w*|usually|generally|often|previous\w*)\b",
    re.IGNORECASE,
)
"""Words of sentences that do not assert what they name."""

BOUND = re.compile(
    r"\b(?:(?:more|less|fewer|greater)\s+than\b|between\s+\d)|[<>]|\d\s*(?:-|–|to)\s*\d",
    re.IGNORECASE,
)
"""Words that turn a number into a range."""
