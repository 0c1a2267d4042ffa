"""The names of things that the strict scorer knows: plurals, synonyms, classes.

Everything is in lower case. Whoever changes a word here changes the version of the scorer, because
numbers of two versions do not compare.
"""

import re

_split = str.split

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
        *((f"{stem}on", f"{stem}a") for stem in _split("gangli mitochondri phenomen")),
        *(
            (f"{stem}a", f"{stem}ae")
            for stem in _split(
                "vertebr bull fistul fossa aort papill scapul patell tibi fibul pleur burs trache "
                "larv ampull macul areol"
            )
        ),
    )
}
PLURALS |= {f"{stem}thoraces": f"{stem}thorax" for stem in ("", "pneumo", "hydro", "hemo", "pyo")}
PLURALS |= {
    "pancreas": "pancreas",
    "cortices": "cortex",
    "apices": "apex",
    "appendices": "appendix",
}
"""Singular of Latin and Greek words by their plural."""
ENDING_IN_SES = re.compile(r"(?<=\w\w)(o|ta|y|the|re)ses$")
"""Ending of plurals of words in -sis: diagnoses, metastases, epiphyses, prostheses."""

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
    "gi": "gastrointestinal",
    "cns": "central nervous system",
    "lv": "left ventricle",
    "rv": "right ventricle",
    "ivc": "inferior vena cava",
    "svc": "superior vena cava",
    "dvt": "deep vein thrombosis",
    "avm": "arteriovenous malformation",
    "aaa": "abdominal aortic aneurysm",
    "tb": "tuberculosis",
    "hcc": "hepatocellular carcinoma",
    "rcc": "renal cell carcinoma",
    "gbm": "glioblastoma multiforme",
    "copd": "chronic obstructive pulmonary disease",
    "ards": "acute respiratory distress syndrome",
    "chf": "congestive heart failure",
    "csf": "cerebrospinal fluid",
    "sah": "subarachnoid hemorrhage",
    "sdh": "subdural hematoma",
    "edh": "epidural hematoma",
    "ett": "endotracheal tube",
    "et tube": "endotracheal tube",
    "ngt": "nasogastric tube",
    "ng tube": "nasogastric tube",
    "cvc": "central venous catheter",
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
    (r"h ?(&|and) ?e", "hematoxylin and eosin"),
    (r"fail(s|ed)? to", "cannot"),
    (r"free (of|from)", "without"),
    (r"imaging (evidence|findings?|signs?|features?)", "evidence"),
    (r"w o(?= )", "without"),
    (r"year olds?|years? old", "year"),
    (r"unremarkable|within normal limits|wnl", "normal"),
    (r"sagital|mid ?sagittal", "sagittal"),
    (r"(left|right)( sided?)? (and|&) (the )?(left|right)( sided?)?", "bilateral"),
    (r"comput(ed|eri[sz]ed)( axial)? tomogra(m|phy)( scan)?", "ct"),
    (r"cat scan", "ct"),
    (r"cxr", "chest xray"),
    (r"x ?rays?|radiographs?|radiography|roentgenograms?|roentgenogra(ph|phy)", "xray"),
    (r"plain films?|chest films?|xr", "xray"),
    (r"embol(us|i)", "embolism"),
    (r"as well as", "and"),
    (r"urinary bladder", "bladder"),
    (r"infarct(s|ed)?", "infarction"),
    (r"intestines?", "bowel"),
    (r"nephrolithiasis|urolithiasis", "kidney stone"),
    (r"renal (calcul(us|i)|stones?)", "kidney stone"),
    (r"cholelithiasis", "gallstone"),
    (r"ultrasonogra(m|phy)|ultrasonic|ultrasounds?|sonogra(m|ms|phy)|echography", "ultrasound"),
    (r"mammogra(m|ms|phy)", "mammography"),
    (
        r"(non|without|no|un) ?(iv |intravenous )?contrast( enhanced| enhancement)?",
        "withoutcontrast",
    ),
    (r"contrast (agents?|medium|media|materials?)", "contrast"),
    (r"unenhanced|non ?enhanced|noncontrast|pre ?contrast|plain scan", "withoutcontrast"),
    (r"contrast (is |was )?not (given|used|administered)", "withoutcontrast"),
    (r"contrast (is |was |has been )?(given|used|administered|injected)", "withcontrast"),
    (r"(with|w|post|after)( iv| intravenous)? contrast( enhanced| enhancement)?", "withcontrast"),
    (r"contrast enhanced|contrast enhancement", "withcontrast"),
    (r"t1 ?(w|wi|weighted)( imag(e|ing)| sequence)?", "t1"),
    (r"t2 ?(w|wi|weighted)( imag(e|ing)| sequence)?", "t2"),
    (r"t2 flair|fluid attenuated inversion recovery", "flair"),
    (r"diffusion weighted( imag(e|ing))?|diffusion weighting", "dwi"),
    (r"postero ?anterior|posteroanterior|posterior (to )?anterior|pa view|pa projection", "pa"),
    (r"antero ?posterior|anteroposterior|anterior (to )?posterior|ap view|ap projection", "ap"),
    (r"both sides|each side|on both|both|bilaterally|bilateral|bilat|either side", "bilateral"),
    (r"unilateral", "unilateral"),
    (r"behind", "posterior to"),
    (r"in front of", "anterior to"),
    (r"(a|one) hundred", "hundred"),
    (r"gall ?bladder stones?", "gallstone"),
    (r"gall bladder", "gallbladder"),
    (r"projections?", "view"),
    (r"neoplasms?", "tumor"),
    (r"left (\w+) and (the )?right \1", r"bilateral \1"),
    (r"right (\w+) and (the )?left \1", r"bilateral \1"),
    (r"left sided?|left hand side|lt", "left"),
    (r"right sided?|right hand side|rt", "right"),
    (r"transverse|transaxial|transversal|cross section(al)?", "axial"),
    (r"hyperintense|hyper intense|high signal", "hyperintense"),
    (r"hypointense|hypo intense|low signal", "hypointense"),
    (r"frontal plane", "coronal"),
    (r"horizontal(?= (plane|section|slice|view|cut)|$)", "axial"),
    (r"nmr", "mri"),
    (r"usg|echo(gram|grams)?", "ultrasound"),
    (r"wom[ae]n", "female"),
    (r"m[ae]n", "male"),
    (r"erect|standing", "upright"),
    (r"rounded|circular", "round"),
    (r"mid(?= )|cent(er|re)", "middle"),
    (r"top(?= (left|right))|(?<=left )top|(?<=right )top", "upper"),
    (r"bottom(?= (left|right))|(?<=left )bottom|(?<=right )bottom", "lower"),
    (r"symmetrical", "symmetric"),
    (r"asymmetrical", "asymmetric"),
    (r"homogenous", "homogeneous"),
    (r"heterogenous", "heterogeneous"),
    (r"(several|numerous)", "multiple"),
    (r"on (the|his|her|their) back", "supine"),
    (r"thorax", "chest"),
    (r"torn", "tear"),
    (r"fractured|broken", "fracture"),
    (r"ruptured", "rupture"),
    (r"dislocated", "dislocation"),
    (r"calcified", "calcification"),
    (r"dilated", "dilation"),
    (r"thickened", "thickening"),
    (r"enlarged", "enlargement"),
    (r"dilatations?", "dilation"),
)
"""Spellings of the same term, as patterns for text in which signs are spaces."""

