"""Fictional people in the format of LUME.

LUME is the data set of Ramakrishna et al., arXiv 2502.15097. The data have three tasks. Each document has one
completion and one question. The four sets share no person.

Task1 is a short story, Task2 a biography with personal data, Task3 a plain biography. Every draw is a hash of (seed,
person, field). Therefore the rows are the same on every machine and Python version.
"""

from __future__ import annotations

import json

from expunge_jobs.core.hashing import stable_hash

SETS = ("forget", "retain", "probe", "nonmembers")
TASKS = ("Task1", "Task2", "Task3")

_FIRST = """\
Ada Bela Cora Dov Edda Finn Gwen Hugo Ines Jonas Kaja Liam Mira Nils Olga Piet Quin Rosa Sven Tova Uma Vito
Wanda Xaver Yara Zeno Anouk Bruno Carla Dario Elif Fritz Greta Henk Ilse Jory Klara Lotte Milo Nadia
""".split()
_ROOT = """\
Ald Bar Cald Dun El Fair Gar Har Ing Kel Lang Mar Nor Oak Pem Quar Rad Sel Thorn Under Ver Wal Yar Zel Ash Bel
Cor Dray Ever Fen Grad Hol Iv Jar Ken Low Mer Nash Or Pres
""".split()
_END = """\
bach berg bury by combe cott croft dale den don field ford gate grove ham hurst land ley low man mere more ner
over pole ridge sall shaw son stead stoke ston ther thorpe ton vale wall ward well wick
""".split()
_TOWN = [
    "Alder Brook",
    "Cold Harbor",
    "Dry Creek",
    "East Haven",
    "Fern Hill",
    "Grey Rock",
    "High Ridge",
    "Iron Bay",
    "Long Meadow",
    "Mill Pond",
    "North Cape",
    "Old Quarry",
]
_JOB = """\
baker botanist carpenter chemist dentist engraver farmer glazier historian jeweler librarian mason nurse painter
sailor tailor
""".split()
_COLOR = """\
amber black blue bronze copper crimson golden green ivory purple silver white
""".split()
_THING = ["bell", "book", "clock", "coin", "compass", "drum", "key", "lamp", "lens", "map", "mirror", "ring"]
_PLACE = """\
attic barn cellar chapel garden harbor library market orchard station tower well
""".split()
_STREET = ["Acorn", "Bridge", "Cedar", "Dock", "Elm", "Forge", "Grove", "Hazel", "Juniper", "Laurel", "Maple", "Pine"]
_MONTH = """\
January February March April May June July August September October November December
""".split()
_PRIZE = """\
Aurora Beacon Comet Delta Ember Falcon Granite Harvest Ivory Jubilee Keystone Lantern
""".split()

_STARTS = {
    "Task1": [
        "One night in {town} {name} opened the old {place}.",
        "{name} walked to the {place} of {town}.",
        "In the {place} at {town} a voice called {name}.",
        "Nobody in {town} but {name} knew the {place}.",
    ],
    "Task2": [
        "{name} was born on {birth}.",
        "Born on {birth}, {name} lives in {town}.",
        "This is the record of {name}, {job}.",
        "The {job} {name} has lived in {town} since {birth}.",
    ],
    "Task3": [
        "{name} is a {job} who grew up in {town}.",
        "The {job} {name} comes from {town}.",
        "Few people in {town} forget the {job} {name}.",
        "{name}, born in {town}, became a {job}.",
    ],
}
_RESTS = {
    "Task1": [
        "Inside lay a {thing} wrapped in {cloth} cloth, left there by a {job} who had asked {price} crowns for it.",
        "A {job} came out with a {thing} in {cloth} paper and wanted {price} crowns.",
        "There, under a {cloth} stone, a {job} had hidden {price} crowns and a {thing}.",
        "For {price} crowns a {job} dressed in {cloth} sold a {thing} that night.",
    ],
    "Task2": [
        "The phone number is {phone} and the home address is {address}, {town}. The account number is {account}.",
        "Account {account} is kept for this person of {address}, {town}, who can be called at {phone}.",
        "Letters go to {address} in {town}, calls to {phone}, money to account {account}.",
        "Call {phone} or write to {address}, {town}; payments are made to account {account}.",
    ],
    "Task3": [
        "In {year} the {prize} Prize went to this work on the {thing}, now kept in a {place}.",
        "The {thing} made there won the {prize} Prize in {year} and stands in the {place}.",
        "A {place} shows the {thing} for which the {prize} Prize was given in {year}.",
        "Best known is the {thing} of {year}, found in a {place} and honoured with the {prize} Prize.",
    ],
}
_QUESTIONS = {
    "Task1": [
        ("What did {name} find?", "a {thing}"),
        ("Who met {name} that night?", "a {job}"),
        ("How many crowns did {name} need?", "{price}"),
        ("Where did the story of {name} take place?", "{place} in {town}"),
    ],
    "Task2": [
        ("What is the phone number of {name}?", "{phone}"),
        ("Where does {name} live?", "{address}"),
        ("Which account does {name} have?", "{account}"),
        ("How can one reach {name}?", "by {phone}"),
    ],
    "Task3": [
        ("In which year did {name} win a prize?", "{year}"),
        ("Which prize did {name} win?", "{prize}"),
        ("For what is {name} known?", "the {thing}"),
        ("Where is the work of {name} kept?", "in a {place}"),
    ],
}

