"""Trials of checkpoints in this process: importing torch in one of its own takes longer than all that is tried of a tiny checkpoint.

A refusal is not put in words here: tests that are about those leave the trial its process.
"""

from __future__ import annotations

from typing import Any

import pytest

from symposia_worker.models import trial


def tried_here(patch: pytest.MonkeyPatch) -> None:
    """From now on what is pushed is tried by the same functions without a process."""
    from symposia_worker.families import adapter_trial, convert, probe

    patch.setattr(trial, "probe", lambda folder, name, **how: _found(probe.probe(folder, **how)))
    patch.setattr(trial, "convert", lambda folder, into, name, **how: _found(convert.convert(folder, into, **how)))
    patch.setattr(trial, "adapter", lambda folder, base, name, **how: _found(adapter_trial.tried(folder, base, **how)))


def _found(loaded: Any) -> trial.Found:
    return trial.Found.parse({name: getattr(loaded, name) for name in trial.Found.model_fields})
