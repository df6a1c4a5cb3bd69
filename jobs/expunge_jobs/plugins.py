"""Registry of objectives, merge methods and metrics.

The registry finds plugins by name and checks their parameters.

A plugin is a module. The package's own plugins are files in ``objectives/``, ``merge_methods/`` and ``metrics/``. The
file's name is the plugin's name. Plugins of other distributions are entry points of the group ``expunge.<family>``. The
entry point's name is the plugin's name, and the value is a module.

A plugin defines ``VERSION`` and the attributes of its family (see the family's package). ``VERSION`` is raised by hand
when the plugin's results change. The first line of the plugin's docstring describes the plugin.

Names, versions and parameters are read where torch is absent. Therefore a plugin imports torch only inside its
functions.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ValidationError

from expunge_jobs.core.errors import suggestion
from expunge_jobs.metrics import Column
from expunge_jobs.objectives import TermParameters

__all__ = [
    "PluginCall",
    "PluginError",
    "description",
    "load",
    "names",
    "source",
    "version",
]

FAMILIES = {"objectives": "objective", "merge_methods": "merge method", "metrics": "metric"}
STATES = {
    "objectives": ("VERSION", "Parameters", "needs", "values"),
    "merge_methods": ("VERSION", "Parameters", "RANDOM", "ACTS_ON", "merge"),
    "metrics": ("VERSION", "COLUMNS", "compute"),
}
"""Attributes that a plugin of each family must define."""
OWN = "expunge"
"""Distribution of the package's own plugins."""
_NAME = re.compile(r"[a-z][a-z0-9_]*")


class PluginError(ValueError):
    """A plugin that cannot be used: unknown, claimed twice, or broken."""


@dataclass(frozen=True)
class Source:
    """The location of a plugin.

    The location is a module of this package, or the entry point of another distribution.
    """

    family: str
    name: str
    distribution: str = OWN
    entry_point: EntryPoint | None = None

    @property
    def identity(self) -> str:
        """The plugin's name in keys.

        The form is ``objectives/npo``, or ``objectives/acme-forgetting:simnpo`` for another distribution.
        """
        owner = "" if self.distribution == OWN else f"{self.distribution}:"
        return f"{self.family}/{owner}{self.name}"

    def load(self) -> ModuleType:
        """Import the module.

        Raises:
            PluginError: the import fails, or the module lacks an attribute.
        """
        try:
            if self.entry_point is None:
                found: Any = importlib.import_module(f"expunge_jobs.{self.family}.{self.name}")
            else:
                found = self.entry_point.load()
        except (Exception, SystemExit) as error:  # foreign code may raise anything; the other plugins must still work
            raise PluginError(f"{self.words} cannot be imported: {type(error).__name__}: {error}") from error
        if not isinstance(found, ModuleType):
            raise PluginError(f"{self.words} is a {type(found).__name__}; an entry point of ours names a module")
        missing = [word for word in STATES[self.family] if not hasattr(found, word)]
        if missing:
            raise PluginError(f"{self.words} lacks {', '.join(missing)}; see the package expunge_jobs.{self.family}")
        if problem := _problem(self.family, found):
            raise PluginError(f"{self.words}: {problem}")
        return found

    @property
    def words(self) -> str:
        """How messages name the plugin."""
        return f"{FAMILIES[self.family]} '{self.name}' of the distribution {self.distribution}"


def _problem(family: str, found: Any) -> str:
    """Return what is wrong with a plugin's attributes; empty if nothing is."""
    if type(found.VERSION) is not int or found.VERSION < 0:
        return f"VERSION is {found.VERSION!r}; allowed: a whole number, raised by one when results change"
    if family == "metrics":
        columns = found.COLUMNS
        if not isinstance(columns, tuple | list) or not all(isinstance(c, Column) for c in columns):
            return "COLUMNS is no sequence of Column"
        return next((f"COLUMNS: {c} is not valid" for c in columns if not c.is_valid()), "")
    base = TermParameters if family == "objectives" else BaseModel
    if not (isinstance(found.Parameters, type) and issubclass(found.Parameters, base)):
        return f"Parameters is no subclass of {base.__name__}"
    if family == "merge_methods":
        taken = sorted({"method", "weights", "parameters"} & set(found.Parameters.model_fields))
        if taken:
            return f"Parameters has a field '{taken[0]}', which is a merge's own"
        if found.ACTS_ON not in ("factors", "deltas"):
            return f"ACTS_ON is {found.ACTS_ON!r}; allowed: factors, deltas"
    return ""


