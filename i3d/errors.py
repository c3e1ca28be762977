"""The errors that a user can cause: one message that names the value, the file and the remedy.

The command line prints them without a traceback. Each is also the built-in exception that a Python
caller would expect, so ``except ValueError`` keeps working.
"""

import re
from typing import Any

_LOGIN = re.compile(r"(?<=://)[^\s/?#\"'<>]*@")
# A parameter of a URL that signs it or lets its bearer in; ";" is the end of an HTML page's &amp;
_SECRET = re.compile(
    r"""([?&;](?:[\w.~%-]{0,64}(?:signature|token|secret|passw|pwd|auth|credential|key|hmac|jwt|policy
    |session)[\w.~%-]{0,64}|sig|hdnts|hdnea)=)[^&\#\s"'<>]*[^&\#\s"'<>:;,.)]""",
    re.IGNORECASE | re.VERBOSE,
)


def hide_secrets(text: str) -> str:
    """A text in which every URL's user name, password, signature and token is ``***``."""
    if "://" not in text:
        return text
    return _SECRET.sub(r"\1***", _LOGIN.sub("***@", text))


class I3DError(ValueError):
    """Base of every error that bad input can raise; its message holds no password of a URL."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*(hide_secrets(a) if isinstance(a, str) else a for a in arguments))


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
