"""How fast smallthinker is beside llama.cpp, on this machine, with the same file, threads and token counts.

    python compare.py --model MODEL.gguf --threads 2 --llama-bench best=PATH --llama-bench no-amx=OTHER_PATH

A machine's speed drifts: it heats up, and other processes come and go. So the engines take turns, one process each per
round, and a drift meets all of them. README.md says how to build llama.cpp for this. Needs Linux.

Both engines evaluate a prompt (prefill) and then decode tokens after it. llama-bench by itself decodes from an empty
context, where attention has nothing to read; its option -d (depth) fills the context first. It applies to every test,
so llama-bench is asked for the depths 0 and P: of its four tests, prefill at depth 0 and decode at depth P are used.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import time
from typing import Any, Callable, Dict, List, NamedTuple

OURS = "smallthinker"
FIGURES = ("prefill", "decode")
# A round is noisy when others had more than this share of the time that the engine's threads could have used.
NOISY = 0.05
LAST_LINES = 10


class Failure(Exception):
    """What the user is told instead of a result."""


class Engine(NamedTuple):
    """One of the programs that are compared."""

    label: str
    command: List[str]
    read: Callable[[Any], Dict[str, float]]  # from its JSON to tokens per second


def count(text: str) -> int:
    """A whole number of at least 1: neither engine measures nothing."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def parse(argv: List[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description="compare the speed of smallthinker with that of llama.cpp")
    parser.add_argument("--llama-bench", action="append", required=True, metavar="[LABEL=]PATH",
                        help="a build of llama.cpp's llama-bench (can be repeated, each with its own label)")
    parser.add_argument("--smallthinker", default=OURS, metavar="CMD",
                        help="how to run it, may be several words; default: %(default)s")
    parser.add_argument("--model", required=True, metavar="FILE", help="a GGUF file that both can read")
    parser.add_argument("--threads", type=count, required=True, metavar="N")
    parser.add_argument("--prompt-tokens", type=count, default=512, metavar="P", help="default: %(default)s")
    parser.add_argument("--gen-tokens", type=count, default=64, metavar="N", help="default: %(default)s")
    parser.add_argument("--repetitions", type=count, default=5, metavar="R", help="rounds; default: %(default)s")
    parser.add_argument("--kernels", metavar="NAME", help="kernel set of smallthinker (default: its own choice)")
    parser.add_argument("--json", metavar="FILE", help="write everything measured to FILE")
    args = parser.parse_args(argv)
    labels = [label_and_path(text)[0] for text in args.llama_bench] + [OURS]
    if len(set(labels)) < len(labels):
        parser.error("each --llama-bench needs a label of its own: --llama-bench LABEL=PATH")
    return args


def label_and_path(text: str) -> List[str]:
    """The two parts of LABEL=PATH, where the label can be left out."""
    return text.split("=", 1) if "=" in text else ["llama.cpp", text]


def llama_cpp(text: str, args: argparse.Namespace) -> Engine:
    """llama-bench with one repetition, since the rounds repeat it. It warms up by itself before each test."""
    label, path = label_and_path(text)
    prompt, gen = args.prompt_tokens, args.gen_tokens
    options = ["-m", args.model, "-t", args.threads, "-p", prompt, "-n", gen, "-d", f"0,{prompt}", "-r", 1]

    def read(tests: Any) -> Dict[str, float]:
        speeds = {(t["n_prompt"], t["n_gen"], t["n_depth"]): t["avg_ts"] for t in tests}
        return {"prefill": speeds[prompt, 0, 0], "decode": speeds[0, gen, prompt]}

    return Engine(label, [path, *map(str, options), "-o", "json"], read)


def smallthinker(args: argparse.Namespace) -> Engine:
    """smallthinker bench with one repetition. It warms up, too, and always decodes after the prompt."""
    options = ["bench", "--model", args.model, "--threads", args.threads, "--prompt-tokens", args.prompt_tokens,
               "--gen-tokens", args.gen_tokens, "--repetitions", 1, "--json"]
    if args.kernels:
        options += ["--kernels", args.kernels]

    def read(report: Any) -> Dict[str, float]:
        return {name: report[name + "_tok_s"]["median"] for name in FIGURES}

    return Engine(OURS, [*shlex.split(args.smallthinker), *map(str, options)], read)


def busy_seconds() -> float:
    """CPU time that this machine spent on anything, so far. Stolen time counts: another guest of the host had it."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """CPU time of the processes that this one has run, so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def fail(engine: Engine, what: str, output: str) -> Failure:
    """A failure of an engine, with the end of what it printed: that is where programs say why."""
    lines = output.strip().splitlines()[-LAST_LINES:]
    return Failure("\n".join([f"{engine.label}: {what}: {shlex.join(engine.command)}", *("    " + x for x in lines)]))


