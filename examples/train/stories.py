"""A generator of small stories: a grammar of plots whose people, things and places persist.

Every text is written by these rules and those of plots.py, so it carries the licence of this repository.
"""
from grammar import article, expand, pick
from plots import PLOTS
from words import (ANIMALS, BOYS, COLOURS, DISHES, FAMILY, FOODS, GIRLS, JOBS, MOODS, NAMES, OBJECTS, PLACES, PRONOUNS, SIZES, TIMES,
                   TRAITS, WEATHER)

OPENINGS = [
    "Once upon a time, there was a {trait} {kind} named {name}. {He} lived <near|close to|by|next to> {a_place}.",
    "Once upon a time, {a_trait} {kind} named {name} lived near {a_place}.",
    "Once upon a time, in a {size} <house|village|town> by the {place}, there lived {a_trait} {kind} <called|named> {name}.",
    "There once was a {size} {kind} called {name}, who loved to play in the {place}.",
    "{name} was {a_trait} {kind} who lived with {his} {family} near the {place}.",
    "One {weather} {time}, a {kind} named {name} <went for a walk|was playing|was sitting|was looking for {food}> in the {place}.",
    "Long ago, in a {size} house by the {place}, there lived {a_trait} {kind}. {His} name was {name}.",
    "It was a {weather} {time}, and {name} the {kind} <woke up early|was happy|had nothing to do|went outside>.",
    "One day, {name} and {his} {family} went to the {place}. {name} was {a_trait} {kind}.",
    "The {size} {kind} was called {name}. Every {time}, {he} <went to|played in|walked to> the {place}.",
    "The sun was shining <on|over> the {place}. {name}, {a_trait} {kind}, was <looking for something to do|outside|still in bed>.",
    "In <the|a> {place}, there was a {size} house with a {colour2} door. {name} lived there with {his} {family}.",
    "This is the story of {name}, {a_trait} {kind} who lived <near|close to> {a_place}.",
    "Every {time}, {name} and {his} {family} <walked|went> to the {place}. {name} loved the {place}.",
    "Many years ago, {a_trait} {kind} named {name} <lived|had a home> near {a_place}.",
    "Do you know {name}? {He} is the {trait} {kind} who lived <near|by> the {place}. This is what happened to {him} one {weather} {time}.",
    "There were not many people in the {place}, and {name}, {a_trait} {kind}, knew them all.",
    "\"<Wake up|Get up>, {name}!\" <called|said> {his} {family}. \"It is a {weather} {time}.\" {name} was {a_trait} {kind}, and {he} loved <mornings|the {place}|such days>.",
    "Not far from the {place} stood a house with a {colour2} roof. {name} and {his} {family} had lived there <for many years|as long as {he} could remember>.",
    "{name} looked out of the window. It was a {weather} {time}, and the {place} was <quiet|empty|full of people>. \"What shall I do today?\" {he} <thought|asked>.",
    "When {name} was still a <little|small> {kind}, {he} <lived|stayed> with {his} {family} by the {place}.",
]
MORALS = [
    "From that day on, {name} and {friend} were the best of friends.",
    "{name} learned that it is good to <share|help others|be kind|tell the truth|try again|ask for help>.",
    "{name} went home <with a smile|feeling {mood}|and told {his} {family} everything>.",
    "That night, {name} fell asleep with a smile on {his} face.",
    "And they all lived happily ever after.",
    "\"<What a day|That was fun|This was the best day ever>!\" said {name}.",
    "{name} and {friend} played together until the sun went down.",
    "It was the best day {name} had ever had.",
    "Then {name} hugged {friend} and said, \"Thank you for being my friend.\"",
    "{name} was so {mood} that {he} sang all the way home.",
    "And if you go to the {place} today, you can still hear people tell this story.",
    "{name} often thought of that day, and each time {he} had to smile.",
    "\"Will we see each other tomorrow?\" asked {friend}. \"<Of course|Every day, if you like>,\" said {name}.",
    "That evening, {his} {family} asked, \"How was your day?\" \"<Long|Strange|Wonderful>,\" said {name}, \"<but very good|and I made a friend>.\"",
    "<Then|At last> it was time to go to bed. \"Good night, {name},\" said {his} {family}.",
]
EXTRAS = [
    "The sun was <shining|high in the sky|warm on {his} face>.",
    "The birds were singing in the trees.",
    "The wind was <soft|cold|strong> and the leaves were <dancing|falling|green>.",
    "{name} <smiled|laughed|felt {mood}>.",
    "{He} was wearing {his} {colour2} <coat|hat|scarf|shoes|boots>.",
    "\"<Look|Wow|Oh>!\" said {name}. \"<It is|This is> <so|very> <pretty|nice|big|quiet> here.\"",
    "{name} was a little <hungry|tired|cold>, but {he} did not stop.",
    "The {place} was <quiet|full of flowers|big and green|very pretty> that {time}.",
    "Somewhere, a <dog|bell|door|child> could be heard.",
    "<Clouds|White clouds|Two birds> passed over the {place}.",
    "For a <moment|while>, <nobody spoke|it was very quiet>.",
    "{He} had some {food} in {his} pocket and ate <slowly|while {he} thought>.",
    "In {his} bag, {he} had {a_thing3} and some {food}.",
]
NEXT = ["The next {time}, ", "A few days later, ", "Some weeks later, ", "One {weather} {time}, ", "Soon after that, ", "When winter came, ",
        "In the spring, ", "Many {time}s later, "]


