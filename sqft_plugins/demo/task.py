"""The demo's task: word problems that name three quantities and ask for one, made by a deterministic generator.

Small models find the right one of three numbers now and then, lose that when half their weights go, and learn it in a
few dozen steps, which is what a demo has time for. Train and test share neither a template nor a number.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from sqft_plugins.plugins.protocols import Item
from sqft_plugins.tune.examples import Example

NAMES = ["Ada", "Ben", "Cleo", "Dan", "Emma", "Finn", "Grace", "Hugo", "Iris", "Jonas", "Kate", "Liam", "Mona", "Noah"]
THINGS = ["apples", "books", "coins", "eggs", "marbles", "pencils", "shells", "stamps", "stickers", "tickets"]

TRAIN = [
    "{name} has {a} {x}, {b} {y} and {c} {z}. How many {asked} does {name} have?",
    "There are {a} {x}, {b} {y} and {c} {z} in the box. How many {asked} are in the box?",
    "{name} bought {a} {x}. Then {name} bought {b} {y} and {c} {z}. How many {asked} did {name} buy?",
    "A shop sold {a} {x} and {b} {y}, but kept {c} {z}. What is the number of {asked}?",
    "{name} counted {a} {x}, then {b} {y}, then {c} {z}. How many {asked} did {name} count?",
    "On the table {name} put {a} {x} and {b} {y}, under it {c} {z}. How many {asked} were there?",
]
TEST = [
    "{name} found {a} {x}, {b} {y} and {c} {z} in the attic. How many {asked} did {name} find?",
    "The bag of {name} holds {a} {x} and {b} {y}. The basket holds {c} {z}. How many {asked} are there?",
    "{name} gave away {a} {x}, sold {b} {y} and lost {c} {z}. How many {asked} was that?",
]
SMALLEST, LARGEST = 2, 60


class WordProblems:
    """Completion is right where the last number of its first line is the answer ("that is 7 coins" counts as 7)."""

    name = "word-problems"

    def __init__(self, questions: int = 200, seed: int = 0):
        self.questions = questions
        self.seed = seed

    def items(self) -> Sequence[Item]:
        return [Item(e.prompt, e.completion) for e in examples(TEST, self.questions, self.seed, held_out=True)]

    def is_correct(self, item: Item, completion: str) -> bool:
        first_line = completion.strip().split("\n")[0]
        numbers = re.findall(r"\d+", first_line.replace(",", ""))
        return bool(numbers) and int(numbers[-1]) == int(item.answer)

    def training(self, count: int) -> list[Example]:
        """`count` examples of the training templates and numbers."""
        return examples(TRAIN, count, self.seed + 1, held_out=False)


def is_held_out(number: int) -> bool:
    """Whether a number belongs to the test: one in four."""
    return number % 4 == 3


def examples(templates: Sequence[str], count: int, seed: int, held_out: bool) -> list[Example]:
    """`count` word problems over `templates`, in turn, with numbers of one side of the split."""
    generator = random.Random(seed)
    numbers = [n for n in range(SMALLEST, LARGEST + 1) if is_held_out(n) == held_out]
    result = []
    for index in range(count):
        things, values = generator.sample(THINGS, 3), generator.sample(numbers, 3)
        asked = generator.randrange(3)
        text = templates[index % len(templates)].format(
            name=generator.choice(NAMES),
            **dict(zip("xyz", things, strict=True)),
            **dict(zip("abc", values, strict=True)),
            asked=things[asked],
        )
        result.append(Example(f"Question: {text}\nAnswer:", f" {values[asked]}"))
    return result
