"""The command line: what it prints where, and its exit codes."""

import io
import json
import re
import signal
import subprocess
import sys

import pytest

from smallthinker.cli._progress import bar

PROMPT = "Once upon a time"


def smallthinker(*args, **options):
    command = [sys.executable, "-m", "smallthinker", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False, **options)


def output(*args, **options):
    done = smallthinker(*args, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_generate_prints_what_the_library_returns(model, model_path):
    expected = model.generate(PROMPT, max_tokens=16, temperature=0.7, seed=3).text
    args = ["--model", model_path, "-n", 16, "--temperature", 0.7, "--seed", 3]
    done = smallthinker("generate", PROMPT, *args)
    assert (done.returncode, done.stdout, done.stderr) == (0, expected + "\n", "")
    assert output("generate", *args, input=PROMPT + "\n") == expected + "\n"


def test_generate_options(model, model_path):
    whole = model.generate(PROMPT, max_tokens=16).text
    args = ["generate", PROMPT, "--model", model_path, "-n", 16, "--threads", 1, "--memory-budget", "1GiB"]
    assert output(*args) == whole + "\n"
    assert output(*args, "--stop", whole[4:6]) == whole[: whole.index(whole[4:6])] + "\n"
    done = smallthinker(*args, "--stats")
    assert done.stdout == whole + "\n"
    assert len(done.stderr.splitlines()) == 1
    assert "1 threads" in done.stderr


def test_chat_keeps_its_history(model, model_path):
    lines = ["Hello!", "And now?"]
    history = [{"role": "system", "content": "Be brief."}]
    for line in lines:
        history.append({"role": "user", "content": line})
        history.append({"role": "assistant", "content": model.chat(history, max_tokens=6).text})
    answers = [m["content"] for m in history if m["role"] == "assistant"]
    args = ["chat", "--model", model_path, "--system", "Be brief.", "-n", 6]
    assert output(*args, input="\n".join(lines) + "\n") == "".join(a + "\n" for a in answers)


def test_inspect(model_path):
    text = output("inspect", model_path)
    assert "Hyperparameters" in text
    assert "token_embd.weight" in text
    found = json.loads(output("inspect", model_path, "--json"))
    assert any(t["name"] == "token_embd.weight" for t in found["tensors"])


def test_plan(model_path):
    plan = json.loads(output("plan", model_path, "--memory-budget", "1GiB", "--json"))
    assert plan["budget"] == 1 << 30
    text = output("plan", model_path, "--memory-budget", "1GiB")
    assert "1.00 GiB" in text and "experts are rearranged in" in text


def test_streaming_figures(model, model_path):
    plan = model.plan()
    budget = ["--model", model_path, "--memory-budget", plan["floor"] + 40 * plan["expert_slot"]]
    expected = model.generate(PROMPT, max_tokens=16).text
    for options, looks in (([], True), (["--no-look-ahead"], False), (["--look-ahead", "--buffered-reads"], True)):
        done = smallthinker("generate", PROMPT, *budget, "-n", 16, "-v", *options)
        assert done.stdout == expected + "\n"
        speed, experts = done.stderr.splitlines()
        assert "GB/s of weights" in speed
        words = r"experts: [\d.]+% hits, [\d.]+ MB read per token at \d+ MB/s, waited \d+% of the time; looking ahead: "
        found = re.fullmatch(words + r"(\d+) on time, (\d+) late, (\d+) wasted", experts)
        assert found, experts
        assert (sum(map(int, found.groups())) > 0) is looks
    args = ["bench", *budget, "--prompt-tokens", 8, "--gen-tokens", 8, "--repetitions", 1]
    figures = json.loads(output(*args, "--json"))
    assert figures["read_bytes_per_token"] == figures["decode_expert_cache"]["bytes_read"] // 8 > 0
    assert 0 <= figures["stall_share"] <= 1
    storage, decode = figures["storage"], figures["decode_tok_s"]["median"]
    assert storage["bandwidth_bytes_s"] > 0
    assert storage["limit_tok_s"] == pytest.approx(storage["bandwidth_bytes_s"] / figures["read_bytes_per_token"])
    assert storage["limit_share"] == pytest.approx(decode / storage["limit_tok_s"])
    table = output(*args)
    assert "MB read per token" in table and re.search(r"reached \d+% of that", table)


def test_bench(model_path, tmp_path):
    args = ["bench", "--model", model_path, "--prompt-tokens", 8, "--gen-tokens", 4, "--repetitions", 2]
    args += ["--threads", 1, "--memory-budget", "1GiB"]
    found = json.loads(output(*args, "--json"))
    for key in ("prefill_tok_s", "decode_tok_s"):
        assert set(found[key]) == {"min", "median", "max"}
        assert 0 < found[key]["min"] <= found[key]["median"] <= found[key]["max"]
    for key in ("load_s", "peak_rss_bytes", "bytes_per_token", "read_bandwidth_share"):
        assert found[key] > 0, key
    # The buffers of the bandwidth measurement have at least 256 MiB: they must not be counted.
    assert found["peak_rss_bytes"] < 256 << 20
    assert found["expert_cache"]["hits"] > 0
    assert found["threads"] == 1
    assert found["storage"] is None  # all experts are in memory
    assert "tokens/s" in output(*args)
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a little girl who lived in a village.", encoding="utf-8")
    assert "tokens/s" in output(*args, "-f", text)
    done = smallthinker(*args, "-f", text, "--gen-tokens", 500)
    assert done.returncode == 1 and "text: found" in done.stderr


def test_profile_of_routing(model_path, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a little girl who lived in a village.", encoding="utf-8")
    found = json.loads(output("profile", model_path, "--routing", text, "--json"))
    layers = len(found["sparsity"])
    lines = output("profile", model_path, "--routing", text, "--plot", tmp_path / "p").splitlines()
    rows = [line.split() for line in lines[3:-2]]
    assert [row[0] for row in rows] == [*map(str, range(layers)), "median"]
    assert [row[4] for row in rows[:-1]] == [f"{x:.1%}" for x in found["sparsity"]]
    assert [row[1] for row in rows[:-1]] == [f"{max(layer):.1%}" for layer in found["frequency"]]
    assert lines[-2:] == [str(tmp_path / f"p-{name}.png") for name in ("experts", "sparsity")]
    for path in lines[-2:]:
        with open(path, "rb") as f:
            assert f.read(8) == b"\x89PNG\r\n\x1a\n"
    assert len(list(tmp_path.iterdir())) == 3
    done = smallthinker("profile", model_path, "--plot", tmp_path / "p")
    assert done.returncode == 1 and "--routing" in done.stderr


def test_profile(model_path):
    args = ["profile", model_path, "--prompt-tokens", 8, "--gen-tokens", 4]
    args += ["--threads", 1, "--memory-budget", "1GiB", "--kernels", "scalar"]
    found = json.loads(output(*args, "--json"))
    stages = found["stages"]
    assert {"router", "norm", "qkv", "attention", "attention_out", "gate", "up", "down", "head"} <= set(stages)
    for cost in stages.values():
        assert set(cost) == {"decode_ms_per_token", "decode_bytes_per_token", "prefill_ms_per_token"}
    count = sum(cost["decode_bytes_per_token"] for cost in stages.values())
    assert found["bytes_per_token"] - len(stages) <= count <= found["bytes_per_token"]
    assert (found["threads"], found["kernels"], found["prompt_tokens"], found["gen_tokens"]) == (1, "scalar", 8, 4)
    assert [(k["part"], k["type"], k["sparse"]) for k in found["expert_kernels"]] == [
        ("gate", "Q4_0", False),
        ("up", "Q4_0", True),
        ("down", "Q4_0", True),
    ]
    text = output(*args)
    lines = text.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[2 : lines.index("")]}
    assert list(rows) == [*stages, "other", "total"]
    assert all(len(row) == 6 for row in rows.values())
    assert rows["total"][1] == rows["total"][5] == "100.0%"
    # The fused stage has no time of its own in decode, gate and up have none in prefill.
    assert rows["gate_up"][0] == rows["gate"][4] == rows["up"][4] == "-"
    for words in ("1 threads, scalar", "tokens/s", "of this machine's", "hits", "Q4_0 sparse", "Q4_0 dense"):
        assert words in text


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["generate", PROMPT, "--model", "/missing/model.gguf"], "/missing/model.gguf"),
        (["inspect", __file__], "magic"),
        (["plan", "MODEL", "--memory-budget", "1KiB"], "memory budget too small"),
        (["generate", PROMPT, "--model", "MODEL", "--top-p", "7"], "top_p"),
        (["convert", "/missing", "/missing/out.gguf"], "config.json"),
        (["convert", "/missing", "/missing/out.gguf", "--type", "q1_0"], "q1_0"),
    ],
)
def test_an_error_is_one_line_and_exit_code_1(model_path, args, words):
    done = smallthinker(*(model_path if arg == "MODEL" else arg for arg in args))
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("smallthinker: error: ")
    assert words in line


