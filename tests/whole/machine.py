"""Runs a state machine of hypothesis against the functions."""

from __future__ import annotations

import os
import time
from typing import Any

from hypothesis import Phase
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from tests.examples import settings

LONG_RUN_S = float(os.environ.get("OSGPROD_STATE_MACHINE_S", "0"))
USUAL: dict[str, Any] = {
    "phases": (Phase.explicit, Phase.generate),
    "database": None,
}


def run_machine(machine: type[RuleBasedStateMachine], examples: int, steps: int) -> None:
    """Tries sequences of calls; with OSGPROD_STATE_MACHINE_S longer ones too, for so many seconds.

    Parameters
    ----------
    examples
        Number of sequences.
    steps
        Calls at most in each.
    """
    end = time.monotonic() + LONG_RUN_S
    run_state_machine_as_test(
        machine, settings=settings(max_examples=examples, stateful_step_count=steps, **USUAL)
    )
    while time.monotonic() < end:
        run_state_machine_as_test(
            machine, settings=settings(max_examples=50, stateful_step_count=100, **USUAL)
        )
