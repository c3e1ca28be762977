"""The errors that a user can cause: one message that names the value, the file and the remedy.

The command line prints them without a traceback. Each is also the built-in exception that a Python
caller would expect, so ``except ValueError`` keeps working.
"""


class I3DError(ValueError):
    """Base of every error that bad input can raise."""


class VideoError(I3DError):
    """A video that cannot be opened or decoded."""


class CheckpointError(I3DError):
    """A checkpoint that is missing, damaged or of another network."""


class DatasetError(I3DError):
    """A dataset, class list or shard that cannot be understood."""


class StorageError(I3DError):
    """A server or disk that cannot be read or written now; the data are not at fault.

    Jobs end with it, where they would skip what is damaged: after an outage they are run again.
    """


class UsageError(I3DError):
    """A mistake in the call itself; the command line exits with 2."""
