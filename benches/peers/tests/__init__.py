"""Tests of what needs no namespace: statistics, table, chart, progress, and what a sample costs."""
