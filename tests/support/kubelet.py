"""What a kubelet does with a pod's environment (pkg/kubelet, third_party/forked/golang/expansion)."""

from __future__ import annotations

import re
from collections.abc import Mapping


def expanded(value: str, known: Mapping[str, str]) -> str:
    """A value as the container sees it: ``$(NAME)`` is that variable where one is known, and ``$$`` is ``$``."""

    def read(found: re.Match[str]) -> str:
        return "$" if found[0] == "$$" else known.get(found[1], found[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", read, value)
