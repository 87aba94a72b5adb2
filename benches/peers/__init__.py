"""Pontoon beside its peers: one topology, one set of loads, the peers taking turns.

`run` is the door. topology.py makes the namespaces, field/ fills them with a peer's data plane, loads.py
drives it, cells.py lists what is driven, measure.py decides in which order and throws out disturbed
runs, and report.py and chart.py say what came of it.
"""
