"""Figures, intervals and verdicts from stored scores; read-only."""
