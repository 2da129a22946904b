"""A generator of small children's stories: a grammar of plots whose people, things and places persist.

A template mixes {slots}, filled once per story, with <one|of|these> choices, drawn at each use and freely nested.
Every text is written by these rules, so it carries the licence of this repository.
"""
import re

GIRLS = "Mia Lily Anna Zoe Ella Ruby Nora Clara Rosa Ivy Maya Lucy Emma Sara Tina Kate Jane Amy Molly Daisy".split()
BOYS = "Tom Ben Sam Max Leo Jack Finn Omar Noah Paul Tim Luke Adam Carl Hugo Oscar Peter Dan Billy Theo".split()
ANIMALS = ("rabbit fox bear mouse duck cat dog squirrel hedgehog frog owl turtle pig hen goat lamb pony deer badger "
           "otter robin sparrow beaver mole").split()
OBJECTS = ("ball kite doll book hat drum boat cup basket lantern bell ribbon scarf coat spoon box key blanket cart "
           "whistle coin shell ring map bucket train puzzle crown flute umbrella").split()
FOODS = "cake pie soup bread apples berries nuts honey carrots plums pears cookies cheese corn pancakes jam".split()
COLOURS = "red blue green yellow white brown pink purple orange black golden silver".split()
PLACES = ("garden park forest meadow farm village beach river pond hill barn orchard field market school library "
          "yard wood valley").split()
MOODS = "happy glad proud cheerful merry joyful".split()
TRAITS = "kind brave curious clever gentle shy cheerful quiet friendly funny careful patient lazy busy".split()
SIZES = "little small big tiny tall large".split()
WEATHER = ("sunny", "warm", "windy", "rainy", "cold", "bright", "cloudy", "quiet", "fine", "foggy", "snowy")
TIMES = "morning afternoon evening day".split()
FAMILY = {"mother": "she", "father": "he", "grandmother": "she", "grandfather": "he", "sister": "she",
          "brother": "he", "aunt": "she", "uncle": "he"}
PRONOUNS = {"he": ("he", "him", "his", "boy"), "she": ("she", "her", "her", "girl")}

