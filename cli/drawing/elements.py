"""Elements of SVG. Every text goes through ElementTree, which escapes it, and its control
characters become visible before: XML knows none, however they are written."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from cli.drawing.words import printable


def clean(text: str) -> str:
    """XML knows no control characters, however they are written."""
    return "\n".join(printable(line) for line in text.split("\n"))


def add(parent: ET.Element, tag: str, text: str = "", css: str = "") -> ET.Element:
    element = ET.SubElement(parent, tag)
    if css:
        element.set("class", css)
    if text:
        element.text = text if tag == "style" else clean(text)
    return element


def rect(
    parent: ET.Element, x: int, y: int, width: int, height: int, radius: int, css: str
) -> None:
    rect = add(parent, "rect", css=css)
    for name, value in (("x", x), ("y", y), ("width", width), ("height", height), ("rx", radius)):
        rect.set(name, str(value))


def label_at(parent: ET.Element, x: int, y: int, text: str, css: str, anchor: str = "") -> None:
    element = add(parent, "text", text, css)
    element.set("x", str(x))
    element.set("y", str(y))
    if anchor:
        element.set("text-anchor", anchor)
