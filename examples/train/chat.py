"""Conversations in ChatML, made of the question types of tasks.py and spanish.py, small talk and requested stories."""
import spanish
import stories
import tasks
from grammar import article, expand, pick
from words import ANIMALS, FOODS, MOODS, NAMES, OBJECTS, ROOMS

TASKS = tasks.TASKS | spanish.TASKS
# Drawn more often than the rest: what takes longest to learn.
WEIGHTS = {"addition": 3, "subtraction": 4, "multiplication": 3, "three_numbers": 2, "word_problem": 4, "program": 2,
           "to_spanish": 3, "to_english": 2, "number_words": 2, "spelling": 2, "who_has": 2, "where_is": 2, "sort": 2,
           "reverse": 2,
           "opposite": 0.7, "colour": 0.5, "sound": 0.5, "facts": 0.5, "parity": 0.7, "order": 1}
DECK = [TASKS[name] for name in TASKS for _ in range(int(10 * WEIGHTS.get(name, 1)))]


def story_request(rng, _):
    """'Tell me a story about ...', answered with a story in which it occurs."""
    which = pick(rng, ("thing", "animal", "name"))
    value = pick(rng, {"thing": OBJECTS, "animal": ANIMALS, "name": NAMES}[which])
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
    ("<My name is|I am> {n}.", "<Hello|Nice to meet you>, {n}! How can I help you?"),
    ("<Hola|Buenos días>!", "¡Hola! ¿En qué puedo ayudarte?"),
]


def small_talk(rng, _):
    """Greetings, thanks, who are you, and what it does not know."""
    q, a = pick(rng, SMALL_TALK)
    slots = {"f": pick(rng, FOODS), "m": pick(rng, MOODS), "n": pick(rng, NAMES)}
    q = expand(rng, q, slots)
    name = slots["n"] if slots["n"] in q else ""
    return q, expand(rng, a, slots | {"n": name})


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


def turn(rng, held_out, stories_too=True):
    """One question with its answer."""
    r = rng.random()
    if r < 0.04 and stories_too:
        return story_request(rng, held_out)
    if r < 0.10:
        return small_talk(rng, held_out)
    q, a = pick(rng, DECK)(rng, held_out)
    if rng.random() < 0.04 and not q.startswith(("Say", "Repeat", "Please say", "{")):  # careless typing
        q = q.rstrip(".?!")
    return q, a


def conversation(rng, held_out):
    """One ChatML document of one to four turns."""
    turns = [turn(rng, held_out) for _ in range(pick(rng, (1, 1, 1, 2, 3, 4)))]
    return render(turns, pick(rng, SYSTEMS) if rng.random() < 0.3 else None)


def recall(rng):
    """(what the user says, what they ask much later, the answer)."""
    thing, place, name = pick(rng, OBJECTS), pick(rng, ROOMS), pick(rng, NAMES)
    number = str(int(rng.random() * 900) + 100)
    return pick(rng, (
        (f"Remember this: the {thing} is in the {place}.", f"Where is the {thing}?", f"The {thing} is in the {place}."),
        (f"My name is {name}. Please remember it.", "What is my name?", f"Your name is {name}."),
        (f"Remember this: the secret number of {name} is {number}.", f"What is the secret number of {name}?",
         f"The secret number of {name} is {number}.")))


def long_conversation(rng, held_out, turns=48):
    """A conversation that asks, after many other turns, for what was said at its beginning; some thousand tokens."""
    told = [recall(rng)]
    for _ in range(3):
        other = recall(rng)
        if other[1] not in [t[1] for t in told]:
            told.append(other)
    out = [(t[0], "I will remember that.") for t in told]
    for i in range(turns):
        out.append(turn(rng, held_out))
        if i % 6 == 5:
            t = pick(rng, told)
            out.append((t[1], t[2]))
    return render(out, pick(rng, SYSTEMS) if rng.random() < 0.3 else None)
