"""The words of the built-in tasks and how they inflect.

Common English words only, nearly all of them one word piece in BERT's
vocabulary: a pretrained encoder knows them and every row stays short.
"""

import itertools

# Sentiment: adjectives, with the things they are said of.
GOOD = """great wonderful excellent lovely superb brilliant delightful perfect
fresh charming clever beautiful impressive pleasant fantastic enjoyable""".split()
BAD = """bad awful terrible horrible poor dreadful disappointing boring ugly
weak cheap dirty annoying unpleasant useless painful""".split()
STAY = """room bed soup bread service coffee breakfast waiter kitchen garden
lobby view dinner staff music shower dessert menu""".split()
FILM = """plot film acting ending script story camera dialogue scene hero
soundtrack book novel chapter series villain writing cast""".split()
DEGREES = "very really rather quite truly so".split()
VIEWERS = "my your our his her their the one".split()

# Kinds: a general word and the special ones under it.
KINDS = {
    "animal": "dog cat horse cow goat sheep rabbit bear".split(),
    "vehicle": "car truck bus bicycle van train taxi boat".split(),
    "fruit": "apple banana lemon cherry peach orange grape plum".split(),
    "instrument": "violin piano guitar drum flute trumpet cello harp".split(),
    "building": "house church school hotel bank museum library tower".split(),
    "person": """doctor farmer teacher lawyer soldier singer painter nurse
    baker driver judge student""".split(),
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
COLOURS = "red green blue white black yellow brown".split()

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
VERBS = {line.split()[0]: line.split() for line in _FORMS.split("\n") if line}
ON_THINGS = "see find buy sell paint watch describe choose".split()
ON_PEOPLE = """help call follow thank warn blame visit invite teach
praise""".split()
ALONE = "sleep wait sing laugh work travel swim run".split()
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
        "goalkeeper striker coach referee runner champion".split(),
        """scored a late goal|won the final race|trained for the marathon
        |kicked the ball|missed the penalty|beat the other team""",
        "the match|the tournament|the league game".split("|"),
    ),
    "food": (
        "chef cook butcher miller brewer waitress".split(),
        """chopped the onions|baked a chocolate cake|stirred the sauce
        |tasted the cheese|fried the potatoes|served the soup""",
        "the dinner|the lunch|the picnic".split("|"),
    ),
    "science": (
        "chemist astronomer physicist biologist engineer scientist".split(),
        """measured the temperature|studied the cells|observed the planet
        |tested the theory|built a microscope|recorded the data""",
        "the experiment|the lecture|the laboratory visit".split("|"),
    ),
    "money": (
        "banker investor accountant broker merchant economist".split(),
        """raised the interest rate|sold the shares|paid the tax
        |signed the loan|checked the budget|lost the profit""",
        "the auction|the audit|the market crash".split("|"),
    ),
}


def topic_actions(topic: str) -> list[str]:
    """The actions of a topic, e.g. `"kicked the ball"`."""
    return [" ".join(part.split()) for part in TOPICS[topic][1].split("|")]


# Questions: what is asked about.
EVENTS = """the bridge was built|the concert began|the church was painted
|the treaty was signed|the ship was sold|the school was opened
|the palace was burned|the prize was stolen|the statue was moved
|the festival was held""".replace("\n", "").split("|")
DOINGS = """built the bridge|opened the concert|painted the church
|signed the treaty|sold the ship|founded the school|burned the palace
|won the prize|moved the statue|started the festival""".replace("\n", "").split(
    "|"
)
PLURALS = "ships bridges towers schools prizes songs islands books".split()
WHERE = "France India Egypt Brazil London Rome Japan Canada".split()
SEASONS = "in spring|in summer|in winter|last year|last week".split("|")

_GLUE = """a an the was is were are will be had not no did do does by but and
or in on near with of to for from who what which where when how many much that
this it they he she we i you can could would should has have been one say said
tell know let me us name city country year people number although after before
during""".split()


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
        lists += [people, actions.replace("|", " ").split(), occasions]
    found = itertools.chain.from_iterable(
        phrase.lower().split()
        for phrase in itertools.chain.from_iterable(lists)
    )
    plural = [f"{noun}s" for noun in (*PEOPLE, *KINDS["animal"])]
    return sorted({*found, *plural})