def execute(engine: Engine) -> subprocess.CompletedProcess:
    """Runs an engine once, to a good end."""
    try:
        done = subprocess.run(engine.command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise fail(engine, "cannot be run", str(error)) from error
    if done.returncode != 0:
        how = f"exit status {done.returncode}" if done.returncode > 0 else f"killed by signal {-done.returncode}"
        raise fail(engine, how, f"{done.stdout}\n{done.stderr}")
    return done


def measure(engine: Engine, threads: int) -> Dict[str, Any]:
    """One run of an engine: its speeds, and how many cores others kept busy meanwhile."""
    busy, own, began = busy_seconds(), own_seconds(), time.monotonic()
    done = execute(engine)
    wall = time.monotonic() - began
    own = own_seconds() - own
    others = max(0.0, busy_seconds() - busy - own) / wall
    try:
        report = json.loads(done.stdout)
        speeds = engine.read(report)
    except (ValueError, LookupError, TypeError) as error:
        raise fail(engine, "its output is not the JSON expected", f"{done.stdout}\n{done.stderr}") from error
    return {**speeds, "wall_s": wall, "cpu_s": own, "other_cores": others, "noisy": others > NOISY * threads,
            "report": report}


def rounds(engines: List[Engine], args: argparse.Namespace) -> Dict[str, List[Dict[str, Any]]]:
    """All runs by label. The engines take turns; a line on stderr per run shows that it goes on."""
    runs: Dict[str, List[Dict[str, Any]]] = {engine.label: [] for engine in engines}
    for number in range(1, args.repetitions + 1):
        for engine in engines:
            run = measure(engine, args.threads)
            runs[engine.label].append(run)
            speeds = ", ".join(f"{name} {run[name]:.2f} tokens/s" for name in FIGURES)
            print(f"round {number} of {args.repetitions}, {engine.label}: {speeds}", file=sys.stderr, flush=True)
    return runs


def spread(values: List[float]) -> Dict[str, float]:
    """The median resists a disturbed round; the extremes show that there was one."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summarize(runs: Dict[str, List[Dict[str, Any]]]) -> List[Dict[str, Any]]:
    """The rows of the table. Ratios are ours over theirs; those by round compare neighbours in time: drift cancels."""
    rows = []
    for name in FIGURES:
        ours = [run[name] for run in runs[OURS]]
        for label, found in runs.items():
            speeds = [run[name] for run in found]
            row = {"figure": name, "label": label, **spread(speeds), "noisy_rounds": sum(run["noisy"] for run in found)}
            if label != OURS:
                row["ratio"] = statistics.median(ours) / row["median"]
                row["ratio_by_round"] = spread([a / b for a, b in zip(ours, speeds)])
            rows.append(row)
    return rows


def table(rows: List[Dict[str, Any]], args: argparse.Namespace) -> str:
    """The rows as markdown, in tokens per second."""
    tokens = {"prefill": args.prompt_tokens, "decode": args.gen_tokens}
    lines = [f"| tokens/s | engine | median | min | max | {OURS} is (by round) | noisy rounds |",
             "|---|---|--:|--:|--:|--:|--:|"]
    for row in rows:
        ratio, by_round = "", row.get("ratio_by_round")
        if by_round:
            ratio = f"{row['ratio']:.2f}x ({by_round['min']:.2f} to {by_round['max']:.2f})"
        speeds = " | ".join(f"{row[key]:.2f}" for key in ("median", "min", "max"))
        noisy = f"{row['noisy_rounds']} of {args.repetitions}"
        lines.append(f"| {row['figure']} {tokens[row['figure']]} | {row['label']} | {speeds} | {ratio} | {noisy} |")
    if any(row["noisy_rounds"] for row in rows):
        cores = f"{NOISY * args.threads:.2f} cores"
        lines += ["", f"Noisy rounds: other processes used more than {cores} meanwhile. An idle machine tells more."]
    return "\n".join(lines)


def machine() -> Dict[str, Any]:
    """What the figures depend on beside the engines."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        fields = [line.partition(":") for line in file]
    info = {key.strip(): value.strip() for key, _, value in fields}
    flags = info.get("flags", info.get("Features", "")).split()
    wanted = [flag for flag in flags if flag.startswith(("amx", "avx", "asimd", "sve", "i8mm"))]
    return {"cpu": info.get("model name", platform.machine()), "cores": os.cpu_count(), "flags": sorted(wanted),
            "kernel": platform.release()}


def main(argv: List[str]) -> int:
    """Measures and prints; the exit status."""
    args = parse(argv)
    engines = [*(llama_cpp(text, args) for text in args.llama_bench), smallthinker(args)]
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    try:
        runs = rounds(engines, args)
        rows = summarize(runs)
        print(table(rows, args))
        if args.json:
            commands = {engine.label: engine.command for engine in engines}
            record = {"date": date, "machine": machine(), "options": vars(args), "commands": commands, "summary": rows,
                      "runs": runs}
            with open(args.json, "w", encoding="utf-8") as file:
                json.dump(record, file, indent=2)
    except (Failure, OSError) as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
