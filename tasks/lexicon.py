"""The words of the built-in tasks and how they inflect.

Common English words only, nearly all of them one word piece in BERT's
vocabulary: a pretrained encoder knows them and every row stays short.
"""

import itertools


def _list(text: str) -> list[str]:
    """Entries between bars, or else between spaces."""
    entries = text.split("|") if "|" in text else text.split()
    return [" ".join(entry.split()) for entry in entries]


# Sentiment: adjectives, with the things they are said of.
GOOD = _list("""
    great wonderful excellent lovely superb brilliant delightful perfect
    fresh charming clever beautiful impressive pleasant fantastic enjoyable
""")
BAD = _list("""
    bad awful terrible horrible poor dreadful disappointing boring ugly weak
    cheap dirty annoying unpleasant useless painful
""")
STAY = _list("""
    room bed soup bread service coffee breakfast waiter kitchen garden lobby
    view dinner staff music shower dessert menu
""")
FILM = _list("""
    plot film acting ending script story camera dialogue scene hero
    soundtrack book novel chapter series villain writing cast
""")
DEGREES = _list("very really rather quite truly so")
VIEWERS = _list("my your our his her their the one")

# Kinds: a general word and the special ones under it.
KINDS = {
    "animal": _list("dog cat horse cow goat sheep rabbit bear"),
    "vehicle": _list("car truck bus bicycle van train taxi boat"),
    "fruit": _list("apple banana lemon cherry peach orange grape plum"),
    "instrument": _list("violin piano guitar drum flute trumpet cello harp"),
    "building": _list("house church school hotel bank museum library tower"),
    "person": _list("""doctor farmer teacher lawyer soldier singer painter nurse
    baker driver judge student"""),
}
PEOPLE = KINDS["person"]
THINGS = [kind for kind in KINDS if kind != "person"]
KIND_OF = {word: kind for kind, words in KINDS.items() for word in words}

# Adjectives that fit every thing, each beside its opposite.
OPPOSITES = {
    "big": "small",
    "new": "old",
    "cheap": "expensive",
    "light": "heavy",
    "clean": "dirty",
    "strange": "familiar",
}
OPPOSITES |= {b: a for a, b in OPPOSITES.items()}
COLOURS = _list("red green blue white black yellow brown")

# Verbs as (base, third person, past, participle, -ing).
_FORMS = """
see sees saw seen seeing
find finds found found finding
buy buys bought bought buying
sell sells sold sold selling
paint paints painted painted painting
watch watches watched watched watching
describe describes described described describing
choose chooses chose chosen choosing
purchase purchases purchased purchased purchasing
pick picks picked picked picking
help helps helped helped helping
assist assists assisted assisted assisting
call calls called called calling
follow follows followed followed following
thank thanks thanked thanked thanking
warn warns warned warned warning
blame blames blamed blamed blaming
accuse accuses accused accused accusing
visit visits visited visited visiting
invite invites invited invited inviting
teach teaches taught taught teaching
instruct instructs instructed instructed instructing
praise praises praised praised praising
sleep sleeps slept slept sleeping
wait waits waited waited waiting
sing sings sang sung singing
laugh laughs laughed laughed laughing
work works worked worked working
travel travels traveled traveled traveling
swim swims swam swum swimming
run runs ran run running
"""
VERBS = {line.split()[0]: line.split() for line in _FORMS.strip().split("\n")}
ON_THINGS = _list("see find buy sell paint watch describe choose")
ON_PEOPLE = _list("""
    help call follow thank warn blame visit invite teach praise
""")
ALONE = _list("sleep wait sing laugh work travel swim run")
SYNONYMS = {
    "buy": "purchase",
    "choose": "pick",
    "help": "assist",
    "blame": "accuse",
    "teach": "instruct",
}
SYNONYMS |= {b: a for a, b in SYNONYMS.items()}
SAME_ADJECTIVE = {
    "big": "large",
    "small": "little",
    "new": "modern",
    "old": "ancient",
    "strange": "odd",
}
SAME_ADJECTIVE |= {b: a for a, b in SAME_ADJECTIVE.items()}

# Topics: who, does what, on what occasion.
TOPICS = {
    "sport": (
        _list("goalkeeper striker coach referee runner champion"),
        _list("""scored a late goal|won the final race|trained for the marathon
        |kicked the ball|missed the penalty|beat the other team"""),
        _list("the match|the tournament|the league game"),
    ),
    "food": (
        _list("chef cook butcher miller brewer waitress"),
        _list("""chopped the onions|baked a chocolate cake|stirred the sauce
        |tasted the cheese|fried the potatoes|served the soup"""),
        _list("the dinner|the lunch|the picnic"),
    ),
    "science": (
        _list("chemist astronomer physicist biologist engineer scientist"),
        _list("""measured the temperature|studied the cells|observed the planet
        |tested the theory|built a microscope|recorded the data"""),
        _list("the experiment|the lecture|the laboratory visit"),
    ),
    "money": (
        _list("banker investor accountant broker merchant economist"),
        _list("""raised the interest rate|sold the shares|paid the tax
        |signed the loan|checked the budget|lost the profit"""),
        _list("the auction|the audit|the market crash"),
    ),
}


# Questions: what is asked about.
EVENTS = _list("""
    the bridge was built | the concert began | the church was painted | the
    treaty was signed | the ship was sold | the school was opened | the
    palace was burned | the prize was stolen | the statue was moved | the
    festival was held
""")
DOINGS = _list("""
    built the bridge | opened the concert | painted the church | signed the
    treaty | sold the ship | founded the school | burned the palace | won
    the prize | moved the statue | started the festival
""")
PLURALS = _list("ships bridges towers schools prizes songs islands books")
WHERE = _list("France India Egypt Brazil London Rome Japan Canada")
SEASONS = _list("in spring|in summer|in winter|last year|last week")

_GLUE = _list("""
    a an the was is were are will be had not no did do does by but and or in
    on near with of to for from who what which where when how many much that
    this it they he she we i you can could would should has have been one
    say said tell know let me us name city country year people number
    although after before during
""")


def article(phrase: str) -> str:
    """`"an apple"`, `"a red apple"`."""
    return ("an " if phrase[0] in "aeio" else "a ") + phrase


def sentence(words: str, *, end: str = ".") -> str:
    """Capitalised, with the mark at its end."""
    return words[0].upper() + words[1:] + end


def words() -> list[str]:
    """Every word of the lexicon once, sorted: the built-in vocabulary."""
    lists = [
        GOOD, BAD, STAY, FILM, DEGREES, VIEWERS, list(KINDS), KIND_OF,
        OPPOSITES, COLOURS, SEASONS, SAME_ADJECTIVE, EVENTS, DOINGS, PLURALS,
        WHERE, _GLUE, _FORMS.split(),
    ]  # fmt: skip
    for people, actions, occasions in TOPICS.values():
        lists += [people, actions, occasions]
    found = itertools.chain.from_iterable(
        phrase.lower().split()
        for phrase in itertools.chain.from_iterable(lists)
    )
    plural = [f"{noun}s" for noun in (*PEOPLE, *KINDS["animal"])]
    return sorted({*found, *plural})
