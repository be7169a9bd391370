"""Runs a class of unittest's tests and tells what became of each."""

import contextlib
import io
import traceback
import unittest
import warnings
from typing import Any, NamedTuple

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


class Outcome(NamedTuple):
    """What became of a test, and why."""

    state: str
    reason: str = ""
    """Of a skipped test its reason, of a failed one its traceback."""


def outcomes(case: type[unittest.TestCase]) -> dict[str, Outcome]:
    """The outcome of each test of a class, by the test's name."""
    result = _Outcomes()
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(case)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        suite.run(result)
    assert not result.of_class, result.of_class
    return result.found


class _Outcomes(unittest.TestResult):
    """Keeps one outcome a test; a failure of a part fails the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Outcome] = {}
        self.of_class: list[str] = []

    def addSuccess(self, test: unittest.TestCase) -> None:
        self.found.setdefault(test._testMethodName, Outcome(PASSED))

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        whole = getattr(test, "test_case", test)  # of a part
        self.found[whole._testMethodName] = Outcome(SKIPPED, reason)

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        outcome = Outcome(FAILED, "".join(traceback.format_exception(*err)))
        name = getattr(test, "_testMethodName", None)
        if name is None:  # setting up or tearing down the class
            self.of_class.append(outcome.reason)
        else:
            self.found[name] = outcome

    addError = addFailure

    def addSubTest(self, test: unittest.TestCase, subtest: Any, err: Any) -> None:
        if err is not None:
            self.addFailure(test, err)
