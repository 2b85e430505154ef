"""Experiments as tables: commands, results, statistics, formats, and the report."""
