"""Types: the stubs describe the module, and the package passes mypy."""

import subprocess
import sys

import pytest


def mypy(*args, cwd):
    command = [sys.executable, "-m", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


@pytest.mark.timeout(600)
def test_stubs_match_the_module(tmp_path):
    done = mypy("mypy.stubtest", "smallthinker", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(600)
def test_package_and_a_typical_use_pass_strict_mypy(tmp_path):
    (tmp_path / "use.py").write_text(
        "import numpy as np\n"
        "import smallthinker\n"
        "with smallthinker.Model(memory_budget='8GiB') as model:\n"
        "    text: str = model.generate('x', max_tokens=3).text\n"
        "    pieces: list[str] = list(model.stream('x', stop=['a', 'b']))\n"
        "    answer: str = model.chat([{'role': 'user', 'content': 'x'}]).text\n"
        "    speed: float = model.generate('x').stats['decode_tok_s']\n"
        "    row = np.argmax(model.logits([1, 2])[-1])\n"
    )
    for target in (["-p", "smallthinker"], ["use.py"]):
        done = mypy("mypy", "--strict", *target, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "use.py").write_text("import smallthinker\nsmallthinker.Model(thread=2)\n")
    done = mypy("mypy", "--strict", "use.py", cwd=tmp_path)
    assert done.returncode == 1
    assert "thread" in done.stdout