def person(rng, sex=None):
    """(name, sex)."""
    sex = sex or pick(rng, ("he", "she"))
    return pick(rng, GIRLS if sex == "she" else BOYS), sex


def cast(rng, thing=None, animal=None, name=None):
    """Slots of one story: who, what, where."""
    sex = ("she" if name in GIRLS else "he") if name else None
    found, sex = person(rng, sex)
    name = name or found
    he, him, his, child, grown = PRONOUNS[sex]
    slots = dict(name=name, he=he, him=him, his=his, He=he.capitalize(), His=his.capitalize())
    kinds = rng.sample(ANIMALS, 3)
    kind = pick(rng, (child, child, child, "old " + grown, kinds[1] if kinds[1] != animal else child))
    return slots | {"kind": kind} | scene(rng, name, thing, animal)


def scene(rng, name, thing=None, animal=None):
    """What changes from one plot to the next while the hero stays."""
    friend = name
    while friend == name:
        friend = pick(rng, NAMES)
    animals, places = rng.sample(ANIMALS, 2), rng.sample(PLACES, 2)
    things, colours, sizes = rng.sample(OBJECTS, 3), rng.sample(COLOURS, 3), rng.sample(SIZES, 2)
    thing, animal = thing or things[0], animal or animals[0]
    family, trait = pick(rng, list(FAMILY)), pick(rng, TRAITS)
    human = rng.random() < 0.25
    who = f"{friend}, the child of the {pick(rng, list(JOBS))}" if human and rng.random() < 0.3 else (
        f"{friend} from the next <house|village|street>" if human else f"{friend} the {animal}")
    who = expand(rng, who, {})
    comma = "," if human and ", the" in who else ""
    return dict(
        friend=friend, who=who + comma, who_C=who + comma, animal=animal, animal2=animals[1],
        a_animal=article(sizes[1] + " " + animal), place=places[0], place2=places[1], a_place=article(places[0]),
        thing=thing, thing2=things[1], a_thing2=article(things[1]), a_thing3=article(things[2]), colour=colours[0],
        colour_C=colours[0].capitalize(), colour2=colours[1], obj=f"{colours[0]} {thing}",
        a_obj=article(f"{colours[0]} {thing}"), a_obj2=article(f"{colours[2]} {things[1]}"), food=pick(rng, FOODS), dish=pick(rng, DISHES),
        job=pick(rng, list(JOBS)), size=sizes[0], size2=sizes[1], trait=trait, a_trait=article(trait), mood=pick(rng, MOODS),
        weather=pick(rng, WEATHER), time=pick(rng, TIMES), family=family, family_he=FAMILY[family])


def episode(rng, slots, plot, extras):
    """The sentences of one plot."""
    out = []
    for beat in plot:
        if rng.random() < extras:
            out.append(expand(rng, pick(rng, EXTRAS), slots))
        out.append(expand(rng, beat, slots))
    return out


def paragraphs(rng, sentences):
    """The text of the beats, in paragraphs of two to five beats or in one."""
    if rng.random() < 0.5:
        return " ".join(sentences)
    text, left = sentences[0], 1 + int(rng.random() * 4)
    for s in sentences[1:]:
        left -= 1
        text += (" " if left else "\n\n") + s
        left = left or 2 + int(rng.random() * 4)
    return text


def story(rng, short=False, **wanted):
    """One story of 10 to 25 sentences. `wanted` fixes thing, animal or name."""
    slots = cast(rng, **wanted)
    sentences = [expand(rng, pick(rng, OPENINGS), slots)]
    sentences += episode(rng, slots, pick(rng, PLOTS), 0.0 if short else 0.14)
    if rng.random() < 0.8:
        sentences.append(expand(rng, pick(rng, MORALS), slots))
    return paragraphs(rng, sentences)


def long_story(rng, episodes=8):
    """One hero, several plots: one to two thousand tokens."""
    slots = cast(rng)
    parts = [expand(rng, pick(rng, OPENINGS), slots)]
    for k, plot in enumerate(rng.sample(PLOTS, episodes)):
        slots |= scene(rng, slots["name"])
        sentences = episode(rng, slots, plot, 0.14)
        if k:
            start = expand(rng, pick(rng, NEXT), slots)
            first = sentences[0]
            if first.split()[0].rstrip(",") in (slots["name"], slots["friend"]):
                sentences[0] = start + first
        parts.append(paragraphs(rng, sentences))
    parts.append(expand(rng, pick(rng, MORALS), slots))
    return "\n\n".join(parts)
