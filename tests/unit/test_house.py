"""What is loaded: nothing heavy by the controller, and by `expunge --help` next to nothing. Directions:
test_layers.py.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "transformers", "peft", "accelerate", "kubernetes", "boto3", "scipy"}
FROM_JOBS = {"core", "store", "plugins", "metrics", "tasks", "artifacts", "inputs", "data", "results", "forkserver", ""}
"""Rooms of the jobs package that load without torch; ``forkserver`` is only named, for the fork server to load."""


def _imports(file: Path) -> set[str]:
    out: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            out |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            out |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    return out


def test_the_controller_imports_no_torch_and_of_the_jobs_only_what_has_none() -> None:
    for file in (ROOT / "controller").rglob("*.py"):
        names = _imports(file)
        allowed = {"kubernetes"} if file.parent.name == "kube_client" else set()
        assert not {n.split(".")[0] for n in names} & (HEAVY - allowed), file
        used = {n.split(".")[1] if "." in n else "" for n in names if n.split(".")[0] == "expunge_jobs"}
        assert used <= FROM_JOBS, file


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom expunge_controller.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"loaded = set(sys.modules).intersection({sorted(HEAVY | {'pydantic', 'yaml', 'rich'})!r})\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "example: expunge run" in done.stdout
