"""Medians, spreads and ratios."""

import unittest

from peers.stats import ratios, summary


class Summaries(unittest.TestCase):
    def test_nothing_has_no_summary(self) -> None:
        self.assertIsNone(summary([]))

    def test_few_values_spread_to_their_extremes(self) -> None:
        found = summary([3.0, 1.0, 2.0])
        self.assertEqual((found.median, found.low, found.high, found.count), (2.0, 1.0, 3.0, 3))

    def test_five_values_spread_to_their_quartiles(self) -> None:
        found = summary([100.0, 1.0, 3.0, 2.0, 4.0])
        self.assertEqual((found.median, found.low, found.high), (3.0, 2.0, 4.0))

    def test_a_quartile_may_lie_between_two_values(self) -> None:
        self.assertEqual(summary([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).low, 2.25)


class Ratios(unittest.TestCase):
    def test_each_repeat_is_held_against_the_same_repeat(self) -> None:
        # The machine halves its speed in the second turn; the ratio does not care.
        self.assertEqual(ratios({0: 10.0, 1: 5.0}, {0: 20.0, 1: 10.0}), [0.5, 0.5])

    def test_a_turn_that_one_of_them_missed_is_left_out(self) -> None:
        self.assertEqual(ratios({0: 10.0, 2: 30.0}, {1: 10.0, 2: 10.0}), [3.0])

    def test_nothing_is_divided_by_zero(self) -> None:
        self.assertEqual(ratios({0: 1.0}, {0: 0.0}), [])


if __name__ == "__main__":
    unittest.main()