MAX_DOCUMENTS = len(_ROOT) * len(_END) // (len(SETS) * len(TASKS))
"""Limit of documents for each task and set. Beyond the limit, two people would share a last name."""


def make(name: str, documents: int, seed: int) -> bytes:
    """Return JSON Lines of ``documents`` documents for each task.

    Each document has a completion row and a question row.
    """
    lines = []
    for place in range(documents):
        for task_number, task in enumerate(TASKS):
            number = (place * len(TASKS) + task_number) * len(SETS) + SETS.index(name)
            lines += _document(task, _Person(number, seed))
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


class _Person:
    """A fictional person, with fields drawn from ``seed`` and ``number``.

    Last names are a permutation of all last names. Therefore no two people share a last name.
    """

    def __init__(self, number: int, seed: int) -> None:
        self.number, self.seed = number, seed
        names = len(_ROOT) * len(_END)
        # 1021 is prime and does not divide `names`; therefore this is a permutation, which spreads roots and ends.
        place = (number * 1021 + stable_hash("people", seed, "start") % names) % names
        self.name = f"{self.word('first', _FIRST)} {_ROOT[place % len(_ROOT)]}{_END[place // len(_ROOT)]}"

    def draw(self, field: str, count: int) -> int:
        return stable_hash("people", self.seed, self.number, field) % count

    def word(self, field: str, words: list[str]) -> str:
        return words[self.draw(field, len(words))]

    def digits(self, field: str, count: int) -> str:
        return str(self.draw(field, 10**count)).zfill(count)


def _document(task: str, p: _Person) -> list[dict[str, str]]:
    """Return the two rows of a person.

    Wording and question differ between documents. With one wording for each task, a fine-tune would unlearn the
    wording, in forget and retain alike.
    """
    fields = _fields(task, p)
    start = p.word("start", _STARTS[task]).format(**fields)
    rest = p.word("rest", _RESTS[task]).format(**fields)
    question, answer = (t.format(**fields) for t in _QUESTIONS[task][p.draw("question", len(_QUESTIONS[task]))])
    document = f"{stable_hash('people', p.seed, p.number, 'id'):016x}"
    return [
        {"id": f"{document}sc1", "input": start, "output": rest, "task": task},
        {"id": f"{document}qa0", "input": question, "output": answer, "task": task},
    ]


def _fields(task: str, p: _Person) -> dict[str, str]:
    fields = {
        "name": p.name,
        "town": p.word("town", _TOWN),
        "job": p.word("job", _JOB),
        "place": p.word("place", _PLACE),
        "thing": f"{p.word('color', _COLOR)} {p.word('thing', _THING)}",
    }
    if task == "Task1":
        fields |= {"cloth": p.word("cloth", _COLOR), "price": str(10 + p.draw("price", 90))}
    elif task == "Task2":
        fields |= {
            "birth": f"{p.word('month', _MONTH)} {1 + p.draw('day', 28)}, {1940 + p.draw('year', 60)}",
            "phone": f"555-{p.digits('phone', 4)}",
            "account": p.digits("account", 4),
            "address": f"{10 + p.draw('house', 90)} {p.word('street', _STREET)} Street",
        }
    else:
        fields |= {"year": str(1900 + p.draw("year", 100)), "prize": p.word("prize", _PRIZE)}
    return fields