@dataclass(frozen=True)
class PluginCall:
    """A plugin with its checked parameters.

    The parameters are checked where the file is read, and are carried to the tensor.
    """

    family: str
    name: str
    parameters: BaseModel
    """Instance of the plugin's own ``Parameters``."""

    @classmethod
    def of(cls, family: str, name: str, given: Mapping[str, Any] | BaseModel) -> PluginCall:
        """Return a call of the plugin with these parameters.

        The parameters may have been checked before.

        Raises:
            PluginError: no such plugin, or one that cannot be used.
            ValidationError: wrong parameters.
        """
        kind = load(family, name).Parameters
        if isinstance(given, kind):
            return cls(family, name, given)
        try:
            return cls(family, name, kind.model_validate(given))
        except ValidationError:
            raise
        except Exception as error:  # a validator of foreign code
            found = source(family, name)
            if found.distribution == OWN:
                raise
            raise PluginError(f"{found.words}: its Parameters fail: {type(error).__name__}: {error}") from error

    @property
    def plugin(self) -> ModuleType:
        """The plugin's module."""
        return load(self.family, self.name)

    def fields(self) -> dict[str, Any]:
        """Return every parameter in its JSON form."""
        return self.parameters.model_dump(mode="json")


@cache
def _sources(family: str) -> dict[str, tuple[Source, ...]]:
    """Return the sources of a family's plugins by name.

    A name has a source for each distribution that claims the name. No plugin is imported.
    """
    if family not in FAMILIES:
        raise PluginError(f"unknown family of plugins '{family}'; one of: {', '.join(FAMILIES)}")
    package = importlib.import_module(f"expunge_jobs.{family}")
    found: dict[str, list[Source]] = defaultdict(list)
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.startswith("_"):
            found[module.name].append(Source(family, module.name))
    for entry in entry_points(group=f"expunge.{family}"):
        given = entry.dist.name if entry.dist is not None else None
        owner = re.sub(r"[-_.]+", "-", given or "unknown").lower()  # PEP 503: one name for one distribution
        claim = Source(family, entry.name, owner, entry)
        # An installer may leave the same entry twice; two different ones are two claims.
        if all(c.entry_point is None or c.entry_point.value != entry.value for c in found[entry.name]):
            found[entry.name].append(claim)
    return {name: tuple(claims) for name, claims in sorted(found.items())}


@cache
def names(family: str) -> list[str]:
    """Return the names of a family's plugins, sorted."""
    return list(_sources(family))


def source(family: str, name: str) -> Source:
    """Return the source of a plugin.

    Raises:
        PluginError: no such plugin, with the known plugins and the nearest word; or two distributions claim the name.
    """
    claims = _sources(family).get(name, ())
    kind = FAMILIES[family]
    if not claims:
        known = names(family)
        raise PluginError(f"unknown {kind} '{name}'; one of: {', '.join(known)}{suggestion(name, known)}")
    if not _NAME.fullmatch(name):
        raise PluginError(f"{claims[0].words}: a name is of small letters, digits and _; allowed: {_NAME.pattern}")
    if len(claims) > 1:
        owners = " and ".join(sorted(c.distribution for c in claims))
        raise PluginError(f"the name of {kind} '{name}' is claimed by {owners}: remove one of these distributions")
    return claims[0]


def is_own(family: str, name: str) -> bool:
    """Return whether this package alone has the plugin."""
    claims = _sources(family).get(name, ())
    return len(claims) == 1 and claims[0].distribution == OWN


@cache
def load(family: str, name: str) -> ModuleType:
    """Return the plugin's module.

    Raises:
        PluginError: no such plugin, two that claim the name, or one that is broken.
    """
    return source(family, name).load()


def version(family: str, name: str) -> int:
    """Return the plugin's version.

    The version is part of the key of every step that uses the plugin.
    """
    return int(load(family, name).VERSION)


def versions(calls: Mapping[str, Any] | list[str], family: str) -> dict[str, int]:
    """Return the versions of a family's plugins by their identity.

    The result has the form of the field in a task's key.
    """
    return {source(family, n).identity: version(family, n) for n in sorted(calls)}


def by_identity(identity: str) -> Source:
    """Return the source of the plugin that a key names.

    Raises:
        PluginError: no such plugin here, or another distribution has the name.
    """
    family, _, rest = identity.partition("/")
    owner, colon, name = rest.rpartition(":")
    found = source(family, name)
    wanted = owner if colon else OWN
    if found.distribution != wanted:
        raise PluginError(
            f"{FAMILIES[family]} '{name}' is of the distribution {found.distribution} here, not of {wanted}"
        )
    return found


def description(family: str, name: str) -> str:
    """Return the first line of the plugin's docstring.

    For an unusable plugin, the line is the reason.
    """
    try:
        found = source(family, name)
        line = (found.load().__doc__ or "").strip().partition("\n")[0]
    except PluginError as error:
        return f"NOT USABLE: {error}"
    return line if found.distribution == OWN else f"{line} ({found.distribution})"
