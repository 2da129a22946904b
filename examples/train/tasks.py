"""The question types that `evaluate.py` scores by exact match.

A task is a function of (rng, held_out) that returns (question, answer); the answer is the only right one in its form.
Operand pairs of every sum, and the phrases of the translation tasks, are split: one in ten never occurs in training,
whatever the seed, and held-out questions use only those. Answers that need thought show their steps, so that each token
follows from what has been said.
"""
from grammar import article, articles, expand, fill, pick
from words import (ANIMALS, COLOURS, COUNTED, DAYS, FOODS, GIRLS, HOMES, LEGS, MONTHS, NAMES, OBJECTS, ONES, OPPOSITES, ROOMS,
                   SIZES, SOUNDS, THINGS_COLOURED, in_words)

SIGNS = {"+": ("plus", lambda a, b: a + b), "-": ("minus", lambda a, b: a - b), "x": ("times", lambda a, b: a * b)}


def is_held_out(a, b, sign):
    """One operand pair in ten is kept for evaluation (a fixed scramble of the pair decides), with its mirror image where
    that is the same sum."""
    if sign == "+":
        a, b = min(a, b), max(a, b)
    return (a * 7919 + b * 104729 + ord(sign) * 31) % 1009 % 10 == 3


def operands(rng, sign, held_out):
    """A pair of the right split: below 100 each, no negative difference; for x a digit and a number below 100."""
    while True:
        a, b = int(rng.random() * 100), int(rng.random() * 100)
        if sign == "x":
            a = a % 8 + 2
        elif rng.random() < 0.1 and not held_out:
            a, b = a % 20, b % 20
        if sign == "-" and b > a:
            a, b = b, a
        if held_out and (b < 10 or (sign != "x" and a < 10)):
            continue
        if not held_out and sign == "x" and b > 10 and is_held_out(a * (b // 10 * 10), a * (b % 10), "+"):
            continue  # its last step would show a held-out sum
        if is_held_out(a, b, sign) == held_out:
            return a, b


def worked(a, sign, b):
    """'A sign B = C', for products of two-digit numbers through their tens and ones."""
    result = SIGNS[sign][1](a, b)
    if sign == "x" and b > 10 and b % 10:
        tens, ones = a * (b // 10 * 10), a * (b % 10)
        return f"{a} x {b // 10 * 10} = {tens}, {a} x {b % 10} = {ones}, {tens} + {ones} = {result}"
    return f"{a} {sign} {b} = {result}"


def sum_question(rng, a, sign, b):
    """One of many ways to ask."""
    word = SIGNS[sign][0]
    forms = {"+": ("Add {a} and {b}.", "What is the sum of {a} and {b}?", "What do {a} and {b} make together?"),
             "-": ("Subtract {b} from {a}.", "Take {b} away from {a}.", "What is {a} take away {b}?"),
             "x": ("Multiply {a} by {b}.", "What is the product of {a} and {b}?", "{a} times {b}?")}[sign]
    r = rng.random()
    if r < 0.3:
        return fill(rng, pick(rng, forms), {"a": str(a), "b": str(b)})
    if r < 0.36 and sign != "x":
        return f"What is {in_words(a)} {word} {in_words(b)}?"
    return fill(rng, "<What is {s}?|What is {w}?|{s} =|{s}|{s}?|Calculate {s}.|<Work|Please work> out {s}.|"
                     "Please <solve|calculate> {s}.|How much is <{s}|{w}>?|Can you tell me what {s} is?|"
                     "Tell me the answer to {s}.>",
                {"s": f"{a} {sign} {b}", "w": f"{a} {word} {b}"})


def _sum(sign):
    def task(rng, held_out):
        a, b = operands(rng, sign, held_out)
        return sum_question(rng, a, sign, b), worked(a, sign, b) + "."
    return task


def three_numbers(rng, held_out):
    """Three numbers added, or two added and one taken away, step by step."""
    while True:
        a, b = operands(rng, "+", held_out)
        c = int(rng.random() * 20) + 1
        sign = pick(rng, "+-") if a + b > c else "+"
        total = a + b
        if held_out or not is_held_out(total, c, sign):
            break
    ask = pick(rng, ("What is {}?", "Calculate {}.", "{} =", "Work out {}."))
    return ask.format(f"{a} + {b} {sign} {c}"), f"{a} + {b} = {total}, {worked(total, sign, c)}."


PROBLEMS = {
    "+": ("{n} has {a} {t}. {m} gives {him} {b} more. How many {t} does {n} have now?",
          "{n} <finds|picks|buys|counts> {a} {t} in the morning and {b} {t} in the evening. How many {t} is that?",
          "There are {a} {t} in one <box|bag|basket> and {b} {t} in another. How many {t} are there?",
          "{n} has {a} {t} and {m} has {b} {t}. How many {t} do they have together?",
          "{n} had {a} {t}. Then {he} <bought|found|got|made> {b} more. How many {t} does {n} have?"),
    "-": ("{n} has {a} {t}. {He} gives {b} of them to {m}. How many {t} does {n} have left?",
          "There are {a} {t} in a <box|bag|basket>. {n} takes {b} of them. How many {t} are left?",
          "{n} had {a} {t}, but {he} <lost|sold|broke|used> {b} of them. How many {t} does {n} have now?",
          "{n} has {a} {t} and {m} has {b} {t}. How many more {t} does {n} have than {m}?",
          "{n} needs {a} {t}. {He} has {b} {t}. How many more {t} does {n} need?"),
    "x": ("{n} has {a} <boxes|bags|baskets>. There are {b} {t} in each. How many {t} are there?",
          "{a} children have {b} {t} each. How many {t} do they have together?",
          "{n} <buys|gets|finds> {b} {t} every day. How many {t} is that in {a} days?")}


def word_problem(rng, held_out):
    """A sum told as a story."""
    sign = pick(rng, "++--x")
    a, b = operands(rng, sign, held_out)
    name, other = rng.sample(NAMES, 2)
    he = "she" if name in GIRLS else "he"
    things = pick(rng, COUNTED)
    q = fill(rng, pick(rng, PROBLEMS[sign]), dict(
        n=name, m=other, a=str(a), b=str(b), t=things, he=he, He=he.capitalize(), him="her" if he == "she" else "him"))
    return q, f"{worked(a, sign, b)}. {SIGNS[sign][1](a, b)} {things}."


def program(rng, held_out):
    """What a three-line Python program prints."""
    sign = pick(rng, "+-x")
    a, b = operands(rng, sign, held_out)
    x, y = rng.sample("abcnxyz", 2)
    op = {"x": "*"}.get(sign, sign)
    code = f"{x} = {a}\n{y} = {b}\nprint({x} {op} {y})"
    ask = pick(rng, ("What does this program print?\n{}", "What is the output of this code?\n{}", "{}\nWhat does it print?"))
    return ask.format(code), f"{worked(a, sign, b)}. It prints {SIGNS[sign][1](a, b)}."


def opposite(rng, _):
    """The opposite of a word, either way round."""
    a, b = rng.sample(pick(rng, OPPOSITES), 2)
    q = pick(rng, ("What is the opposite of {a}?", "Tell me the opposite of {a}.", "What is the opposite of \"{a}\"?",
                   "Give me a word that means the opposite of {a}.", "Which word is the opposite of {a}?"))
    return q.format(a=a), f"The opposite of {a} is {b}."


def colour(rng, _):
    """The colour of a common thing."""
    thing, c = pick(rng, list(THINGS_COLOURED.items()))
    q = pick(rng, ("What colour is {t}?", "Tell me the colour of {t}.", "Which colour is {t}?", "What is the colour of {t}?"))
    return q.format(t=thing), f"{thing[0].upper() + thing[1:]} is {c}."


def order(rng, _):
    """The day, month or number before or after another."""
    which = int(rng.random() * 3)
    step, word = pick(rng, ((1, "after"), (-1, "before")))
    if which == 2:
        n = int(rng.random() * 98) + 1
        q = pick(rng, (f"What number comes {word} {n}?", f"Which number comes right {word} {n}?"))
        return q, f"{n + step} comes {word} {n}."
    names, kind = ((DAYS, "day"), (MONTHS, "month"))[which]
    i = int(rng.random() * len(names))
    q = pick(rng, (f"What {kind} comes {word} {names[i]}?", f"Which {kind} is {word} {names[i]}?",
                   f"Tell me the {kind} {word} {names[i]}."))
    return q, f"{names[(i + step) % len(names)]} comes {word} {names[i]}."


def days_later(rng, _):
    """The day some days after another, counted out."""
    i, n = int(rng.random() * 7), int(rng.random() * 6) + 1
    steps = [DAYS[(i + k) % 7] for k in range(1, n + 1)]
    days = f"{n} day{'s' * (n > 1)}"
    q = pick(rng, (f"Today is {DAYS[i]}. What day is it in {days}?", f"What day is it {days} after {DAYS[i]}?"))
    return q, f"{', '.join(f'{k} {d}' for k, d in enumerate(steps, 1))}. It is {steps[-1]}."


def sound(rng, _):
    """The sound an animal makes."""
    animal, s = pick(rng, list(SOUNDS.items()))
    q = pick(rng, ("What sound does {a} make?", "What does {a} say?", "Which sound does {a} make?"))
    return q.format(a=article(animal)), f"{article(animal).capitalize()} says \"{s}!\""


def compare(rng, _):
    """The larger or smaller of two numbers."""
    a, b = rng.sample(range(100), 2)
    word = pick(rng, ("bigger", "smaller", "larger"))
    c = min(a, b) if word == "smaller" else max(a, b)
    q = pick(rng, (f"Which is {word}, {a} or {b}?", f"Which number is {word}: {a} or {b}?"))
    return q, f"{c} is {word} than {a + b - c}."


def sort(rng, _):
    """Three or four numbers from the smallest up."""
    numbers = rng.sample(range(100), pick(rng, (3, 3, 4)))
    given = ", ".join(map(str, numbers))
    q = pick(rng, (f"Sort these numbers: {given}", f"Put these numbers in order: {given}.", f"Sort {given}."))
    return q, ", ".join(map(str, sorted(numbers))) + "."


def counting(rng, _):
    """Count up or down between two numbers."""
    a, n = int(rng.random() * 90), int(rng.random() * 7) + 3
    numbers = list(range(a, a + n))
    if rng.random() < 0.3:
        numbers.reverse()
    q = pick(rng, ("Count from {a} to {b}.", "Please count from {a} to {b}.", "Can you count from {a} to {b}?"))
    return q.format(a=numbers[0], b=numbers[-1]), ", ".join(map(str, numbers)) + "."


def parity(rng, _):
    """Even or odd."""
    n = int(rng.random() * 100)
    return pick(rng, (f"Is {n} even or odd?", f"Is the number {n} odd or even?")), f"{n} is {'odd' if n % 2 else 'even'}."


def number_words(rng, _):
    """A number in words, or a number word in digits."""
    n = int(rng.random() * pick(rng, (100, 100, 1000)))
    if rng.random() < 0.5:
        return pick(rng, (f"Write {n} in words.", f"How do you write {n} in words?")), in_words(n) + "."
    return pick(rng, (f"Write {in_words(n)} in digits.", f"Write the number {in_words(n)} with digits.")), f"{n}."


def _things(rng, n):
    return [f"{c} {t}" for c, t in zip(rng.sample(COLOURS, n), rng.sample(OBJECTS, n))]


def who_has(rng, _):
    """Which of two to four people holds a thing: an answer that has to be looked up in the question. What follows a word is
    easy to find, what came before it is not, so the answer says first of every thing whose it is."""
    n = pick(rng, (2, 3, 3, 4))
    names, things = rng.sample(NAMES, n), _things(rng, n)
    facts = [articles(f"{p} has a {t}") for p, t in zip(names, things)]
    i = int(rng.random() * n)
    shorts = [t.split()[1] for t in things]
    question = ". ".join(facts) + ". "
    if rng.random() < 0.5:
        steps = " ".join(f"{fact}: the {short} is {name}'s." for fact, short, name in zip(facts, shorts, names))
        return f"{question}Who has the {shorts[i]}?", f"{steps} So the {shorts[i]} is {names[i]}'s."
    return f"{question}What does {names[i]} have?", facts[i] + "."


def gives(rng, _):
    """Who holds a thing after it has changed hands once or twice."""
    names, thing = rng.sample(NAMES, 3), pick(rng, OBJECTS)
    n = pick(rng, (1, 2))
    moves = [f"{names[k]} <gives|hands> the {thing} to {names[k + 1]}." for k in range(n)]
    return expand(rng, f"{names[0]} has a {thing}. {' '.join(moves)} Who has the {thing} now?", {}), f"{names[n]} has the {thing}."


def where_is(rng, _):
    """Where somebody went last."""
    names, rooms = rng.sample(NAMES, 2), rng.sample(ROOMS, 4)
    moves, at = [], {}
    for room in rooms[: pick(rng, (2, 3, 4))]:
        who = pick(rng, names)
        at[who] = room
        moves.append(f"{who} <went|walked|ran> to the {room}.")
    who = pick(rng, list(at))
    return fill(rng, f"{' '.join(moves)} Where is {who}?", {}), f"{who} is in the {at[who]}."


def repeat(rng, _):
    """Copy a short phrase."""
    phrase = expand(rng, "<the|my|one|a> <{s} |>{c} {o}< and the {p}|>", dict(
        s=pick(rng, SIZES), c=pick(rng, COLOURS), o=pick(rng, OBJECTS), p=pick(rng, ANIMALS)))
    return pick(rng, (f"Say: {phrase}", f"Repeat after me: {phrase}", f"Please say \"{phrase}\".")), phrase


def _list(rng):
    return rng.sample(pick(rng, (OBJECTS, ANIMALS, FOODS, NAMES)), pick(rng, (3, 4, 5)))


def reverse(rng, _):
    """A list of words from the end."""
    words = _list(rng)
    q = pick(rng, ("Reverse this list: {}.", "Say this list backwards: {}.", "Write these words in reverse order: {}."))
    return q.format(", ".join(words)), ", ".join(words[::-1]) + "."


def position(rng, _):
    """The first, second, ... or last word of a list, with the list counted out."""
    words = _list(rng)
    i = int(rng.random() * (len(words) + 1))
    name = ("first", "second", "third", "fourth", "fifth")[i] if i < len(words) else "last"
    i = min(i, len(words) - 1)
    q = pick(rng, (f"What is the {name} word in this list: {', '.join(words)}?",
                   f"Here is a list: {', '.join(words)}. Which word is {name}?"))
    return q, f"{', '.join(f'{k} {w}' for k, w in enumerate(words, 1))}. The {name} word is {words[i]}."


def count_words(rng, _):
    """How many words a list has, by numbering them."""
    words = rng.sample(pick(rng, (OBJECTS, ANIMALS, FOODS, NAMES)), int(rng.random() * 6) + 2)
    q = pick(rng, ("How many words are in this list: {}?", "Count the words: {}."))
    return q.format(", ".join(words)), f"{', '.join(f'{k} {w}' for k, w in enumerate(words, 1))}. There are {len(words)} words."


def spelling(rng, _):
    """A word letter by letter."""
    word = pick(rng, pick(rng, (OBJECTS, ANIMALS)))
    q = pick(rng, (f"Spell the word {word}.", f"How do you spell {word}?", f"Please spell \"{word}\"."))
    return q, "-".join(word) + "."


def json_value(rng, _):
    """The value of a key in a small JSON object."""
    fields = {"name": f'"{pick(rng, NAMES)}"', "age": str(int(rng.random() * 90) + 5), "pet": f'"{pick(rng, ANIMALS)}"',
              "colour": f'"{pick(rng, COLOURS)}"', "food": f'"{pick(rng, FOODS)}"', "day": f'"{pick(rng, DAYS)}"',
              "id": str(int(rng.random() * 900) + 100), "item": f'"{pick(rng, OBJECTS)}"'}
    keys = rng.sample(list(fields), pick(rng, (3, 4, 5)))
    key = pick(rng, keys)
    text = "{" + ", ".join(f'"{k}": {fields[k]}' for k in keys) + "}"
    q = pick(rng, ("{t}\nWhat is the value of \"{k}\"?", "What is \"{k}\" in this JSON?\n{t}"))
    return q.format(t=text, k=key), f"\"{key}\" is {fields[key]}."


def facts(rng, _):
    """Homes and legs of animals."""
    if rng.random() < 0.5:
        a, home = pick(rng, list(HOMES.items()))
        return f"Where does {article(a)} live?", f"{article(a).capitalize()} lives in a {home}."
    a, n = pick(rng, list(LEGS.items()))
    return f"How many legs does {article(a)} have?", f"{article(a).capitalize()} has {ONES[n] if n else 'no'} legs."


TASKS = {"addition": _sum("+"), "subtraction": _sum("-"), "multiplication": _sum("x")} | {f.__name__: f for f in (
    three_numbers, word_problem, program, compare, sort, counting, order, days_later, parity, number_words, who_has,
    gives, where_is, repeat, reverse, position, count_words, spelling, json_value, opposite, colour, sound, facts)}
PAGE = ("addition", "subtraction", "multiplication", "three_numbers", "three_numbers", "word_problem", "word_problem", "program",
        "sort", "sort", "sort", "compare", "counting", "number_words", "order", "parity")  # on the pages of the maths domain
