"""CSV that opens in a spreadsheet and does nothing there.

A spreadsheet takes a cell that begins with ``=``, ``+``, ``-`` or ``@`` for a formula, quoted or
not, and a video may be called ``=HYPERLINK("http://...")``. So a text that begins so, or with an
apostrophe, gets an apostrophe in front: ``'=HYPERLINK(...)``, which is shown as it stands. Readers
take the first one off: `read_cell`. Numbers stay numbers.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

# Also what spreadsheets skip before a formula, and the wide forms that some locales take for it.
_BEGINNINGS = tuple("=+-@\t\r\n'\uff1d\uff0b\uff0d\uff20")
_SPECIAL = re.compile(r'[,"\r\n]')


def write_cell(text: str) -> str:
    """A text as it stands in a cell, where it is no formula."""
    return f"'{text}" if text.startswith(_BEGINNINGS) else text


def read_cell(cell: str) -> str:
    """The text that `write_cell` was given."""
    return cell.removeprefix("'")


def write_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """A table as CSV in UTF-8 with a line a row: see `write_rows`."""
    return write_rows(chain([header], rows))


def write_rows(rows: Iterable[Sequence[Any]]) -> bytes:
    """Rows of a table, a line each; texts go through `write_cell`, all else as `str`.

    What UTF-8 cannot encode, a name that is none, is written as ``\\udcff``.
    """
    lines = (
        ",".join(_quote(write_cell(v) if isinstance(v, str) else str(v)) for v in row)
        for row in rows
    )
    return "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace")


def _quote(cell: str) -> str:
    # csv.writer quotes no "\r" where lines end in "\n", and no reader takes it for part of a cell
    return '"{}"'.format(cell.replace('"', '""')) if _SPECIAL.search(cell) else cell
