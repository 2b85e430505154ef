"""MMLU: its sources, letters read from answers, scores by category."""
