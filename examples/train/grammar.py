"""Templates: {slots} filled from a dictionary, and <one|of|these> choices drawn at each use and freely nested."""
import functools
import re


@functools.lru_cache(maxsize=None)
def parse(template):
    """The template as a tree: a tuple of str, ('slot', name) and ('choice', (tree, ...))."""
    stack, parts = [], []
    for piece in re.findall(r"\{\w+\}|[<>|]|[^{}<>|]+", template):
        if piece == "<":
            stack.append((parts, options := []))
            parts = []
        elif piece == "|" and stack:
            stack[-1][1].append(tuple(parts))
            parts = []
        elif piece == ">" and stack:
            outer, options = stack.pop()
            options.append(tuple(parts))
            outer.append(("choice", tuple(options)))
            parts = outer
        elif piece[0] == "{":
            parts.append(("slot", piece[1:-1]))
        else:
            parts.append(piece)
    if stack:
        raise ValueError(f"a < without > in {template!r}")
    return tuple(parts)


def pick(rng, items):
    """A uniform choice; several times faster than rng.choice."""
    return items[int(rng.random() * len(items))]


def _walk(rng, tree, slots, out):
    for node in tree:
        if isinstance(node, str):
            out.append(node)
        elif node[0] == "slot":
            out.append(slots[node[1]])
        else:
            _walk(rng, pick(rng, node[1]), slots, out)


def fill(rng, template, slots):
    """Draw the choices and fill the slots, nothing else."""
    out = []
    _walk(rng, parse(template), slots, out)
    return "".join(out)


_VOWEL = re.compile(r"\b([Aa]) (?=(?:[aeio]|umbrella|uncle|ugly|under|upper)(?!ne\b|nce\b))")


def articles(text):
    """'a' becomes 'an' before a vowel."""
    return _VOWEL.sub(r"\1n ", text)


def expand(rng, template, slots):
    """fill, then articles."""
    return articles(fill(rng, template, slots))


def article(phrase):
    """The phrase with a or an in front."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase
