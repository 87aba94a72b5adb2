"""A chart is a document, shows every peer, and turns over what is better when less."""

import unittest
from xml.etree import ElementTree

from peers.chart import COLOURS, SHAPES, chart, goodness, scale
from peers.report import Entry, Row
from peers.stats import Summary


def one(label: str, more_is_better: bool, **ratios: tuple[float, float, float]) -> Row:
    entries = {name: Entry(name, Summary(5, 4, 6, 3), Summary(*ratio, 3), False) for name, ratio in ratios.items()}
    return Row(label, "about <it>", "µs", more_is_better, entries)


class Charts(unittest.TestCase):
    def test_less_is_better_is_turned_over(self) -> None:
        self.assertEqual(goodness(one("rtt", False, b=(2.0, 1.0, 4.0)), "b"), (0.5, 0.25, 1.0))
        self.assertEqual(goodness(one("tcp", True, b=(2.0, 1.0, 4.0)), "b"), (2.0, 1.0, 4.0))

    def test_a_chart_is_well_formed_and_names_everybody(self) -> None:
        rows = [one("rtt & more", False, a=(1, 1, 1), b=(2, 1, 4)), one("tcp", True, a=(1, 1, 1), c=(0.5, 0.4, 0.6))]
        drawn = chart(rows, ["a", "b", "c"], "a")
        words = [each.text for each in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
        for word in ("b", "c", "rtt & more", "tcp", "1×"):
            self.assertIn(word, words)

    def test_a_chart_of_nothing_is_still_a_document(self) -> None:
        ElementTree.fromstring(chart([], ["a"], "a"))

    def test_the_axis_holds_every_value_between_ticks(self) -> None:
        self.assertEqual(scale([0.3, 1.5]), (0.2, 2))
        self.assertEqual(scale([]), (0.5, 2))
        self.assertEqual(scale([0.0001, 1e6]), (0.01, 100))

    def test_no_two_peers_look_alike(self) -> None:
        looks = {(COLOURS[i % len(COLOURS)], SHAPES[i % len(SHAPES)]) for i in range(20)}
        self.assertEqual(len(looks), 20)


if __name__ == "__main__":
    unittest.main()
