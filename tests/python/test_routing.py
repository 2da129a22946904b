"""Routing traces and cache policies: from a text to the picture."""

import json
import xml.etree.ElementTree as ET

import gguf
import pytest
from test_cli import output, smallthinker

import smallthinker as package
from smallthinker import InvalidArgument, Model, ModelFormatError
from smallthinker.cli._plot import Line, Panel, svg, ticks

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def trace_path(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("trace") / "story.trace"
    done = package.trace(model, PROMPT, path, max_tokens=40, temperature=0.8, seed=1)
    assert done["prompt_tokens"] == len(model.tokenize(PROMPT))
    assert 0 < done["decode_tokens"] <= 40
    return path


def test_policies_of_a_cache_never_beat_the_one_that_knows_the_future(trace_path):
    found = package.policies(trace_path, budgets=["10%", "25%", 1 << 20, "60%", "100%"])
    uses = found["decode_tokens"] * found["layers"] * found["experts_used"]
    sizes = [replay["expert_slots"] for replay in found["replays"]]
    assert sizes == sorted(sizes)
    for slots in set(sizes):
        by_name = {r["policy"]: r for r in found["replays"] if r["expert_slots"] == slots}
        assert set(by_name) == {"lru", "cyclic", "belady"}
        for replay in by_name.values():
            assert replay["hits"] + replay["misses"] == uses
            assert replay["hit_rate"] == pytest.approx(replay["hits"] / uses)
            assert replay["misses"] + replay["prompt_misses"] >= by_name["belady"]["misses"] + by_name["belady"]["prompt_misses"]
            assert replay["cache_bytes"] == slots * found["expert_slot"]
    whole = [r for r in found["replays"] if r["expert_slots"] == found["experts"]]
    assert len({(r["misses"], r["bytes_per_token"]) for r in whole}) == 1, "what fits is read once by every policy"


def test_a_replay_counts_what_a_model_did(model_path, tmp_path):
    plan = package.plan(model_path)
    fixed = plan["resident"] + plan["tokenizer"] + plan["scratch"] + plan["read_buffers"]
    for policy in ("lru", "cyclic"):
        budget = fixed + plan["kv_first_page"] + 80 * plan["expert_slot"]
        # Reads for guesses are not part of a trace.
        with Model(model_path, memory_budget=budget, cache_policy=policy, look_ahead=False) as model:
            slots = model.plan()["expert_slots"]
            assert slots < plan["experts"]
            assert model.stats()["cache_policy"] == policy
            path = tmp_path / policy
            package.trace(model, PROMPT, path, max_tokens=30)
            cache = model.stats()["expert_cache"]
        found = package.policies(path, budgets=[slots * plan["expert_slot"]])
        (replay,) = [r for r in found["replays"] if r["policy"] == policy]
        assert replay["expert_slots"] == slots
        assert replay["hits"] + replay["prompt_hits"] == cache["hits"]
        assert replay["misses"] + replay["prompt_misses"] == cache["misses"]


def test_text_as_if_the_model_had_written_it(model, tmp_path):
    tokens = len(model.tokenize(PROMPT))
    done = package.trace(model, PROMPT, tmp_path / "t", max_tokens=0, prompt_tokens=1)
    assert (done["prompt_tokens"], done["decode_tokens"]) == (1, tokens - 1)


def test_errors(model, tmp_path, trace_path):
    for options in ({"max_tokens": -1}, {"prompt_tokens": 0}, {"temperature": -1.0}, {"seed": -1}):
        with pytest.raises(InvalidArgument, match=next(iter(options))):
            package.trace(model, PROMPT, tmp_path / "t", **options)
    with pytest.raises(package.ContextOverflow):
        package.trace(model, PROMPT, tmp_path / "t", max_tokens=model.context_length)
    with pytest.raises(package.NotFound, match="write trace"):
        package.trace(model, PROMPT, tmp_path / "none" / "t", max_tokens=1)
    with pytest.raises(package.NotFound):
        package.policies(tmp_path / "none")
    with pytest.raises(ModelFormatError, match=r"test_routing\.py: malformed magic"):
        package.policies(__file__)
    for budget in ("half", "0%", -1):
        with pytest.raises(InvalidArgument, match="budget"):
            package.policies(trace_path, budgets=[budget])
    with pytest.raises(TypeError):
        package.policies(trace_path, budgets=[1.5])
    assert list(tmp_path.iterdir()) == []


def test_commands(model_path, tmp_path):
    text, trace, picture = tmp_path / "text", tmp_path / "trace", tmp_path / "picture.svg"
    text.write_text(PROMPT, encoding="utf-8")
    said = output("trace", "--model", model_path, "-f", text, "-n", 20, "--seed", 1, "-o", trace)
    fields = gguf.GGUFReader(model_path).fields
    used, layers = (fields[f"smallthinker.{key}"].contents() for key in ("expert_used_count", "block_count"))
    assert f"decoded, {used} experts in each of {layers} layers" in said
    again = tmp_path / "again"
    output("trace", "--model", model_path, "--prompt", PROMPT, "--max-tokens", 20, "-o", again)
    assert again.read_bytes() == trace.read_bytes()
    output("trace", "--model", model_path, "-n", 20, "-o", again, input=PROMPT)
    assert again.read_bytes() == trace.read_bytes()

    found = json.loads(output("policies", trace, "--budgets", "20%,1MiB", "--json", "--plot", picture))
    assert found == package.policies(trace, budgets=["20%", "1MiB"])
    lines = output("policies", trace, "--budgets", "20%,1MiB").splitlines()
    assert lines[4].split() == ["cache", "experts", "share"] + 2 * ["lru", "cyclic", "belady"]
    assert len(lines) == 5 + 2
    lru = found["replays"][0]
    assert f"{lru['hit_rate']:.1%}" in lines[5]
    root = ET.parse(picture).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert words.count("cyclic") == words.count("belady") == 2

    done = smallthinker("policies", trace, "--budgets", "half")
    assert (done.returncode, done.stdout) == (1, "")
    assert "budget" in done.stderr
    text.write_bytes(b"ab\xff")
    done = smallthinker("trace", "--model", model_path, "-f", text, "-o", again)
    assert done.returncode == 1
    assert "byte 2 is not UTF-8" in done.stderr


def test_plot_places_points_on_their_axes():
    line = Line("a < b", [(0.0, 0.0), (5.0, 50.0)])
    root = ET.fromstring(svg("title & more", [Panel("p", "x", [line]), Panel("empty", "x", [])]))
    names = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "title & more" in names and "a < b" in names
    drawn = [e.get("points") for e in root.iter("{http://www.w3.org/2000/svg}polyline") if e.get("stroke") == "#1f77b4"]
    assert drawn[0] == "64.0,360.0 484.0,60.0"


@pytest.mark.parametrize("most", [1e-9, 0.03, 1.0, 7.0, 99.6, 100.0, 12345.6])
def test_ticks_are_few_and_cover_everything(most):
    found = ticks(most)
    assert found[0] == 0 and 3 <= len(found) <= 8
    assert most <= found[-1] * (1 + 1e-9) <= 1.6 * most
