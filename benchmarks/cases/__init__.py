"""The cases of ``bench.py``, one a file: what is compared, with whom, and the goal."""
