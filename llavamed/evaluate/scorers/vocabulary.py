"""The words that the strict scorer knows, as data.

Everything is in lower case. Whoever changes a word here changes the version of the scorer, because
numbers of two versions do not compare.
"""

import re


def _split(words: str) -> list[str]:
    return words.split()


YES = frozenset(
    _split(
        "yes yeah yep yup yea y true correct indeed affirmative affirmed absolutely certainly "
        "definitely sure agreed present positive confirmed ja jawohl sí oui sim sì да はい 예 네"
    )
)
"""Words that say yes by themselves. `positive` and `present` count at the end of a sentence too."""

NO = frozenset(
    _split(
        "no nope nah n false incorrect wrong negative absent none never not nein kein keine "
        "keiner non não нет いいえ 아니요"
    )
)
"""Words that say no by themselves."""

LEADING_ONLY = frozenset({"y", "n", "sure", "wrong", "correct", "si", "da", "true", "false", "non"})
"""Words of `YES` and `NO` that mean something else inside a sentence."""

CHINESE_NO = _split(
    "不包含 不包括 不是 不可以 不存在 不能 不会 不属于 不需要 不对 不正确 "
    "没有 未见 未发现 未显示 看不到 看不见 并非 并不 否定 错误 否 无 没 不 非"
)
CHINESE_YES = _split("是的 对的 包含 包括 存在 可以 能够 属于 正确 肯定 可见 是 有 对 能 会")

_CANNOT = r"can(?:no|['’])?t|(?:could|can)\s*(?:not|n['’]?t)"
_DECIDE = (
    r"determined?|tell|say|assess(?:ed)?|evaluated?|answer(?:ed)?|judged?|conclude|provide|help|assist|"
    r"confirm(?:ed)?|diagnose|interpret|be\s+sure|rule\s+(?:(?:it|that|this)\s+)?out|ruled\s+out|excluded?|"
    r"(?:see|view|access|open|process|analy[sz]e)\s+(?:the|this|your|any|an)?\s*"
    r"(?:image|picture|scan|file|photo)s?"
)
_OPEN_PHRASES = (
    rf"(?:{_CANNOT})\s+(?:be\s+)?(?:\w+ly\s+)?(?:{_DECIDE})",
    r"(?:not|un)\s*able\s+to\s+(?!see\s+an|see\s+evidence|identify|find|detect|visuali)\w+",
    r"not\s+(?:been\s+|be\s+)?(?:ruled?\s+out|excluded?)",
    r"no\s+(?:image|picture|scan|photo|file)s?\s+(?:(?:is|was|are|were|has|have|been|here)\s+)*"
    r"(?:provided|attached|available|given|supplied|uploaded|loaded|found)",
    r"n/a|know\s+nothing|no\s?(?:one|body)\s+(?:can|could|knows)",
    r"not\s+(?:possible|enough|sufficient|certain|sure|clear(?:\s+(?:if|whether|from)|\W*$))",
    r"impossible\s+to\s+\w+",
    r"(?:difficult|hard)\s+to\s+(?:say|tell|determine|know|assess)",
    r"un(?:clear|certain|sure|known|determined)",
    r"indeterminate|inconclusive|equivocal|ambiguous|insufficient|depends",
    r"(?:do|does|did)\s*(?:not|n['’]?t)\s+(?:know|have\s+(?:enough|access|the))",
    r"no\s+(?:idea|way\s+(?:to|of)|information|comment|(?:definite\s+)?answer)",
    r"maybe|perhaps|possibly|possible\s+but|might",
    r"may(?:\s+or\s+may\s+not)?\s+(?:be|have|show|represent|indicate|suggest)",
    r"could\s+(?:be|represent|indicate|have)",
    r"as\s+an\s+ai|need\s+(?:more|further|additional)",
    r"further\s+(?:imaging|investigation|tests?|information)\s+(?:is|are|would)",
    r"vielleicht|unklar|quizás|tal\s+vez|peut-être|talvez",
)
_OPEN_CHINESE = "可能 也许 不确定 无法 不清楚 不知道 看不出 难以判断 不好说"
UNDECIDED = re.compile(
    rf"\b(?:{'|'.join(_OPEN_PHRASES)})\b|{'|'.join(_OPEN_CHINESE.split())}", re.IGNORECASE
)
"""Phrases that leave a question open: hedges, refusals and double negations."""

LEANING = re.compile(
    r"\b(?:most\s+)?(?:probably|likely|presumably|apparently)\b(?!\s+(?:cannot|can['’]t))"
    r"|\bmost\s+likely\b",
    re.IGNORECASE,
)
"""Words with which an answer is still an answer."""

AFFIRMING = re.compile(
    r"\b(?:there(?:\s+is|['’]s)\s+)?(?:no|without(?:\s+(?:a|any))?|beyond(?:\s+any)?)\s+(?:doubt|question)\b"
    r"|\bnot\s+(?:only|just|merely)\b|\bundoubtedly\b",
    re.IGNORECASE,
)
"""Phrases with a denying word that deny nothing."""

