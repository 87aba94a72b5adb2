"""What a table says, and what it does not."""

import unittest

from peers.cells import CELLS, chosen
from peers.report import figure, markdown, row

CELL = next(cell for cell in CELLS if cell.name == "c2c.tcp1")


def results(*samples: dict) -> dict:
    """Results of two peers, a and b, with a as the subject."""
    return {
        "peers": ["a", "b"], "subject": "a", "about": {"a": "the subject", "b": "the other"},
        "left_out": {"c": "not installed"}, "machine": {"processors": 2},
        "plan": {"repeats": 3, "seconds": 4.0}, "samples": list(samples),
    }


def sample(peer: str, repeat: int, value: float, **more: object) -> dict:
    return {"cell": "c2c.tcp1", "peer": peer, "repeat": repeat, "value": value, "noisy": False, **more}


class Rows(unittest.TestCase):
    def test_a_ratio_is_the_median_of_the_turns(self) -> None:
        found = row(results(sample("a", 0, 10), sample("a", 1, 20), sample("b", 0, 20), sample("b", 1, 20)), CELL)
        ratio = found.entries["b"].ratio
        self.assertEqual((ratio.median, ratio.low, ratio.high), (1.5, 1.0, 2.0))

    def test_the_subject_spreads_about_its_own_median(self) -> None:
        own = row(results(sample("a", 0, 10), sample("a", 1, 30)), CELL).entries["a"].ratio
        self.assertEqual((own.median, own.low, own.high), (1.0, 0.5, 1.5))

    def test_a_failed_run_is_no_figure(self) -> None:
        failed = {"cell": "c2c.tcp1", "peer": "b", "repeat": 0, "error": "no route"}
        self.assertNotIn("b", row(results(sample("a", 0, 10), failed), CELL).entries)

    def test_without_the_subject_there_is_a_figure_and_no_ratio(self) -> None:
        entry = row(results(sample("b", 0, 10)), CELL).entries["b"]
        self.assertEqual((entry.absolute.median, entry.ratio), (10, None))


class Words(unittest.TestCase):
    def test_a_table_has_figures_spreads_ratios_and_marks(self) -> None:
        noisy = sample("b", 0, 20, noisy=True)
        said = markdown(results(sample("a", 0, 10), sample("a", 1, 10), noisy, sample("b", 1, 40)))
        self.assertIn("| 10.0 [10.0–10.0] | ~30.0 [20.0–40.0] **×3.00** [2.00–4.00] |", said)
        self.assertIn("1 of 4 runs were disturbed", said)

    def test_a_dash_has_its_reason_in_the_notes(self) -> None:
        failed = {"cell": "c2c.tcp8", "peer": "b", "repeat": 0, "error": "no route"}
        said = markdown(results({**sample("a", 0, 10), "cell": "c2c.tcp8"}, failed, sample("b", 0, 1)))
        self.assertRegex(said, r"c2c\.tcp8: .* \| 10\.0 \| – \|")
        self.assertIn("**b**, c2c.tcp8: no route.", said)
        self.assertIn("**c** was left out: not installed.", said)

    def test_figures_have_three_digits_that_matter(self) -> None:
        shown = [figure(value) for value in (0.0, 0.123, 1.234, 12.34, 123.4, 1234.5, 12345, 123456)]
        self.assertEqual(shown, ["0.00", "0.12", "1.23", "12.3", "123", "1234", "12.3 k", "123 k"])


class Choice(unittest.TestCase):
    def test_cells_have_names_of_their_own(self) -> None:
        self.assertEqual(len({cell.name for cell in CELLS}), len(CELLS))

    def test_globs_choose_in_the_order_of_the_table(self) -> None:
        self.assertEqual([cell.name for cell in chosen("start,c2c.tcp?")], ["c2c.tcp1", "c2c.tcp8", "start"])

    def test_a_glob_that_matches_nothing_is_a_mistake(self) -> None:
        with self.assertRaisesRegex(ValueError, "c2c.tpc1"):
            chosen("c2c.tpc1")


if __name__ == "__main__":
    unittest.main()
