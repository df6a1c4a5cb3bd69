"""What a step does before it is one: in a process of its own, for it ends that process."""

from __future__ import annotations

import subprocess
import sys


def test_a_step_whose_runner_died_while_it_started_ends_without_a_word() -> None:
    code = (
        "from expunge_jobs import forkserver\n"
        "class Gone:\n    def detach(self):\n        raise ConnectionResetError\n"
        "forkserver.child({}, Gone(), Gone(), Gone())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, process_group=0)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
