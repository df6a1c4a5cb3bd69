"""Single weights of a model's folder, read without building the model."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from expunge_jobs.core.errors import BadTask, suggestion


class BaseWeights:
    """Weights by module, from the safetensors files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._file: dict[str, Path] = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as opened:
                self._file |= dict.fromkeys(opened.keys(), file)
        if not self._file:
            raise BadTask("the merge method reads the base's weights, of which its folder has none as safetensors")

    def read(self, module: str) -> Tensor:
        """The float32 weight of a module, as the checkpoint has it ([out, in] for a linear layer).

        Raises:
            BadTask: there is none of that name.
        """
        name = f"{module}.weight"
        if name not in self._file:
            raise BadTask(f"the base has no weight '{name}'{suggestion(name, list(self._file))}")
        with safe_open(self._file[name], framework="pt") as opened:
            found: Tensor = opened.get_tensor(name)
        return found.float()
