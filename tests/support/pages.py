"""An HTML page as a tree; what is not well-formed is an error."""

import base64
import hashlib
from dataclasses import dataclass, field
from html.parser import HTMLParser

import cv2
import numpy as np


@dataclass
class Element:
    tag: str
    attributes: dict
    children: list = field(default_factory=list)

    @property
    def text(self):
        pieces = [c if isinstance(c, str) else c.text for c in self.children]
        return " ".join("".join(pieces).split())

    def all(self, tag=None, **attributes):
        """Elements below, with these attributes; `class_` is one of the classes."""
        wanted = attributes.pop("class_", None)
        for child in self.children:
            if isinstance(child, str):
                continue
            if (
                (tag is None or child.tag == tag)
                and (wanted is None or wanted in child.attributes.get("class", "").split())
                and all(child.attributes.get(k) == v for k, v in attributes.items())
            ):
                yield child
            yield from child.all(tag, **attributes, **({"class_": wanted} if wanted else {}))

    def one(self, tag=None, **attributes):
        (element,) = self.all(tag, **attributes)
        return element

    def rows(self):
        """Of a table's body: the texts of the cells."""
        return [[c.text for c in row.children if c != "\n"] for row in self.one("tbody").all("tr")]


VOID = {"meta", "link", "input", "img"}  # elements of the page that have no end tag


class Reader(HTMLParser):
    """Builds the tree; an end tag that does not fit is an error."""

    def __init__(self):
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"an attribute of {tag} is there twice"
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag, f"</{tag}> at line {self.getpos()[0]}"

    def handle_data(self, data):
        self.open[-1].children.append(data)


def read(location):
    reader = Reader()
    reader.feed(location.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == [reader.root], "an element is not closed"
    return reader.root


def policy(page):
    """The rules of a page's Content-Security-Policy."""
    (element,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    return dict(rule.split(" ", 1) for rule in element.attributes["content"].split("; "))


def inline_hash(page, tag):
    """The source that lets a page's style or script in, computed from its text."""
    digest = hashlib.sha256(page.one(tag).children[0].encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def decode_picture(source):
    """The pixels, uint8 (H, W, 3) RGB, of a data URI."""
    kind, data = source.split(",")
    assert kind == "data:image/jpeg;base64"
    jpeg = np.frombuffer(base64.b64decode(data, validate=True), np.uint8)
    return cv2.cvtColor(cv2.imdecode(jpeg, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
