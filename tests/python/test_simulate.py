"""Simulated storage: from a trace and a measurement to a table."""

import json

import pytest
from test_cli import output, smallthinker

import smallthinker as package
from smallthinker import InvalidArgument

# As `profile --json` prints it: 10 ms per token, of which 1 went into waiting.
STAGES = {"router": 0.5, "norm": 0.25, "qkv": 1.25, "attention": 0.5, "attention_out": 1, "wait": 1, "gate_up": 3, "down": 2}
COMPUTE = {
    "threads": 2,
    "decode_ms_per_token": 10.0,
    "stages": {
        name: {"decode_ms_per_token": ms, "decode_bytes_per_token": 0, "prefill_ms_per_token": 0.0}
        for name, ms in STAGES.items()
    },
}


@pytest.fixture(scope="module")
def trace_path(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("trace") / "story.trace"
    package.trace(model, "Once upon a time", path, max_tokens=40, temperature=0.8, seed=1)
    return path


def test_what_is_in_memory_takes_the_time_of_computing(trace_path):
    found = package.simulate(trace_path, compute=COMPUTE, storage=["1000000GB/s@0us"], pack_rate="1000000GB")
    assert found["compute_tok_s"] == pytest.approx(1000 / 9)
    assert (found["threads"], found["policy"]) == (2, "cyclic")
    for one in found["simulations"]:
        assert one["decode_tok_s"] == pytest.approx(1000 / 9, rel=1e-3)
        assert one["stall_share"] == pytest.approx(0, abs=1e-3)
    assert [one["expert_slots"] for one in found["simulations"]] == sorted({*(s["expert_slots"] for s in found["simulations"])})


def test_hits_are_those_of_the_replay_and_speed_has_its_bounds(trace_path):
    budgets = ["10%", "40%", "100%"]
    for policy in ("lru", "cyclic"):
        replays = [r for r in package.policies(trace_path, budgets=budgets)["replays"] if r["policy"] == policy]
        found = package.simulate(
            trace_path, compute=COMPUTE, storage=["100MB/s@1ms", "200MB/s"], budgets=budgets, policy=policy
        )
        assert found["policy"] == policy
        slow, fast = ([s for s in found["simulations"] if s["storage"] == name] for name in ("100MB/s@1ms", "200MB/s"))
        for replay, a, b in zip(replays, slow, fast):
            for one in (a, b):
                assert one["hit_rate"] == pytest.approx(replay["hit_rate"])
                assert one["read_bytes_per_token"] == replay["bytes_per_token"]
                assert one["cache_bytes"] == replay["cache_bytes"]
                assert one["look_ahead"]["requested"] == 0
            assert a["decode_tok_s"] <= b["decode_tok_s"]
            assert a["decode_tok_s"] <= 100e6 / a["read_bytes_per_token"]
            assert 0 <= b["stall_share"] <= a["stall_share"] < 1
    ahead = package.simulate(trace_path, compute=COMPUTE, storage=["1GB/s"], budgets=["40%"], look_ahead=0.5)
    assert ahead["simulations"][0]["look_ahead"]["requested"] > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"storage": ["fast"]}, r'storage: found "fast", allowed: .*1\.5GB/s@120us'),
        ({"readers": 0}, "readers"),
        ({"queue_depth": 0}, "queue_depth"),
        ({"pack_rate": 0}, "pack_bytes_per_second"),
        ({"look_ahead": 2.0}, "look_ahead"),
        ({"policy": "fifo"}, "cache_policy"),
        ({"budgets": ["half"]}, "budget"),
        ({"compute": {}}, r"compute\.\w+: found nothing"),
        ({"compute": {**COMPUTE, "decode_ms_per_token": 0}}, "compute.decode_ms_per_token: found 0"),
        ({"compute": {**COMPUTE, "decode_ms_per_token": -1}}, "compute.decode_ms_per_token: found -1"),
        ({"compute": {**COMPUTE, "threads": 0}}, "compute.threads"),
    ],
)
def test_errors(trace_path, options, words):
    with pytest.raises(InvalidArgument, match=words):
        package.simulate(trace_path, **{"compute": COMPUTE, "storage": ["1GB/s"], **options})


def test_command(model_path, trace_path, tmp_path):
    measured = tmp_path / "profile.json"
    measured.write_text(output("profile", model_path, "--prompt-tokens", 4, "--gen-tokens", 4, "--json"), encoding="utf-8")
    args = ["simulate", trace_path, "--compute", measured, "--storage", "1.5GB/s@120us,0.5GB/s", "--budgets", "20%,1MiB"]
    args += ["--readers", 2, "--queue-depth", 1, "--pack-rate", "3GB", "--look-ahead", 0.4]
    found = json.loads(output(*args, "--json"))
    again = package.simulate(
        trace_path,
        compute=json.loads(measured.read_text(encoding="utf-8")),
        storage=["1.5GB/s@120us", "0.5GB/s"],
        budgets=["20%", "1MiB"],
        readers=2,
        queue_depth=1,
        pack_rate="3GB",
        look_ahead=0.4,
    )
    assert found == again
    lines = output(*args).splitlines()
    assert lines[2].split() == ["cache", "experts", "share", "storage", "tokens/s", "hits", "waited", "MB/token"]
    assert len(lines) == 3 + 4
    assert lines[3].split()[4:6] == ["1.5GB/s@120us", f"{found['simulations'][0]['decode_tok_s']:.1f}"]
    for content, words in (("[]", "found list"), ("{", "not JSON"), ("{}", "compute.threads")):
        measured.write_text(content, encoding="utf-8")
        done = smallthinker(*args)
        assert (done.returncode, done.stdout) == (1, "")
        assert words in done.stderr