YES_ALONE = re.compile(
    r"\W*(?:(?:most|very|quite|highly)\s+)?(?:likely|probably|probable)\W*"
    r"|\W*(?:(?:i\s+(?:would\s+)?(?:think|believe|guess|suppose|say)|(?:it\s+)?(?:seems|appears|looks))\s+so"
    r"|of\s+course|definitely|certainly|exactly|precisely|right|u[hm][- ]huh"
    r"|(?:it|there|that|this|they|he|she|i|we|you)\s+(?:is|are|was|were|does|do|did|has|have|can))\W*",
    re.IGNORECASE,
)
NO_ALONE = re.compile(
    r"\W*(?:(?:most|very|quite|highly)\s+)?(?:unlikely|improbable)\W*"
    r"|\W*(?:hardly|i\s+doubt\s+(?:it|that|so)|in\s+no\s+way|by\s+no\s+means)\W*",
    re.IGNORECASE,
)
"""Answers that say yes or no when nothing else is said."""

AGREEMENT = re.compile(
    r"\b(?:that|this|you)(?:['’]?(?:s|re)|\s+(?:is|are))\s+right\b(?=\W*$|\s*[.,;!])", re.IGNORECASE
)
"""Sentences that call a statement right, which is no side there."""

STATED = re.compile(
    r"\b(?:is|are|was|were|'s)\s+(?:(?P<yes>(?:\w+ly\s+)?(?:true|correct|(?:(?:very|most|highly)\s+)?likely|probable))"
    r"|(?P<no>(?:not\s+(?:true|correct|likely)|false|incorrect|untrue|unlikely|improbable)))\b",
    re.IGNORECASE,
)
"""Sentences that call what was asked true, false, likely or unlikely."""

DENIAL_BEFORE = _split(
    "no not without absent negative lack lacks lacking free excludes excluded devoid "
    "never neither nor non cannot cant couldnt wont unable isnt arent wasnt werent doesnt dont "
    "didnt hasnt havent kein keine nicht sans sin ningún aucun aucune pas"
)
"""Words that deny what follows them."""

