"""A strict reader of the HTML that the reports are made of."""

from html.parser import HTMLParser

_SHAPES = {"rect", "line", "circle", "path", "use"}


class Markup(HTMLParser):
    """Elements and texts of a page; reading fails where an element is not closed in its place."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[tuple[str, ...]] = []  # for each element, those around it
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), (tag, attrs)
        self.elements.append((tag, dict(attrs)))
        self.inside.append(tuple(self._open))
        if tag != "meta":
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in _SHAPES, tag
        self.elements.append((tag, dict(attrs)))
        self.inside.append(tuple(self._open))

    def handle_endtag(self, tag):
        assert self._open and self._open.pop() == tag, f"</{tag}> closes {self._open}"

    def handle_data(self, data):
        if self._open:
            self.texts.append((tuple(self._open), data))
        else:
            assert not data.strip(), data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of all elements of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, within: str = "body") -> str:
        """Return the texts inside a kind of element, separated by spaces."""
        return " ".join(text for around, text in self.texts if within in around)
