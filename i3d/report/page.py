"""What the HTML pages share: how templates are read, and how inline parts are allowed to run."""

import base64
import hashlib

from jinja2 import Environment, PackageLoader, StrictUndefined


def environment(package: str) -> Environment:
    """Templates of a package's folder ``templates``; whatever is put into them is escaped."""
    result = Environment(
        loader=PackageLoader(package),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    result.filters["percent"] = percent
    return result


def source(package: str, name: str) -> str:
    """Text of a file in a package's folder ``templates``."""
    text: str = PackageLoader(package).get_source(Environment(autoescape=True), name)[0]
    return text


def policy_hash(inline: str) -> str:
    """Of an inline style or script, as a Content-Security-Policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()}"


def percent(share: float, digits: int = 2) -> str:
    """A share in per cent, without the sign."""
    return f"{100 * share:.{digits}f}"
