"""Single weights of a model's folder, read without building the model."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from expunge_jobs.core.errors import BadTask, suggestion


class BaseWeights:
    """The weights in the safetensors files of a folder, by module."""

    def __init__(self, folder: Path) -> None:
        self._file: dict[str, Path] = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as opened:
                self._file |= dict.fromkeys(opened.keys(), file)
        if not self._file:
            raise BadTask("the merge method reads the base's weights, of which its folder has none as safetensors")

    def read(self, module: str) -> Tensor:
        """Return the float32 weight of a module.

        The shape is the checkpoint's own: [out, in] for a linear layer.

        Raises:
            BadTask: the base has no weight of that name.
        """
        name = f"{module}.weight"
        if name not in self._file:
            raise BadTask(f"the base has no weight '{name}'{suggestion(name, list(self._file))}")
        with safe_open(self._file[name], framework="pt") as opened:
            found: Tensor = opened.get_tensor(name)
        return found.float()