ADJECTIVES = {
    "cardiac": "heart",
    "hepatic": "liver",
    "renal": "kidney",
    "splenic": "spleen",
    "gastric": "stomach",
    "pancreatic": "pancreas",
    "pulmonary": "lung",
    "cerebral": "brain",
    "cerebellar": "cerebellum",
    "aortic": "aorta",
    "tracheal": "trachea",
    "esophageal": "esophagus",
    "duodenal": "duodenum",
    "colonic": "colon",
    "rectal": "rectum",
    "bronchial": "bronchus",
    "ovarian": "ovary",
    "uterine": "uterus",
    "prostatic": "prostate",
    "mammary": "breast",
    "clavicular": "clavicle",
    "humeral": "humerus",
    "femoral": "femur",
    "tibial": "tibia",
    "fibular": "fibula",
    "patellar": "patella",
    "mandibular": "mandible",
    "vertebral": "vertebra",
    "ventricular": "ventricle",
    "atrial": "atrium",
    "pleural": "pleura",
    "pericardial": "pericardium",
}
"""Adjectives of organs with the noun: a hepatic lesion is one of the liver."""
ORGANS = frozenset(ADJECTIVES.values())
SIDES = frozenset(["left", "right"])

FINDINGS: tuple[tuple[frozenset[str], frozenset[str]], ...] = tuple(
    (frozenset(names.split()), frozenset(f"{names} {asked}".split()))
    for names, asked in (
        ("pneumothorax", "collapse air chest"),
        ("fracture", "break bone bony intact"),
        ("effusion", "fluid blunting angle"),
        ("consolidation pneumonia infiltrate opacity opacification", "airspace infection density"),
        ("edema", "congestion swelling fluid swollen"),
        ("atelectasis", "collapse volume"),
        ("cardiomegaly", "heart cardiac size"),
        ("hepatomegaly", "liver size"),
        ("splenomegaly", "spleen size"),
        ("pneumoperitoneum", "air gas perforation"),
        ("hydrocephalus", "ventricle"),
        ("hemorrhage bleeding hematoma", "blood bleed"),
        ("aneurysm", "dilation aorta wide"),
        ("dislocation", "alignment joint"),
        ("ascites", "fluid"),
        ("hernia", "bowel"),
        ("calcification", "calcium"),
        ("stenosis", "narrowing narrow"),
        ("contrast withcontrast withoutcontrast", "enhancement enhance"),
        ("comparison prior", "change new"),
    )
)
"""Names of findings and facts, and the words of questions that a denial of them answers."""

