"""`examples/compare/compare.py` with fake engines that print canned figures."""

import json
import os
import pathlib
import shlex
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "examples" / "compare" / "compare.py"

# Each run notes its name and arguments, and prints the next of its reports.
FAKE = """#!{python}
import json, sys
with open({log!r}, "a+", encoding="utf-8") as log:
    log.seek(0)
    turn = sum(json.loads(line)[0] == {name!r} for line in log)
    log.write(json.dumps([{name!r}, *sys.argv[1:]]) + "\\n")
print(json.dumps({reports!r}[turn]))
"""


@pytest.fixture
def compare(monkeypatch):
    """The script as a module, on a machine where nothing else runs."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import compare

    monkeypatch.setattr(compare, "busy_seconds", lambda: 0.0)
    return compare


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


def program(path, text):
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def fake(tmp_path, name, reports):
    text = FAKE.format(python=sys.executable, log=str(tmp_path / "log"), name=name, reports=reports)
    return program(tmp_path / name, text)


def fake_llama_bench(tmp_path, name, speeds):
    """Reports of all four tests; those that must not be used are absurd."""
    keys = ("n_prompt", "n_gen", "n_depth", "avg_ts")
    reports = []
    for prefill, decode in speeds:
        tests = [(32, 0, 0, prefill), (0, 8, 0, 1e9), (32, 0, 32, 1e9), (0, 8, 32, decode)]
        reports.append([dict(zip(keys, test)) for test in tests])
    return fake(tmp_path, name, reports)


def fake_smallthinker(tmp_path, speeds):
    """A command of two words, like `python -m smallthinker`."""
    reports = [{"prefill_tok_s": {"median": prefill}, "decode_tok_s": {"median": decode}} for prefill, decode in speeds]
    return shlex.join([sys.executable, fake(tmp_path, "smallthinker", reports)])


def options(*more):
    return ["--model", "m.gguf", "--threads", "2", "--prompt-tokens", "32", "--gen-tokens", "8", *map(str, more)]


@pytest.fixture
def three_rounds(tmp_path):
    best = fake_llama_bench(tmp_path, "best", [(100.0, 10.0), (400.0, 30.0), (200.0, 20.0)])
    plain = fake_llama_bench(tmp_path, "plain", [(50.0, 5.0), (50.0, 5.0), (50.0, 5.0)])
    ours = fake_smallthinker(tmp_path, [(150.0, 20.0), (100.0, 30.0), (160.0, 25.0)])
    return options("--llama-bench", f"best={best}", "--llama-bench", f"plain={plain}", "--smallthinker", ours,
                   "--repetitions", 3)


def test_table_and_record(compare, three_rounds, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert compare.main([*three_rounds, "--json", str(out)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "| tokens/s | engine | median | min | max | smallthinker is (by round) | noisy rounds |",
        "|---|---|--:|--:|--:|--:|--:|",
        "| prefill 32 | best | 200.00 | 100.00 | 400.00 | 0.75x (0.25 to 1.50) | 0 of 3 |",
        "| prefill 32 | plain | 50.00 | 50.00 | 50.00 | 3.00x (2.00 to 3.20) | 0 of 3 |",
        "| prefill 32 | smallthinker | 150.00 | 100.00 | 160.00 |  | 0 of 3 |",
        "| decode 8 | best | 20.00 | 10.00 | 30.00 | 1.25x (1.00 to 2.00) | 0 of 3 |",
        "| decode 8 | plain | 5.00 | 5.00 | 5.00 | 5.00x (4.00 to 6.00) | 0 of 3 |",
        "| decode 8 | smallthinker | 25.00 | 20.00 | 30.00 |  | 0 of 3 |",
    ]
    record = json.loads(out.read_text(encoding="utf-8"))
    assert record["machine"]["cores"] == os.cpu_count()
    assert record["options"]["repetitions"] == 3
    assert record["commands"]["best"][1:3] == ["-m", "m.gguf"]
    assert [run["prefill"] for run in record["runs"]["best"]] == [100.0, 400.0, 200.0]
    assert record["runs"]["smallthinker"][0]["report"]["decode_tok_s"] == {"median": 20.0}
    first = record["summary"][0]
    assert (first["label"], first["figure"], first["median"], first["ratio"]) == ("best", "prefill", 200.0, 0.75)


def test_engines_take_turns_with_the_same_work(compare, three_rounds, log):
    assert compare.main([*three_rounds, "--kernels", "avx2"]) == 0
    runs = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert [run[0] for run in runs] == ["best", "plain", "smallthinker"] * 3
    llama = "-m m.gguf -t 2 -p 32 -n 8 -d 0,32 -r 1 -o json"
    ours = "bench --model m.gguf --threads 2 --prompt-tokens 32 --gen-tokens 8 --repetitions 1 --json --kernels avx2"
    assert [" ".join(run[1:]) for run in runs[:3]] == [llama, llama, ours]


def test_noise_is_told(compare, three_rounds, monkeypatch, capsys):
    # Read before and after each of nine runs. In the fifth, the second of `plain`, others are busy.
    readings = iter([reading for run in range(9) for reading in (0.0, 1e6 if run == 4 else 0.0)])
    monkeypatch.setattr(compare, "busy_seconds", lambda: next(readings))
    assert compare.main(three_rounds) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[-2].strip() for line in lines[2:5]] == ["0 of 3", "1 of 3", "0 of 3"]
    assert lines[-1].startswith("Noisy rounds: other processes used more than 0.10 cores")


def test_busy_time_holds_that_of_our_processes(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import compare

    busy, own = compare.busy_seconds(), compare.own_seconds()
    subprocess.run([sys.executable, "-c", "while __import__('time').process_time() < 0.5: pass"], check=True)
    own = compare.own_seconds() - own
    assert own >= 0.5
    # Linux may count busy time in ticks, so the two differ a little.
    assert compare.busy_seconds() - busy > 0.8 * own


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("echo out; seq 1 20 >&2; echo 'no such model' >&2; exit 3", ["exit status 3", "    12\n", "no such model"]),
        ("kill -ILL $$", ["killed by signal 4"]),
        ("echo hello", ["not the JSON expected", "hello"]),
        ("echo '[]'", ["not the JSON expected", "[]"]),
    ],
)
def test_a_failing_engine_is_a_message(tmp_path, body, expected):
    broken = program(tmp_path / "broken", f"#!/bin/sh\n{body}\n")
    ours = fake_smallthinker(tmp_path, [(1.0, 1.0)])
    command = [sys.executable, SCRIPT, *options("--llama-bench", f"theirs={broken}", "--smallthinker", ours)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("compare.py: theirs: ")
    assert all(text in done.stderr for text in [broken, *expected]), done.stderr
    assert "Traceback" not in done.stderr
    assert "    11\n" not in done.stderr


def test_a_missing_engine_is_a_message(compare, tmp_path, capsys):
    missing = str(tmp_path / "missing")
    assert compare.main(options("--llama-bench", missing)) == 1
    assert f"llama.cpp: cannot be run: {missing}" in capsys.readouterr().err


@pytest.mark.parametrize("more", [["--threads", "0"], ["--repetitions", "x"], ["--llama-bench", "b"]])
def test_bad_options(compare, more, capsys):
    with pytest.raises(SystemExit, match="2"):
        compare.main(options("--llama-bench", "a", *more))
    assert "error:" in capsys.readouterr().err
