"""Questions and answers in ChatML, and the tasks that `evaluate.py` scores by exact match.

A task is a function of (rng, held_out) that returns (question, answer). Held-out sums use operand pairs that never
occur in training, whatever the seed.
"""
import stories
from stories import article, expand

ONES = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen").split()
TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
OPPOSITES = [p.split("-") for p in (
    "hot-cold big-small tall-short happy-sad fast-slow old-young day-night up-down left-right open-closed full-empty "
    "hard-soft light-dark wet-dry loud-quiet rich-poor good-bad high-low early-late thick-thin clean-dirty "
    "strong-weak near-far first-last inside-outside heavy-light true-false win-lose love-hate yes-no begin-end "
    "push-pull above-below sweet-sour brave-afraid wide-narrow").split()]
SOUNDS = {"dog": "Woof", "cat": "Meow", "cow": "Moo", "duck": "Quack", "sheep": "Baa", "pig": "Oink", "hen": "Cluck",
          "horse": "Neigh", "frog": "Ribbit", "owl": "Hoot", "bee": "Buzz", "lion": "Roar", "mouse": "Squeak",
          "snake": "Hiss", "crow": "Caw"}
THINGS_COLOURED = {"grass": "green", "the sky": "blue", "snow": "white", "coal": "black", "a banana": "yellow",
                   "a tomato": "red", "a carrot": "orange", "a lemon": "yellow", "milk": "white", "chocolate": "brown",
                   "the sun": "yellow", "blood": "red", "a frog": "green", "an orange": "orange", "a pig": "pink",
                   "a crow": "black", "a strawberry": "red", "the sea": "blue", "a leaf": "green", "honey": "golden"}
HOMES = {"bird": "nest", "bee": "hive", "fish": "pond", "bear": "cave", "spider": "web", "dog": "kennel",
         "horse": "stable", "rabbit": "burrow", "king": "castle", "cow": "barn"}
LEGS = {"dog": 4, "bird": 2, "spider": 8, "cat": 4, "horse": 4, "duck": 2, "fly": 6, "snake": 0, "cow": 4, "hen": 2,
        "ant": 6, "bee": 6}


