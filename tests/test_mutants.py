"""The lists of mutants, which are too slow to be tried here, fit the program and the tests of today."""

from __future__ import annotations

from tests.mutants.__main__ import ROOT, read_mutants


def test_every_mutant_breaks_a_line_that_is_there_and_names_a_test_that_is() -> None:
    mutants = read_mutants(ROOT / "tests" / "mutants")
    assert len(mutants) > 100
    for mutant in mutants:
        assert (ROOT / mutant.file).read_text(encoding="utf-8").split("\n").count(mutant.old) == 1, mutant
        file, _, test = mutant.test.partition("::")
        assert f"def {test.partition('[')[0]}" in (ROOT / file).read_text(encoding="utf-8"), mutant
        assert mutant.new != mutant.old, mutant
