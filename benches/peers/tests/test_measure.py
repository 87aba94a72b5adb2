"""What is noise, what a run costs, how long it will take, and what --pontoon means."""

import unittest

from peers.command import build_of
from peers.machine import Between, Reading, between
from peers.measure import costs
from peers.progress import bar, clock, time_left


class Noise(unittest.TestCase):
    def test_what_others_used_is_noise(self) -> None:
        seen = between(Reading(0, 0, 0, {"7": 1.0}), Reading(2, 3, 0, {"7": 1.5}))
        self.assertEqual((seen.foreign, seen.busy, seen.noisy), (0.25, 1.5, True))

    def test_a_process_that_came_counts_no_more_than_a_core(self) -> None:
        self.assertEqual(between(Reading(0, 0, 0, {}), Reading(2, 0, 0, {"8": 90.0})).foreign, 1.0)

    def test_stolen_time_is_noise_and_quiet_is_quiet(self) -> None:
        self.assertTrue(Between(1, 1, 0.3, 0).noisy)
        self.assertFalse(Between(1, 2, 0.1, 0.05).noisy)


class Costs(unittest.TestCase):
    QUIET = Between(2.0, 1.5, 0, 0.05)
    LOUD = Between(2.0, 1.5, 0, 0.5)

    def test_a_forwarder_is_charged_and_so_is_the_machine_but_for_others(self) -> None:
        found = costs({"octets": 2_000_000_000}, 1.0, True, self.QUIET)
        self.assertEqual(found, {"cpu_per_gb": 0.5, "machine_per_gb": 1.45})

    def test_what_has_no_forwarder_has_no_cost_of_one(self) -> None:
        self.assertEqual(costs({"octets": 2_000_000_000}, 0.0, False, self.QUIET), {"machine_per_gb": 1.45})

    def test_a_loud_machine_is_not_charged(self) -> None:
        self.assertEqual(costs({"octets": 2_000_000_000}, 1.0, True, self.LOUD), {"cpu_per_gb": 0.5})

    def test_datagrams_are_charged_one_by_one(self) -> None:
        self.assertEqual(costs({"packets": 1_000_000}, 2.0, True, self.QUIET), {"cpu_per_datagram": 2.0})


class Progress(unittest.TestCase):
    def test_time_left_is_the_rest_at_the_pace_so_far(self) -> None:
        self.assertEqual(time_left(30, 10, 40), 90)
        self.assertEqual(time_left(1, 0, 40), 40)

    def test_clocks_and_bars(self) -> None:
        self.assertEqual([clock(s) for s in (0, 61, 3661)], ["0:00", "1:01", "1:01:01"])
        self.assertEqual([bar(s, 4) for s in (0, 0.5, 2)], ["░░░░", "██░░", "████"])


class Builds(unittest.TestCase):
    def test_a_build_has_a_name_a_path_and_flags(self) -> None:
        found = build_of("one=/opt/pontoon --workers 1 -- ,splice")
        self.assertEqual((found.name, found.binary), ("one", "/opt/pontoon"))
        self.assertEqual((found.daemon_flags, found.spec), (("--workers", "1"), ",splice"))

    def test_a_path_alone_is_pontoon_and_a_dash_is_built(self) -> None:
        self.assertEqual((build_of("/opt/p").name, build_of("/opt/p").binary), ("pontoon", "/opt/p"))
        self.assertEqual((build_of("x=- --busy-poll=9").binary, build_of("x=- --busy-poll=9").restless), ("", True))


if __name__ == "__main__":
    unittest.main()
