"""Ctrl-C: stops loading, prefill and decode soon, and leaves the session usable.

Each case runs in a process of its own, which sends itself the signal while it works.
"""

import subprocess
import sys

import pytest

SCRIPT = """
import os, signal, sys, threading, time
import smallthinker

# A process started in the background of a shell inherits a SIGINT that is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
path = sys.argv[1]
sent = None

def press(after):
    def send():
        global sent
        sent = time.monotonic()
        os.kill(os.getpid(), signal.SIGINT)
    threading.Timer(after, send).start()

def expect_interrupt(work):
    try:
        work()
    except KeyboardInterrupt:
        waited = time.monotonic() - sent
        assert waited < 60, f"Ctrl-C took {waited:.1f} s"
        return
    raise SystemExit("the work ended before Ctrl-C was seen")
"""

DECODE = """
model = smallthinker.Model(path, threads=1)
word = model.tokenize(" the")[0]
forever = dict(max_tokens=None, logit_bias={word: 1e9})
session = model.session()
session.generate("Once", max_tokens=1)
press(0.1)
expect_interrupt(lambda: session.WORK)
assert len(session.tokens) < model.context_length
session.rewind(1)
assert len(session.generate(max_tokens=2, logit_bias={word: 1e9}).tokens) == 2
"""

PREFILL = """
model = smallthinker.Model(path, threads=1, chunk=8)
ids = model.tokenize(" the")[:1] * int(min(model.context_length, 8192) * 0.9)
session = model.session()
session.append_tokens(ids)
press(0.02)
expect_interrupt(lambda: session.WORK)
assert len(session.tokens) == len(ids)
session.rewind(4)
done = session.generate(max_tokens=2)
assert done.stats["prompt_tokens"] == 4
"""

LOGITS = """
model = smallthinker.Model(path, threads=1, chunk=8)
ids = model.tokenize(" the")[:1] * int(min(model.context_length, 4096) * 0.9)
press(0.02)
expect_interrupt(lambda: model.logits(ids))
assert model.logits(ids[:3]).shape[0] == 3
"""

BENCH = """
model = smallthinker.Model(path, threads=1, chunk=8)
press(0.1)
half = model.context_length // 2
expect_interrupt(lambda: smallthinker.bench(model, prompt_tokens=half, gen_tokens=half - 2, repetitions=100))
assert model.generate("Once", max_tokens=1).stats["generated_tokens"] <= 1
"""

LOAD = """
calls = 0
def slow(done, total):
    global calls
    calls += 1
    time.sleep(0.2)
press(0.3)
expect_interrupt(lambda: smallthinker.Model(path, progress=slow))
assert calls < 10, calls
smallthinker.Model(path).close()
"""


PACK = """
import tempfile
calls = 0
def slow(done, total):
    global calls
    calls += 1
    time.sleep(0.2)
with tempfile.TemporaryDirectory() as folder:
    out = os.path.join(folder, "packed.gguf")
    press(0.3)
    expect_interrupt(lambda: smallthinker.pack(path, out, slow))
    assert calls < 10, calls
    assert os.listdir(folder) == []
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(DECODE.replace("WORK", "generate(**forever)"), id="decode"),
        pytest.param(DECODE.replace("session.WORK", "list(session.stream(**forever))"), id="decode-stream"),
        pytest.param(PREFILL.replace("WORK", "evaluate()"), id="prefill-evaluate"),
        pytest.param(PREFILL.replace("WORK", "generate(max_tokens=1)"), id="prefill-generate"),
        pytest.param(PREFILL.replace("WORK", "stream(max_tokens=1).__next__()"), id="prefill-stream"),
        pytest.param(LOGITS, id="logits"),
        pytest.param(BENCH, id="bench"),
        pytest.param(LOAD, id="load"),
        pytest.param(PACK, id="pack"),
    ],
)
def test_ctrl_c(model_path, case):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT + case, model_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_handler_that_does_not_raise_lets_the_work_finish(model_path):
    case = """
seen = []
signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
model = smallthinker.Model(path)
press(0.05)
word = model.tokenize(" the")[0]
while sent is None or not seen:
    done = model.generate("Once", max_tokens=64, logit_bias={word: 1e9})
    assert done.finish_reason == "length"
"""
    done = subprocess.run([sys.executable, "-c", SCRIPT + case, model_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
