"""Figures and self-contained pages made from Runs."""