CHANGES = frozenset(
    _split(
        "enlargement dilation thickening narrowing mass lesion nodule tumor abscess cyst collapse "
        "deviation shift infarct infarction ischemia disease swelling rupture tear"
    )
)
"""What nothing normal has."""

POSITIONS: tuple[frozenset[str], ...] = tuple(
    frozenset(words.split())
    for words in (
        "left right bilateral",
        "upper middle lower",
        "superior inferior",
        "anterior posterior middle front back",
        "medial lateral",
        "above below",
    )
)
"""Places that exclude each other."""

OPPOSITES: tuple[frozenset[str], ...] = POSITIONS + tuple(
    frozenset(words.split())
    for words in (
        "proximal distal",
        "well poor moderately",
        "well ill moderately",
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
        "epidural subdural subarachnoid intraparenchymal intraventricular",
        "hyperechoic hypoechoic isoechoic anechoic",
        "intraaxial extraaxial",
        "intrahepatic extrahepatic",
        "frontal parietal temporal occipital",
        "cervical thoracic lumbar sacral",
        "ascending descending sigmoid",
        "internal external",
        "ischemic hemorrhagic",
        "viral bacterial fungal",
        "arterial venous",
        "focal diffuse",
        "systolic diastolic",
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
            "pa ap lateral",
            "black white gray grey red blue green yellow pink purple brown orange",
            "head neck chest abdomen pelvis",
            "lung liver kidney spleen heart brain stomach bladder pancreas",
            "small large",
            "single multiple",
            "child adult",
            "open closed",
        )
    ),
)
"""Mutually exclusive answers: naming one denies the others."""

COMPLEMENTS = {
    "male": "female",
    "female": "male",
    "normal": "abnormal",
    "abnormal": "normal",
    "benign": "malignant",
    "malignant": "benign",
    "withcontrast": "withoutcontrast",
    "single": "multiple",
    "multiple": "single",
    "healthy": "unhealthy",
    "unhealthy": "healthy",
    "regular": "irregular",
    "irregular": "regular",
    "symmetric": "asymmetric",
    "asymmetric": "symmetric",
    "homogeneous": "heterogeneous",
    "heterogeneous": "homogeneous",
}
"""Answers of which one is true if the other is denied."""
