"""Transformers' own common tests against our classes, with its SAM beside them as the control."""

import json
import subprocess
import sys
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from tests.programs import install_transformers_tests
from tests.transformers_suite.running import FAILED, PASSED, SKIPPED, Outcome

Outcomes = dict[str, Outcome]
Entries = list[dict[str, Any]]

SUITES = ("models", "image_processors", "processors")
TABLE = tomllib.loads((Path(__file__).parent / "outcomes.toml").read_text())
OF_MACHINE = ("test requires", "test is slow")
"""How the reasons begin of tests that other machines and settings run."""


@pytest.mark.slow  # and downloads the source distribution of transformers, once
@pytest.mark.parametrize("suite", SUITES)
def test_ours_fails_nothing_that_the_control_passes(suite, tmp_path):
    install_transformers_tests()
    path = tmp_path / "outcomes.json"
    command = [sys.executable, "-m", "tests.transformers_suite.cases", suite, path]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    control, ours = (
        {name: Outcome(*outcome) for name, outcome in found.items()}
        for found in json.loads(path.read_text())
    )
    assert sum(outcome.state == PASSED for outcome in control.values()) > 15
    check_listed(control, ours, TABLE[suite])
    check_needed(ours, TABLE[suite])


def check_listed(control: Outcomes, ours: Outcomes, entries: Entries) -> None:
    """What does not pass is in the table; what the control passes may be skipped, never fail."""
    skips = [entry for entry in entries if entry["state"] == SKIPPED]
    for name, outcome in ours.items():
        passes = control.get(name, Outcome(PASSED)).state == PASSED
        is_listed = explained(name, outcome, skips if passes else entries)
        assert outcome.state == PASSED or is_listed, f"{name} {outcome.state}: {outcome.reason}"


def check_needed(ours: Outcomes, entries: Entries) -> None:
    """The table has no entry for what passes."""
    for entry in entries:
        if entry["reason"].startswith(OF_MACHINE):
            continue
        for pattern in entry["tests"]:
            one = {**entry, "tests": [pattern]}
            assert any(explained(name, outcome, [one]) for name, outcome in ours.items()), one


def explained(name: str, outcome: Outcome, entries: Entries) -> bool:
    """Whether an entry says that a test ends so, and why."""
    return any(
        outcome.state == entry["state"]
        and any(fnmatchcase(name, pattern) for pattern in entry["tests"])
        and (outcome.state == FAILED or entry["reason"] in outcome.reason)
        for entry in entries
    )


ENTRY = {"state": SKIPPED, "reason": "no text", "tests": ["test_text*"]}


@pytest.mark.parametrize(
    ("outcome", "entry", "is_fine"),
    [
        (Outcome(PASSED), None, True),
        (Outcome(SKIPPED, "there is no text here"), ENTRY, True),
        (Outcome(SKIPPED, "another reason"), ENTRY, False),
        (Outcome(SKIPPED, "no text"), None, False),
        (Outcome(FAILED, "Traceback"), ENTRY, False),
        (Outcome(FAILED, "Traceback"), {**ENTRY, "state": FAILED}, False),
    ],
)
def test_a_control_that_passes_allows_listed_skips_alone(outcome, entry, is_fine):
    entries = [entry] if entry else []
    control, ours = {"test_texts": Outcome(PASSED)}, {"test_texts": outcome}
    if is_fine:
        check_listed(control, ours, entries)
    else:
        with pytest.raises(AssertionError):
            check_listed(control, ours, entries)


def test_a_control_that_fails_allows_listed_failures():
    entries = [{**ENTRY, "state": FAILED}]
    control = {"test_texts": Outcome(FAILED, "Traceback")}
    check_listed(control, control, entries)
    with pytest.raises(AssertionError):
        check_listed(control, control, [])


def test_an_entry_for_what_passes_is_refused():
    check_needed({"test_texts": Outcome(SKIPPED, "no text")}, [ENTRY])
    check_needed({"test_texts": Outcome(PASSED)}, [{**ENTRY, "reason": "test requires MPS"}])
    with pytest.raises(AssertionError):
        check_needed({"test_texts": Outcome(PASSED)}, [ENTRY])
