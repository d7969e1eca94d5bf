"""The table of the benchmark says what the samples say."""

from __future__ import annotations

from bench import report
from bench.measure import Row, summary

ROW = Row(
    "create, start, wait, delete",
    "ms",
    {
        "shimd": summary([9.0, 10.0, 11.0]) | {"cpu_ms": 7.0},
        "crun": summary([20.0]) | {"cpu_ms": 9.0},
        "crun run": summary([8.0]),
        "runc": summary([50.0]) | {"cpu_ms": 30.0},
    },
    ("shimd/crun run <= 1.3", "shimd/crun run <= 1.0", "shimd <= 10.5"),
)


def test_a_summary_has_the_median_and_the_tail() -> None:
    assert summary(float(n) for n in range(1, 101)) == {"median": 50.5, "p90": 91.0, "min": 1.0, "n": 100}


def test_ratios_compare_medians() -> None:
    assert ROW.ratio("crun") == 0.5
    assert ROW.ratio("runc") == 0.2
    assert ROW.ratio("nobody") is None


def test_budgets_are_judged_as_ratios_or_figures() -> None:
    verdicts = [report.verdict(ROW, budget) for budget in ROW.budgets]
    assert verdicts == ["met", "missed (1.25)", "met"]  # 10 / 8 = 1.25


def test_the_table_has_a_line_for_each_row() -> None:
    text = report.markdown({"kernel": "6.1"}, [ROW], {"launch": summary([1.0])})
    assert "| create, start, wait, delete | ms | 10.0 | 20.0 | 50.0 | 0.50 | 0.20 | shimd/crun run <= 1.3: met" in text
    assert "| create, start, wait, delete | 7.00 ms | 9.00 ms | 30.0 ms |" in text
    assert "| launch | 1.00 | 1.00 |" in text
