"""The table of ATen operators that servers serve, and the choice of an overload by its arguments.

The table is data, written from torch when gradoracle is built, so that a client needs no torch to pick as torch would.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources

from gradoracle import schema
from gradoracle.dtypes import nearest, suggestion
from gradoracle.errors import UnsupportedOperatorError, _NoSuchOperatorError


@dataclasses.dataclass(frozen=True, slots=True)
class Operator:
    """One overload that is served."""

    name: str
    """As graphs name it: "aten.add.Tensor"."""
    text: str
    """Its schema, as torch writes it."""
    differentiable: bool
    """Whether autograd has a derivative for it."""
    random: bool
    """Whether it draws random numbers."""
    numbers: bool
    """Whether torch takes Python numbers where its schema says Tensor."""

    @property
    def schema(self) -> schema.Schema:
        """Its schema, read when it is first needed."""
        return schema.parse(self.text)


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """Every overload."""

    torch: str
    """The release of torch that the table was written from."""
    served: Mapping[str, Operator]
    """By the name of the overload."""
    families: Mapping[str, tuple[Operator, ...]]
    """By the name of the operator, each in the order in which torch tries its overloads."""
    refused: Mapping[str, str]
    """Why an overload is not served, by its name."""

    def family(self, name: str) -> tuple[Operator, ...]:
        """The overloads of an operator. Raises UnsupportedOperatorError with the likest names, or why it is refused."""
        found = self.families.get(name)
        if found is None:
            raise self._unserved(name)
        return found

    def overload(self, target: str) -> Operator:
        """The overload of that name. Raises UnsupportedOperatorError with the likest names, or why it is not served."""
        found = self.served.get(target)
        if found is None:
            raise self._unserved_overload(target)
        return found

    def _unserved(self, name: str) -> UnsupportedOperatorError:
        reasons = {why for target, why in self.refused.items() if target.split(".")[1] == name}
        if reasons:
            return _refused(name, " and ".join(sorted(reasons)))
        # torch's private names are offered only to who writes one.
        near = nearest(name, [known for known in self.families if known.startswith("_") == name.startswith("_")])
        hint = suggestion(near) or "; dir(gradoracle.ops) lists them"
        return _unknown(name, near, f'no operator "{name}"{hint}')

    def _unserved_overload(self, target: str) -> UnsupportedOperatorError:
        if target in self.refused:
            return _refused(target, self.refused[target])
        base = target.split(".")[1] if target.count(".") else target
        if base in self.families:
            near = [one.name for one in self.families[base]]
            return _unknown(target, near, f'no overload "{target}"; those of "{base}" are {", ".join(near)}')
        near = nearest(target, self.served)
        hint = suggestion(near) or '; names read "aten.add.Tensor"'
        return _unknown(target, near, f'no operator "{target}"{hint}')


def _refused(target: str, why: str) -> UnsupportedOperatorError:
    metadata = {"target": target, "why": why}
    return _NoSuchOperatorError(f'"{target}" is not served: it {why}', reason="OPERATOR_REFUSED", metadata=metadata)


def _unknown(target: str, near: list[str], message: str) -> UnsupportedOperatorError:
    metadata = {"target": target, "nearest": ", ".join(near)}
    return _NoSuchOperatorError(message, reason="UNKNOWN_OPERATOR", metadata=metadata)


@lru_cache(maxsize=1)
def table() -> Table:
    """The table that comes with this package."""
    document = json.loads(resources.files("gradoracle").joinpath("operators.json").read_bytes())
    served = {
        name: Operator(name, row["schema"], row["differentiable"], row["random"], row["numbers"])
        for name, row in document["operators"].items()
    }
    families: dict[str, tuple[Operator, ...]] = {}
    for name, operator in served.items():
        base = name.split(".")[1]
        families[base] = (*families.get(base, ()), operator)
    # std, var and their kin: torch's Python functions try `correction` before `default`, unlike its dispatcher.
    for name in document["operators"]:
        if name.endswith(".correction"):
            base = name.split(".")[1]
            families[base] = tuple(sorted(families[base], key=lambda one: one.name.endswith(".default")))
    return Table(document["torch"], served, families, document["refused"])
