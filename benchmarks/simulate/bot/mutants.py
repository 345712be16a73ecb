"""The bot with one guard left out. Each mutant must be found, or the simulation is too tame."""

from __future__ import annotations

from ..mutants import Mutant, added_to

MUTANTS: dict[str, Mutant] = {}

_mutant = added_to(MUTANTS)
