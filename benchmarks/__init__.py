"""Yardsticks and measurements: honest baselines, and what times them."""
