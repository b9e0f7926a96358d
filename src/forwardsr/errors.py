"""The one exception that stands for a user's mistake.

The command line prints its message on one line and exits with code 2; everything else is a bug and keeps its traceback.
"""


class UserError(Exception):
    """Bad usage or bad input. The message is one line that names the flag or the file, and the remedy."""
