"""A job's settings: frozen dataclasses whose fields are the command line's options, too.

    @dataclass(frozen=True)
    class Options:
        frames: int = option(250, "Of each clip.")
        stride: int | None = option(None, "Take every so many frames.", default_is="1")
        flow: bool = option(True, "RGB frames alone.", flag="--no-flow")

So an option is said once: its name, type and default are the field's, its help, which documents the
field too, stands beside them, and its check in the dataclass's ``__post_init__``. `i3d.command`
makes click's options of it.
"""

from dataclasses import MISSING, dataclass, field
from typing import Any

METADATA = "i3d option"
COMMON = ""  # the heading of what most need
AUTO = "N|auto"  # the placeholder of a number that may be left to us


@dataclass(frozen=True)
class Option:
    """What the command line says of a field.

    Attributes:
        help: one sentence.
        flag: long option; "" is the field's name with hyphens. ``--no-NAME`` of a field that is
            true by default makes it false.
        metavar: placeholder of the value; "" is by the field's type.
        default_is: text in place of a default of None.
        heading: in ``--help-all``, where rare options stand in groups; `COMMON` is the first page.
        required: whether it must be given.
    """

    help: str
    flag: str = ""
    metavar: str = ""
    default_is: str = ""
    heading: str = COMMON
    required: bool = False


def option(
    default: Any,
    help: str,  # as click calls it
    *,
    flag: str = "",
    metavar: str = "",
    default_is: str = "",
    heading: str = COMMON,
) -> Any:
    """A dataclass field with a default that is an option of the command line; see `Option`."""
    described = Option(help, flag, metavar, default_is, heading)
    return field(default=default, metadata={METADATA: described})


def required_option(help: str, *, flag: str = "", metavar: str = "") -> Any:
    """A dataclass field without a default that is an option which must be given."""
    described = Option(help, flag, metavar, required=True)
    return field(default=MISSING, metadata={METADATA: described})
