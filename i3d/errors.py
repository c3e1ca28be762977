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

# What a terminal or an eye is misled by: control characters of C0 and C1 but for the line's end,
# marks of the direction and other invisible ones (the joiners, which scripts need, are none), line
# and paragraph separators, tags, and halves of surrogate pairs, as the bytes of a name that is no
# text become.
STEERING = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
MAX_CHARACTERS = 2_000  # of a message; the longest path of Linux, which it may repeat, has 4,096


def hide_secrets(text: str) -> str:
    """A text in which every URL's user name, password, signature and token is ``***``."""
    if "://" not in text:
        return text
    return _SECRET.sub(r"\1***", _LOGIN.sub("***@", text))


def shown(text: str) -> str:
    """A text for a person: without a URL's secrets, and with what a terminal would obey escaped.

    Names and values from files may hold the sequences that move its cursor or set its title, and
    halves of characters that no file and no screen takes. Line ends stay.
    """
    return STEERING.sub(lambda found: ascii(found[0])[1:-1], hide_secrets(text))


class I3DError(ValueError):
    """Base of every error that bad input can raise.

    Its message is fit to be shown, whatever it repeats (see `shown`), and has a screen's length.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*(_cut(shown(a)) if isinstance(a, str) else a for a in arguments))


def _cut(text: str) -> str:
    """The beginning, which names the file, and the end, which names the remedy."""
    if len(text) <= MAX_CHARACTERS:
        return text
    half = MAX_CHARACTERS // 2 - 5
    return f"{text[:half]} ... {text[-half:]}"


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