@pytest.mark.parametrize("args", [[], ["sing"], ["generate", "x", "--temperature", "warm"], ["plan"]])
def test_usage_errors_exit_with_2(args):
    done = smallthinker(*args)
    assert done.returncode == 2
    assert "usage:" in done.stderr


def test_version_and_help():
    import smallthinker as package

    assert output("--version").strip() == f"smallthinker {package.__version__}"
    for command in ("generate", "chat", "inspect", "convert", "pack", "plan", "bench", "profile", "trace", "policies", "simulate"):
        assert command in output("--help")
        assert "usage:" in output(command, "--help")


def long_generation(model, model_path):
    # Sampling at a high temperature seldom ends by itself.
    args = ["generate", PROMPT, "--model", model_path, "-n", model.context_length - 50, "--temperature", 5, "--seed", 1]
    command = [sys.executable, "-m", "smallthinker", *map(str, args)]
    # A process started in the background of a shell inherits a SIGINT that is ignored.
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heed)


def test_ctrl_c_exits_with_130(model, model_path):
    with long_generation(model, model_path) as process:
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert error == b""


def test_a_reader_that_leaves_is_no_error(model, model_path):
    with long_generation(model, model_path) as process:
        assert process.stdout.read(1)
        process.stdout.close()
        error = process.stderr.read()
        process.wait(timeout=30)
    assert error == b""
    assert process.returncode == 0


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_bar_only_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with bar("loading") as progress:
        assert progress is None
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    times = iter(range(100))
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    with bar("loading") as progress:
        progress(1, 4)
        progress(2, 4)
    drawn = terminal.getvalue().replace("\x1b[K", "").split("\r")
    assert [line[:9] for line in drawn if line] == ["loading |", "loading |"]
    assert " 25% 1/4" in drawn[1]
    assert " 50% 2/4" in drawn[2]
    assert drawn[-1] == ""
