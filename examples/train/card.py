"""The tables of the model card, in Markdown, from the JSON files of evaluate.py and hitrates.py.

    python card.py run/scores.json --hit-rates run/hitrates.json
"""
import argparse
import json


def table(head, rows):
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def bits(found):
    """Bits per byte of every domain beside the baselines."""
    rows = [[domain, f"{v['model']:.3f}", f"{v['unigram']:.3f}", f"{v['xz']:.3f}", f"{v['documents']}", f"{v['bytes']:,}"]
            for domain, v in found.items()]
    return table(["held-out bits per byte", "model", "unigram bytes", "`xz -9`", "documents", "bytes"], rows)


def exact(found):
    """Exact match, four types a row, from the best to the worst."""
    cells = [f"{name} {share:.3f}" for name, share in sorted(found.items(), key=lambda p: (-p[1], p[0]))]
    cells += [""] * (-len(cells) % 4)
    return table(["exact match", "", "", ""], [cells[i: i + 4] for i in range(0, len(cells), 4)])


def samples(found):
    """Continuations, the prompt in bold."""
    quote = lambda text: text.strip().replace("\n\n", "\n>\n> ").replace("*", "\\*")
    return "\n\n".join(f"> **{prompt}**{' ' if text[:1].isspace() else ''}{quote(text)}" for prompt, text in found)


def hit_rates(found, budgets):
    """Hit rate of every domain, model and policy."""
    rows = [[domain, model, policy, *(f"{x:.3f}" for x in values), per["tokens"]]
            for domain, models in found.items() for model, per in models.items()
            for policy, values in per.items() if policy != "tokens"]
    return table(["held-out text", "model", "policy", *budgets, "tokens"], rows)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("scores", nargs="?", metavar="JSON")
    ap.add_argument("--hit-rates", metavar="JSON")
    ap.add_argument("--budgets", default="25%,50%,62%", type=lambda s: s.split(","))
    a = ap.parse_args()
    if a.scores:
        with open(a.scores, encoding="utf-8") as f:
            scores = json.load(f)
        print(bits(scores["bits_per_byte"]), exact(scores["exact_match"]), samples(scores["samples"]), sep="\n\n")
    if a.hit_rates:
        with open(a.hit_rates, encoding="utf-8") as f:
            print("\n" + hit_rates(json.load(f), a.budgets))


if __name__ == "__main__":
    main()