OPENINGS = [
    "Once upon a time, there was a {trait} {kind} named {name}. {He} lived <near|close to|by|next to> {a_place}.",
    "Once upon a time, {a_trait} {kind} named {name} lived near {a_place}.",
    "There once was a {size} {kind} called {name}, who loved to play in the {place}.",
    "{name} was {a_trait} {kind} who lived with {his} {family} near the {place}.",
    "One {weather} {time}, a {kind} named {name} <went for a walk|was playing|was sitting> in the {place}.",
    "Long ago, in a {size} house by the {place}, there lived {a_trait} {kind}. {His} name was {name}.",
    "It was a {weather} {time}, and {name} the {kind} <woke up early|was happy|had nothing to do|went outside>.",
    "One day, {name} and {his} {family} went to the {place}. {name} was {a_trait} {kind}.",
    "The {size} {kind} was called {name}. Every {time}, {he} <went to|played in> the {place}.",
    "The sun was shining <on|over> the {place}. {name}, {a_trait} {kind}, was <looking for something to do|outside>.",
    "In <the|a> {place}, there was a {size} house with a {colour2} door. {name} lived there with {his} {family}.",
    "This is the story of {name}, {a_trait} {kind} who lived <near|close to> {a_place}.",
    "Every {time}, {name} and {his} {family} <walked|went> to the {place}. {name} loved the {place}.",
    "Many years ago, {a_trait} {kind} named {name} <lived|had a home> near {a_place}.",
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
]
# Each plot is a list of beats. {obj} is "{colour} {thing}"; {friend} is met in the story.
PLOTS = [
    [   # lost and found
        "{name} had a {obj} that {he} loved very much. <{He} took it everywhere.|{He} played with it every day.|It was a gift from {his} {family}.>",
        "One {time}, {name} could not find the {thing}. {He} <looked|searched> under the bed<, but it was not there|. It was not there>. {He} looked behind the door, but it was not there.",
        "{name} <was very sad|began to cry|felt sad>. \"Where is my {thing}?\" {he} <asked|cried|said>.",
        "{friend} the {animal} <heard|saw> {him} and came <closer|over>. \"<What is wrong|Why are you sad>?\" asked {friend}.",
        "\"I lost my {obj},\" said {name}. \"<Will|Can> you help me?\" \"<Yes|Of course>, I <will|can> help you,\" said {friend}.",
        "They <looked|searched> all over the {place2}. At last, {friend} saw something {colour} <under a tree|behind a rock|in the tall grass|near the gate>. It was the {thing}!",
        "\"You found it! Thank you, {friend}!\" said {name}. {He} was so {mood} that {he} <danced|jumped up and down|clapped {his} hands>.",
    ],
    [   # sharing
        "{name} had a <big|large> basket of {food}. {He} wanted to eat <all of it|everything> alone.",
        "On the way to the {place2}, {name} met {friend} the {animal}. {friend} looked <hungry|sad|tired>.",
        "\"Hello, {name},\" said {friend}. \"What do you have in your basket?\" \"I have {food},\" said {name}.",
        "\"May I have some? I have not eaten all day,\" said {friend}.",
        "{name} thought <for a moment|about it>. {He} did not want to share, but {he} saw that {friend} was very hungry.",
        "\"<Yes|All right>, you may have some,\" said {name}. They sat <under a tree|on the grass|on a rock> and ate the {food} together.",
        "The {food} tasted <better|much better> with a friend. \"Thank you for sharing,\" said {friend}. \"<You are welcome|I am glad that I did>,\" said {name}.",
    ],
    [   # new friend
        "{name} had no one to play with. {He} felt <lonely|sad>.",
        "{He} walked to the {place2} and saw a {size2} {animal} <sitting on a rock|under a tree|next to the path>.",
        "\"Hello,\" said {name}. \"My name is {name}. What is your name?\" \"My name is {friend},\" said the {animal}.",
        "\"<Do you want to|Would you like to> play with me?\" asked {name}. \"<Yes, I would love to|Yes, please|That sounds fun>!\" said {friend}.",
        "They played <tag|hide and seek|with a {obj}|with the {obj} that {name} had brought>. They laughed and ran <around the {place2}|in the grass>.",
        "When it was time to go home, {friend} said, \"<Will you|Can you> come back tomorrow?\" \"Yes, I will,\" said {name}.",
    ],
    [   # storm
        "That {time}, the sky became dark. <There was a loud sound of thunder.|The rain began to fall.|A strong wind began to blow.>",
        "{name} was <afraid|scared>. {He} ran to {his} {family} and said, \"I am <afraid|scared> of the storm.\"",
        "\"<Do not worry|Do not be afraid>,\" said {his} {family}. \"The storm is loud, but <it cannot hurt us here|we are safe here>.\"",
        "Then {name} heard a small voice at the door. It was {friend} the {animal}, and {friend} was <wet|cold and wet>.",
        "\"Please let me in,\" said {friend}. {name} opened the door and gave {friend} a <warm|dry> {colour} blanket.",
        "They sat together and <listened to the rain|told stories|drank warm milk|ate {food}>. {name} was not afraid <any more|now>.",
        "Soon the storm was over. There was a rainbow in the sky. \"Look at the <colours|rainbow>!\" said {name}.",
    ],
    [   # cooking
        "{name} wanted to make {food} for {his} {family}. It was a <special day|surprise|birthday gift>.",
        "{He} <opened|looked in> the kitchen cupboard, but there was no <flour|sugar|salt|butter>. \"Oh no! What can I do?\" said {name}.",
        "{He} went to {friend} the {animal}, who lived <next door|in the {place2}|near the {place2}>. \"Do you have some to give me?\" asked {name}.",
        "\"Yes, I do,\" said {friend}. \"May I help you cook?\" \"Yes, please,\" said {name}.",
        "{name} and {friend} <worked all {time}|mixed and stirred|worked very hard>. Soon the kitchen smelled <good|sweet|wonderful>.",
        "When {his} {family} came home, <{family_he} was very surprised|{family_he} could not believe it>. \"<This is wonderful|This tastes so good>!\" said {his} {family}.",
    ],
    [   # garden
        "{name} <found|was given> a <tiny|little|small> seed. {He} <put it in the ground|planted it in the garden|planted it near the {place2}>.",
        "Every day, {name} gave it <water|some water>. But nothing happened. {name} <waited and waited|was sad|wanted to give up>.",
        "\"Why does my seed not grow?\" {he} asked {friend} the {animal}.",
        "\"You must be patient,\" said {friend}. \"<Good things take time|A seed needs sun and rain and time>.\"",
        "One morning, {name} saw a small green <leaf|plant>. {He} was so <excited|{mood}> that {he} ran to tell {friend}.",
        "The plant grew <taller and taller|bigger and bigger>. At last, it had a big {colour} flower. \"It is <beautiful|the most beautiful flower in the {place}>!\" said {friend}.",
    ],
    [   # rescue
        "{name} heard a <small|sad|strange> sound near the {place2}. <It sounded like someone crying.|\"Help! Help!\" said a small voice.>",
        "{He} <looked|walked> closer and saw {a_animal}. Its foot was <stuck under a rock|stuck in a hole|caught in a rope>.",
        "\"Do not be afraid. I will help you,\" said {name}. {He} <pulled|pushed> <very hard|as hard as {he} could>, but it was too <hard|heavy>.",
        "Then {name} had an idea. {He} <ran home and got a rope|called {his} {family}|found a long stick>. {He} tried again, and this time it worked.",
        "\"Thank you! You saved me,\" said the {animal}. \"My name is {friend}.\" \"I am {name},\" said {name}. \"I am glad that you are safe.\"",
        "To say thank you, {friend} gave {name} a {obj}. {name} was very {mood}.",
    ],
    [   # race
        "{friend} the {animal} was very fast. \"No one can <run|swim> as fast as I can,\" said {friend}.",
        "\"Let us have a race,\" said {name}. \"We will <start|begin> at the {place} and stop at the {place2}.\"",
        "<Everyone|All the animals> came to see the race. \"One, two, three, go!\" they <said|shouted|cried>.",
        "At first, {friend} was <in front|far ahead>. But then {friend} stopped to <eat some {food}|rest|sleep under a tree>.",
        "{name} was slow, but {he} did not stop. <Step by step, {he} went on.|{He} went on and on.>",
        "In the end, {name} won the race. {friend} was surprised. \"You did not give up,\" said {friend}. \"<Well done|Good job>!\"",
        "{name} won {a_obj} as a prize. {He} let {friend} play with it too.",
    ],
    [   # broken thing
        "{name} was playing with {a_obj}. It <belonged to|was from> {his} {family}.",
        "Suddenly, the {thing} <fell on the floor|fell down> and broke. {name} was <afraid|very worried>. \"What will my {family} say?\" {he} thought.",
        "{friend} the {animal} saw what happened. \"You should tell the truth,\" said {friend}.",
        "{name} <was afraid|was scared>, but {he} went to {his} {family}. \"I am sorry. I broke the {obj},\" {he} said.",
        "{His} {family} <smiled|was not angry>. \"Thank you for telling the truth,\" said {his} {family}. \"We can fix it together.\"",
        "They worked on the {thing} all {time}. In the end, it looked <as good as new|even better than before>.",
    ],
    [   # birthday
        "It was {friend}'s birthday. {friend} was a {size2} {animal} and a good friend of {name}.",
        "{name} wanted to give {friend} a gift, but {he} had no money. \"What can I give to {friend}?\" {he} thought.",
        "{He} asked {his} {family}. \"You can make something,\" said {his} {family}. \"The best gifts come from the heart.\"",
        "So {name} made {a_obj}. It took <all day|a long time|two days>, but {he} did not stop.",
        "At the party, {friend} opened the gift and saw the {thing}. \"<I love it|It is so pretty>! Did you make it?\" asked {friend}. \"Yes, I made it for you,\" said {name}.",
        "Everyone ate {food} and danced. {friend} held the {colour} {thing} all {time} long.",
    ],
    [   # treasure map
        "{name} found an old map in a {colour} box. The map showed the way to <a treasure|something special>.",
        "\"Let us find it!\" {he} said to {friend} the {animal}. They packed some {food} and left <at once|early in the {time}>.",
        "First, they walked <over a bridge|through the {place}|up a hill>. Then they walked <around the {place2}|across the {place2}>.",
        "\"I am tired,\" said {friend}. \"<Do not give up|We are almost there|We can rest here>,\" said {name}.",
        "Under <a big tree|a big rock|an old tree>, they found a box. Inside the box, there was {a_obj}.",
        "\"Who should keep it?\" asked {friend}. \"We found it together, so <we will share it|it belongs to both of us>,\" said {name}.",
    ],
    [   # bedtime
        "It was late, but {name} <could not sleep|was not tired|did not want to go to bed>.",
        "{He} looked out of the window and saw the <moon|stars>. \"<I wonder what is out there|Everyone is asleep but me>,\" {he} said.",
        "Then {he} saw {friend} the {animal} outside. {friend} was looking at the <moon|stars> too.",
        "\"Can you not sleep?\" asked {friend}. \"No,\" said {name}. \"<Will you tell me a story|Will you sing me a song>?\"",
        "{friend} <told {him} a story about {a_obj}|sang a soft song about the {place2}>. {name} listened and closed {his} eyes.",
        "Soon {name} was <asleep|fast asleep>. {He} dreamed of {a_obj2} and a <house|mountain> made of {food}.",
    ],
]


def article(phrase):
    """The phrase with a or an in front."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def expand(rng, template, slots):
    """Draw every <a|b> choice, innermost first, then fill the {slots}; fix 'a' before a vowel."""
    while "<" in template:
        template = re.sub(r"<([^<>]*)>", lambda m: rng.choice(m.group(1).split("|")), template)
    text = template.format(**slots)
    return re.sub(r"\b([Aa]) (?=[aeio]|umbrella|uncle)", r"\1n ", text)


def cast(rng, thing=None, animal=None, name=None):
    """Slots of one story: who, what, where."""
    sex = rng.choice(("he", "she"))
    if name:
        sex = "she" if name in GIRLS else "he"
    he, him, his, child = PRONOUNS[sex]
    names = rng.sample(GIRLS if sex == "she" else BOYS, 2)
    name = name or names[0]
    friend = rng.choice([n for n in GIRLS + BOYS if n != name])
    animals = rng.sample(ANIMALS, 2)
    places = rng.sample(PLACES, 2)
    things = rng.sample(OBJECTS, 2)
    colours = rng.sample(COLOURS, 3)
    sizes = rng.sample(SIZES, 2)
    thing = thing or things[0]
    animal = animal or animals[0]
    family = rng.choice(list(FAMILY))
    trait = rng.choice(TRAITS)
    return dict(
        name=name, he=he, him=him, his=his, He=he.capitalize(), His=his.capitalize(), friend=friend,
        kind=rng.choice((child, child, animals[1] if animals[1] != animal else child)), animal=animal,
        a_animal=article(sizes[1] + " " + animal), place=places[0], place2=places[1], a_place=article(places[0]),
        thing=thing, colour=colours[0], colour2=colours[1], obj=f"{colours[0]} {thing}",
        a_obj=article(f"{colours[0]} {thing}"), a_obj2=article(f"{colours[2]} {things[1]}"), food=rng.choice(FOODS),
        size=sizes[0], size2=sizes[1], trait=trait, a_trait=article(trait), mood=rng.choice(MOODS),
        weather=rng.choice(WEATHER), time=rng.choice(TIMES), family=family, family_he=FAMILY[family])


def story(rng, short=False, **wanted):
    """One story of 5 to 20 sentences, in one to three paragraphs. `wanted` fixes thing, animal or name."""
    slots = cast(rng, **wanted)
    plot = list(rng.choice(PLOTS))
    beats = [rng.choice(OPENINGS)]
    for i, beat in enumerate(plot):
        if not short and rng.random() < 0.12:
            beats.append(rng.choice(EXTRAS))
        beats.append(beat)
    beats.append(rng.choice(MORALS))
    if rng.random() < 0.2:
        beats.append(rng.choice(MORALS[1:3] + MORALS[4:5]))
    sentences = [expand(rng, b, slots) for b in beats]
    breaks = {len(sentences) // 2} if rng.random() < 0.4 else set()
    text = sentences[0]
    for i, s in enumerate(sentences[1:], 1):
        text += ("\n\n" if i in breaks else " ") + s
    return text
