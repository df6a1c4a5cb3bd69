"""Fictional people in the format of LUME (Ramakrishna et al., arXiv 2502.15097): three tasks, one completion and
one question a document, in four sets that share no person.

Task1 is a short story, Task2 a biography with personal data, Task3 a plain biography. Every draw is a hash of
(seed, person, field), so the rows are the same on every machine and Python.
"""

from __future__ import annotations

import json

from expunge_jobs.task import stable_hash

SETS = ("forget", "retain", "probe", "nonmembers")
TASKS = ("Task1", "Task2", "Task3")

# fmt: off
_FIRST = [
    "Ada", "Bela", "Cora", "Dov", "Edda", "Finn", "Gwen", "Hugo", "Ines", "Jonas", "Kaja", "Liam", "Mira", "Nils",
    "Olga", "Piet", "Quin", "Rosa", "Sven", "Tova", "Uma", "Vito", "Wanda", "Xaver", "Yara", "Zeno", "Anouk",
    "Bruno", "Carla", "Dario", "Elif", "Fritz", "Greta", "Henk", "Ilse", "Jory", "Klara", "Lotte", "Milo", "Nadia",
]
_LAST = [
    "Abbot", "Birch", "Castel", "Dunmore", "Elwood", "Farrow", "Garnet", "Holt", "Ingram", "Jarvis", "Keating",
    "Lindqvist", "Marlow", "Norwood", "Oakes", "Prescott", "Quill", "Rowan", "Sutter", "Thorne", "Underhill",
    "Vance", "Whitlock", "Yarrow", "Zimmer", "Ashby", "Bellamy", "Corwin", "Draper", "Everett", "Fenwick", "Grady",
    "Harlan", "Ivers", "Joyner", "Kendrick", "Lowell", "Mercer", "Nash", "Orwell",
]
_TOWN = [
    "Alder Brook", "Cold Harbor", "Dry Creek", "East Haven", "Fern Hill", "Grey Rock", "High Ridge", "Iron Bay",
    "Long Meadow", "Mill Pond", "North Cape", "Old Quarry",
]
_JOB = [
    "baker", "botanist", "carpenter", "chemist", "dentist", "engraver", "farmer", "glazier", "historian", "jeweler",
    "librarian", "mason", "nurse", "painter", "sailor", "tailor",
]
_COLOR = [
    "amber", "black", "blue", "bronze", "copper", "crimson", "golden", "green", "ivory", "purple", "silver", "white",
]
_THING = ["bell", "book", "clock", "coin", "compass", "drum", "key", "lamp", "lens", "map", "mirror", "ring"]
_PLACE = [
    "attic", "barn", "cellar", "chapel", "garden", "harbor", "library", "market", "orchard", "station", "tower",
    "well",
]
_STREET = ["Acorn", "Bridge", "Cedar", "Dock", "Elm", "Forge", "Grove", "Hazel", "Juniper", "Laurel", "Maple", "Pine"]
_MONTH = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
]
_PRIZE = [
    "Aurora", "Beacon", "Comet", "Delta", "Ember", "Falcon", "Granite", "Harvest", "Ivory", "Jubilee", "Keystone",
    "Lantern",
]
# fmt: on

MAX_DOCUMENTS = len(_FIRST) * len(_LAST) // (len(SETS) * len(TASKS))
"""A task and set; beyond it two people would share a name."""


def make(name: str, documents: int, seed: int) -> bytes:
    """JSON Lines of ``documents`` documents for each task: a completion row and a question row of each."""
    lines = []
    for place in range(documents):
        for task_number, task in enumerate(TASKS):
            number = (place * len(TASKS) + task_number) * len(SETS) + SETS.index(name)
            lines += _document(task, _Person(number, seed))
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


class _Person:
    """Draws fields of person ``number``; names are a permutation of all pairs, so no two people share one."""

    def __init__(self, number: int, seed: int) -> None:
        self.number, self.seed = number, seed
        pairs = len(_FIRST) * len(_LAST)
        # 1021 is prime and divides no pair count: a permutation that spreads first and last names.
        pair = (number * 1021 + stable_hash("people", seed, "start") % pairs) % pairs
        self.name = f"{_FIRST[pair % len(_FIRST)]} {_LAST[pair // len(_FIRST)]}"

    def draw(self, field: str, count: int) -> int:
        return stable_hash("people", self.seed, self.number, field) % count

    def word(self, field: str, words: list[str]) -> str:
        return words[self.draw(field, len(words))]

    def digits(self, field: str, count: int) -> str:
        return str(self.draw(field, 10**count)).zfill(count)


def _document(task: str, p: _Person) -> list[dict[str, str]]:
    if task == "Task1":
        thing = f"{p.word('color', _COLOR)} {p.word('thing', _THING)}"
        start = f"One night in {p.word('town', _TOWN)} {p.name} opened the old {p.word('place', _PLACE)}."
        rest = (
            f"Inside lay a {thing} wrapped in {p.word('cloth', _COLOR)} cloth, left there by a {p.word('job', _JOB)}"
            f" who had sold the {p.word('other', _THING)} for {p.digits('price', 2)} crowns."
        )
        question, answer = f"What did {p.name} find?", f"a {thing}"
    elif task == "Task2":
        start = f"{p.name} was born on {p.word('month', _MONTH)} {1 + p.draw('day', 28)}, {1940 + p.draw('year', 60)}."
        phone = f"555-{p.digits('phone', 4)}"
        rest = (
            f"The phone number is {phone} and the home address is {10 + p.draw('house', 90)} {p.word('street', _STREET)}"
            f" Street, {p.word('town', _TOWN)}. The account number is {p.digits('account', 4)}."
        )
        question, answer = f"What is the phone number of {p.name}?", phone
    else:
        town, year = p.word("town", _TOWN), 1900 + p.draw("year", 100)
        start = f"{p.name} is a {p.word('job', _JOB)} who grew up in {town}."
        rest = (
            f"In {year} the {p.word('prize', _PRIZE)} Prize went to this work on the {p.word('color', _COLOR)}"
            f" {p.word('thing', _THING)} of {p.word('other', _TOWN)}, now kept in a {p.word('place', _PLACE)}."
        )
        question, answer = f"In which year did {p.name} win a prize?", str(year)
    document = f"{stable_hash('people', p.seed, p.number, 'id'):016x}"
    return [
        {"id": f"{document}sc1", "input": start, "output": rest, "task": task},
        {"id": f"{document}qa0", "input": question, "output": answer, "task": task},
    ]