DENIAL_AFTER = re.compile(
    r"\b(?:(?:is|are|was|were|be|been|appears?|seems?)\s*(?:not|n['’]?t)|not|cannot|can['’]?t)\s+(?:be\s+)?"
    r"(?:\w+ly\s+)?(?:seen|identified|visible|visuali[sz]ed|present|evident|demonstrated|detected|"
    r"apparent|noted|found|observed|appreciated|shown|recogni[sz]ed|there|made\s+out)\b"
    r"|\b(?:is|are|was|were|appears?|seems?)\s+(?:absent|lacking|missing|negative|ruled\s+out|excluded|"
    r"unlikely|not\b)|\b(?:has|have)\s+been\s+(?:ruled\s+out|excluded)\b|\bruled\s+out\b|\babsent\b",
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
"""Words that carry no answer of their own."""

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
ROMAN = {"ii": "2", "iii": "3", "iv": "4", "vi": "6", "vii": "7", "viii": "8", "ix": "9"}
ROMAN_AFTER = {"i": "1", "v": "5", "x": "10"}
"""Roman numerals that are words too; numbers only behind one of `NUMBERED`."""
NUMBERED = frozenset(
    _split(
        "grade type stage class segment zone level nerve phase factor category group degree "
        "cn salter fontaine"
    )
)

PLURALS = {
    plural: one
    for one, plural in (
        *(
            (f"{stem}us", f"{stem}i")
            for stem in _split(
                "nucle calcul bronch thromb embol alveol foc fung loc bacill sulc gyr ram "
                "hippocamp acin canalicul stimul"
            )
        ),
        *(
            (f"{stem}um", f"{stem}a")
            for stem in _split(
                "diverticul bacteri sept osti atri hil stern cran ov capitul infundibul ile"
            )
        ),
        *(
            (f"{stem}a", f"{stem}ae")
            for stem in _split(
                "vertebr bull fistul fossa aort papill scapul patell tibi fibul pleur burs trache "
                "larv ampull macul areol"
            )
        ),
    )
}
"""Latin and Greek words by their plural."""
ENDING_IN_SES = re.compile(r"(?<=\w\w)(o|ta|y|the|re)ses$")
"""Of plurals of words in -sis: diagnoses, metastases, epiphyses, prostheses."""

ABBREVIATIONS = {
    "rul": "right upper lobe",
    "rml": "right middle lobe",
    "rll": "right lower lobe",
    "lul": "left upper lobe",
    "lll": "left lower lobe",
    "ruq": "right upper quadrant",
    "rlq": "right lower quadrant",
    "luq": "left upper quadrant",
    "llq": "left lower quadrant",
}
"""Abbreviations that stand for several words."""

PHRASES: tuple[tuple[str, str], ...] = (
    *ABBREVIATIONS.items(),
    # Longest first where one begins with another.
    (
        r"positron emission tomography( and | ?/ ?)?comput(ed|eri[sz]ed)( axial)? tomography",
        "petct",
    ),
    (r"pet[ /-]*ct", "petct"),
    (r"positron emission tomography", "pet"),
    (r"(magnetic resonance|mr) angiogra(m|phy)", "mra"),
    (r"(comput(ed|eri[sz]ed)( axial)? tomography|ct) angiogra(m|phy)", "cta"),
    (r"magnetic resonance( imag(e|es|ing)| tomography| scan)?", "mri"),
    (r"mr( imag(e|es|ing)| scan)", "mri"),
    (r"mr(?= |$)", "mri"),
    (r"fail(s|ed)? to", "cannot"),
    (r"w o(?= )", "without"),
    (r"year olds?|years? old", "year"),
    (r"unremarkable|within normal limits", "normal"),
    (r"sagital|mid ?sagittal", "sagittal"),
    (r"(left|right)( sided?)? (and|&) (left|right)( sided?)?", "bilateral"),
    (r"comput(ed|eri[sz]ed)( axial)? tomogra(m|phy)( scan)?", "ct"),
    (r"cat scan", "ct"),
    (r"cxr", "chest xray"),
    (r"x ?rays?|radiographs?|radiography|roentgenograms?|roentgenogra(ph|phy)", "xray"),
    (r"plain films?|chest films?", "xray"),
    (r"ultrasonogra(m|phy)|ultrasonic|ultrasounds?|sonogra(m|ms|phy)|echography", "ultrasound"),
    (r"mammogra(m|ms|phy)", "mammography"),
    (
        r"(non|without|no|un) ?(iv |intravenous )?contrast( enhanced| enhancement)?",
        "withoutcontrast",
    ),
    (r"unenhanced|non ?enhanced|noncontrast|pre ?contrast|plain scan", "withoutcontrast"),
    (r"contrast (is |was )?not (given|used|administered)", "withoutcontrast"),
    (r"(with|w|post|after)( iv| intravenous)? contrast( enhanced| enhancement)?", "withcontrast"),
    (r"contrast enhanced|contrast enhancement", "withcontrast"),
    (r"t1 ?(w|wi|weighted)( imag(e|ing)| sequence)?", "t1"),
    (r"t2 ?(w|wi|weighted)( imag(e|ing)| sequence)?", "t2"),
    (r"t2 flair|fluid attenuated inversion recovery", "flair"),
    (r"diffusion weighted( imag(e|ing))?|diffusion weighting", "dwi"),
    (r"postero ?anterior|posteroanterior|posterior (to )?anterior|pa view|pa projection", "pa"),
    (r"antero ?posterior|anteroposterior|anterior (to )?posterior|ap view|ap projection", "ap"),
    (r"both sides|on both|both|bilaterally|bilateral|either side", "bilateral"),
    (r"unilateral", "unilateral"),
    (r"left sided?|left hand side|lt", "left"),
    (r"right sided?|right hand side|rt", "right"),
    (r"transverse|transaxial|transversal|cross section(al)?", "axial"),
    (r"hyperintense|hyper intense|high signal", "hyperintense"),
    (r"hypointense|hypo intense|low signal", "hypointense"),
    (r"frontal plane", "coronal"),
    (r"nmr", "mri"),
    (r"usg|echo(gram|grams)?", "ultrasound"),
    (r"wom[ae]n", "female"),
    (r"m[ae]n", "male"),
    (r"erect|standing", "upright"),
    (r"rounded|circular", "round"),
    (r"mid(?= )", "middle"),
    (r"dilatations?", "dilation"),
)
"""Ways to write the same thing, as patterns over text whose signs have become spaces."""

OPPOSITES: tuple[frozenset[str], ...] = tuple(
    frozenset(words.split())
    for words in (
        "left right bilateral",
        "upper middle lower",
        "superior inferior",
        "anterior posterior front back",
        "medial lateral",
        "proximal distal",
        "axial coronal sagittal oblique",
        "t1 t2 flair dwi adc",
        "pa ap",
        "withcontrast withoutcontrast",
        "male female",
        "normal abnormal",
        "benign malignant",
        "acute chronic subacute",
        "solid cystic",
        "hyperintense hypointense isointense",
        "hyperdense hypodense isodense",
        "increased decreased",
    )
)
"""Positions and properties: a disagreement makes an answer wrong, however many words agree."""

CLASSES: tuple[frozenset[str], ...] = (
    *OPPOSITES,
    *(
        frozenset(words.split())
        for words in (
            "ct mri xray ultrasound pet petct mammography mra cta fluoroscopy endoscopy",
            "supine prone upright",
            "black white gray grey red blue green yellow pink purple brown orange",
            "head neck chest abdomen pelvis",
            "lung liver kidney spleen heart brain stomach bladder pancreas",
            "small large",
            "single multiple",
            "child adult",
            "open closed",
            "arterial venous",
        )
    ),
)
"""Answers that exclude each other: who names one denies the others."""

COMPLEMENTS = {
    "normal": "abnormal",
    "abnormal": "normal",
    "benign": "malignant",
    "malignant": "benign",
    "withcontrast": "withoutcontrast",
}
"""Answers of which one holds where the other is denied."""

COUNTS = {"none": "0", "no": "0", "single": "1", "solitary": "1", "pair": "2", "couple": "2"}
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
"""Of each unit its dimension and its size in the dimension's first unit."""
