"""What holds bitwise only as XLA compiles for a user, in a process that `conftest.py` leaves all of XLA's emitters."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def test_a_chunk_is_the_updates_by_hand_bitwise():
    names = ("test_loop.py::test_chunks_are_updates_by_hand_bitwise", "test_baselines.py::test_chunks_are_updates_and_are_compiled_once")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("XLA", "PYTEST"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(TESTS / name) for name in names)]
    environment = clean | {"WITH_FUSION_EMITTERS": "1"}
    answer = subprocess.run(command, env=environment, cwd=TESTS.parent, capture_output=True, text=True)
    assert answer.returncode == 0 and "3 passed" in answer.stdout, answer.stdout[-3000:]