def in_words(n):
    """0..199 in English."""
    if n >= 100:
        return "one hundred" + (" and " + in_words(n - 100) if n > 100 else "")
    return ONES[n] if n < 20 else TENS[n // 10] + ("-" + ONES[n % 10] if n % 10 else "")


def is_held_out(a, b, sign):
    """One operand pair in ten is kept for evaluation (a fixed scramble of the pair decides)."""
    return (a * 7919 + b * 104729 + (sign == "-") * 31) % 1009 % 10 == 3


def operands(rng, sign, held_out):
    """A pair of the right split; subtraction never goes below zero."""
    while True:
        a, b = rng.randrange(100), rng.randrange(100)
        if rng.random() < 0.1 and not held_out:
            a, b = a % 20, b % 20
        if sign == "-" and b > a:
            a, b = b, a
        if held_out and min(a, b) < 10:
            continue
        if is_held_out(a, b, sign) == held_out:
            return a, b


def sum_chat(rng, held_out, sign=None):
    """A sum, asked in many ways and always answered as 'A + B = C.'"""
    sign = sign or rng.choice("+-")
    a, b = operands(rng, sign, held_out)
    word = {"+": "<plus|plus|and>", "-": "minus"}[sign]
    forms = [f"What is {a} {sign} {b}?", f"{a} {sign} {b} =", f"{a} {sign} {b}", f"Calculate {a} {sign} {b}.",
             f"Please <work out|solve|calculate> {a} {sign} {b}.", f"How much is {a} {sign} {b}?",
             f"<Can you tell me|Tell me> <what {a} {sign} {b} is|the answer to {a} {sign} {b}>.",
             f"What is {a} " + ("plus" if sign == "+" else "minus") + f" {b}?"]
    if sign == "+":
        forms += [f"Add {a} and {b}.", f"What is the sum of {a} and {b}?"]
    else:
        forms += [f"Subtract {b} from {a}.", f"Take {b} away from {a}."]
    if rng.random() < 0.1:
        forms = [f"What is {in_words(a)} {word if sign == '-' else 'plus'} {in_words(b)}?"]
    c = a + b if sign == "+" else a - b
    return expand(rng, rng.choice(forms), {}), f"{a} {sign} {b} = {c}."


def addition(rng, held_out):
    """Two numbers below 100 added."""
    return sum_chat(rng, held_out, "+")


def subtraction(rng, held_out):
    """Two numbers below 100 subtracted."""
    return sum_chat(rng, held_out, "-")


def sums_page(rng, held_out):
    """A plain document of one to eight sums, one a line."""
    lines = []
    for _ in range(rng.choice((1, 2, 4, 8))):
        sign = rng.choice("+-")
        a, b = operands(rng, sign, held_out)
        c = a + b if sign == "+" else a - b
        if rng.random() < 0.08:
            word = "plus" if sign == "+" else "minus"
            lines.append(f"{in_words(a).capitalize()} {word} {in_words(b)} is {in_words(c)}.")
        else:
            lines.append(f"{a} {sign} {b} = {c}")
    return "\n".join(lines)


def opposite(rng, _):
    """The opposite of an adjective, either way round."""
    pair = rng.choice([p for p in OPPOSITES if p != ["heavy", "light"]])
    a, b = rng.sample(pair, 2)
    q = rng.choice(("What is the opposite of {a}?", "Tell me the opposite of {a}.",
                    "What is the opposite of \"{a}\"?",
                    "Give me a word that means the opposite of {a}.", "Which word is the opposite of {a}?"))
    return q.format(a=a), f"The opposite of {a} is {b}."


def colour(rng, _):
    """The colour of a common thing."""
    thing, c = rng.choice(list(THINGS_COLOURED.items()))
    q = rng.choice(("What colour is {t}?", "Tell me the colour of {t}.", "Which colour is {t}?",
                    "What is the colour of {t}?"))
    return q.format(t=thing), f"{thing[0].upper() + thing[1:]} is {c}."


def order(rng, _):
    """The day, month or number before or after another."""
    which = rng.randrange(3)
    step, word = rng.choice(((1, "after"), (-1, "before")))
    if which == 2:
        n = rng.randrange(1, 99)
        q = rng.choice((f"What number comes {word} {n}?", f"Which number comes right {word} {n}?"))
        return q, f"{n + step} comes {word} {n}."
    names, kind = ((DAYS, "day"), (MONTHS, "month"))[which]
    i = rng.randrange(len(names))
    q = rng.choice((f"What {kind} comes {word} {names[i]}?", f"Which {kind} is {word} {names[i]}?",
                    f"Tell me the {kind} {word} {names[i]}."))
    return q, f"{names[(i + step) % len(names)]} comes {word} {names[i]}."


def sound(rng, _):
    """The sound an animal makes."""
    animal, s = rng.choice(list(SOUNDS.items()))
    q = rng.choice(("What sound does {a} make?", "What does {a} say?", "Which sound does {a} make?"))
    return q.format(a=article(animal)), f"{article(animal).capitalize()} says \"{s}!\""


def compare(rng, _):
    """The larger or smaller of two numbers."""
    a, b = rng.sample(range(100), 2)
    word = rng.choice(("bigger", "smaller", "larger"))
    c = min(a, b) if word == "smaller" else max(a, b)
    q = rng.choice((f"Which is {word}, {a} or {b}?", f"Which number is {word}: {a} or {b}?"))
    return q, f"{c} is {word} than {a + b - c}."


def counting(rng, _):
    """Count up or down between two numbers."""
    a, n = rng.randrange(0, 40), rng.randrange(3, 10)
    numbers = list(range(a, a + n))
    if rng.random() < 0.3:
        numbers.reverse()
    q = rng.choice(("Count from {a} to {b}.", "Please count from {a} to {b}.", "Can you count from {a} to {b}?"))
    return q.format(a=numbers[0], b=numbers[-1]), ", ".join(map(str, numbers)) + "."


def who_has(rng, _):
    """Which of two or three people holds a thing: an answer that has to be looked up in the question."""
    n = rng.choice((2, 2, 3))
    names = rng.sample(stories.GIRLS + stories.BOYS, n)
    things = rng.sample(stories.OBJECTS, n)
    colours = rng.sample(stories.COLOURS, n)
    facts = " ".join(f"{p} has {article(c + ' ' + t)}." for p, c, t in zip(names, colours, things))
    i = rng.randrange(n)
    if rng.random() < 0.5:
        return f"{facts} Who has the {things[i]}?", f"{names[i]} has the {things[i]}."
    return f"{facts} What does {names[i]} have?", f"{names[i]} has {article(colours[i] + ' ' + things[i])}."


def repeat(rng, _):
    """Copy a short phrase."""
    phrase = expand(rng, "<the|my|one|a> <{s} |>{c} {o}< and the {p}|>", dict(
        s=rng.choice(stories.SIZES), c=rng.choice(stories.COLOURS), o=rng.choice(stories.OBJECTS),
        p=rng.choice(stories.ANIMALS)))
    return rng.choice((f"Say: {phrase}", f"Repeat after me: {phrase}", f"Please say \"{phrase}\".")), f"{phrase}"


def spelling(rng, _):
    """A word letter by letter."""
    word = rng.choice(stories.OBJECTS + stories.ANIMALS)
    q = rng.choice((f"Spell the word {word}.", f"How do you spell {word}?", f"Please spell \"{word}\"."))
    return q, "-".join(word) + "."


def number_words(rng, _):
    """A number in words, or a number word in digits."""
    n = rng.randrange(100)
    if rng.random() < 0.5:
        return rng.choice((f"Write {n} in words.", f"How do you write {n} in words?")), in_words(n) + "."
    return rng.choice((f"Write {in_words(n)} in digits.", f"Write the number {in_words(n)} with digits.")), f"{n}."


def parity(rng, _):
    """Even or odd."""
    n = rng.randrange(100)
    q = rng.choice((f"Is {n} even or odd?", f"Is the number {n} odd or even?"))
    return q, f"{n} is {'odd' if n % 2 else 'even'}."


def facts(rng, _):
    """Homes and legs of animals."""
    if rng.random() < 0.5:
        a, home = rng.choice(list(HOMES.items()))
        return f"Where does {article(a)} live?", f"{article(a).capitalize()} lives in a {home}."
    a, n = rng.choice(list(LEGS.items()))
    return f"How many legs does {article(a)} have?", f"{article(a).capitalize()} has {ONES[n] if n else 'no'} legs."


TASKS = {f.__name__: f for f in (addition, subtraction, opposite, colour, order, sound, compare, counting, who_has,
                                 repeat, spelling, number_words, parity, facts)}


def story_request(rng, _):
    """'Tell me a story about ...', answered with a story in which it occurs."""
    which = rng.choice(("thing", "animal", "name"))
    values = {"thing": stories.OBJECTS, "animal": stories.ANIMALS, "name": stories.GIRLS + stories.BOYS}
    value = rng.choice(values[which])
    q = expand(rng, "<Tell me|Please tell me|Can you tell me|Write|I would like> a <short |little |>story about {x}.",
               {"x": value if which == "name" else article(value)})
    if q.startswith("Can"):
        q = q[:-1] + "?"
    while True:
        text = stories.story(rng, short=True, **{which: value})
        if value in text:
            return q, text


SMALL_TALK = [
    ("<Hello|Hi|Hello there|Hey|Good morning>!", "<Hello|Hi>! <How can I help you|What can I do for you> today?"),
    ("<Hi|Hello>, how are you?", "I am well, thank you. How can I help you?"),
    ("<Who are you|What are you|Tell me about yourself>?",
     "I am a <small|little> language model. I can tell stories, do sums and answer simple questions."),
    ("What is your name?", "My name is SmallThinker. I am a small language model."),
    ("What can you do?", "I can tell stories, do sums and answer simple questions."),
    ("<Thank you|Thanks>< very much| for your help|>!", "You are welcome!"),
    ("<Goodbye|Bye|Good night|See you later>!", "Goodbye! Have a nice day."),
    ("<Do you like|What do you think about> <stories|sums|animals|{f}>?",
     "I am a language model, so I do not <eat or play|have feelings>, but I like to help you."),
    ("<What is the capital of France|Who is the president|What time is it|"
     "How is the weather today|What is the news|Where am I>?",
     "I am sorry, I do not know that. I am only a small model."),
    ("<Help me|I need help|Can you help me?>", "Yes, I can help you. What would you like to know?"),
    ("I am <sad|tired|bored|lonely>.", "I am sorry to hear that. Would you like to hear a story?"),
    ("I am <happy|{m}> today.", "I am glad to hear that!"),
]


def small_talk(rng, _):
    """Greetings, thanks, who are you, and what it does not know."""
    q, a = rng.choice(SMALL_TALK)
    slots = {"f": rng.choice(stories.FOODS), "m": rng.choice(stories.MOODS)}
    return expand(rng, q, slots), expand(rng, a, slots)


SYSTEMS = ["You are a helpful assistant.", "You are a friendly assistant.",
           "You are SmallThinker, a small language model.", "Answer the question.",
           "You are a helpful assistant. Answer in one sentence.", "You help children learn."]


def render(turns, system=None, open_answer=False):
    """ChatML text of [(user, assistant), ...]; with `open_answer` the last answer is left to the model."""
    text = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    for i, (q, a) in enumerate(turns):
        text += f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n"
        if not (open_answer and i == len(turns) - 1):
            text += f"{a}<|im_end|>\n"
    return text


def conversation(rng, held_out):
    """One ChatML document of one to four turns."""
    turns = []
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        r = rng.random()
        if r < 0.40:
            task = sum_chat
        elif r < 0.86:
            task = rng.choice(list(TASKS.values())[2:])
        elif r < 0.91 and not turns:
            task = story_request
        else:
            task = small_talk
        q, a = task(rng, held_out)
        if rng.random() < 0.06:  # careless typing
            q = q.lower().rstrip(".?!") if rng.random() < 0.5 else q.rstrip(".?!")
        turns.append((q, a))
    return render(turns, rng.choice(SYSTEMS) if rng.random() < 0.3 else None)
