"""The HTML page of a table: one file that loads nothing, for screens, phones, print and screen readers."""

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from fedfms.reporting.tables.plots import Figure
from fedfms.reporting.tables.sheets import Sheet

# Sorts a table by the clicked column: numbers descending, names ascending; cells without a number stay at the bottom.
# Without scripts the page is the same, unsorted.
_SCRIPT = """
for (const table of document.querySelectorAll('table.sorts')) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement('button');
    button.type = 'button';
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener('click', () => {
      const names = head.classList.contains('name');
      const first = names ? 'ascending' : 'descending', other = names ? 'descending' : 'ascending';
      const order = head.getAttribute('aria-sort') === first ? other : first;
      heads.forEach(h => h.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', order);
      const sign = order === 'ascending' ? 1 : -1;
      const of = row => names ? row.cells[column].textContent : parseFloat(row.cells[column].dataset.value);
      body.append(...[...body.rows].sort((a, b) => {
        const x = of(a), y = of(b);
        if (names) return sign * x.localeCompare(y, 'en', {numeric: true});
        return Number.isNaN(x) - Number.isNaN(y) || sign * (x - y) || 0;
      }));
    });
  });
}
"""


@dataclass(frozen=True)
class Part:
    """The page's content for one study in one protocol."""

    name: str
    missing: str
    notes: Sequence[str]
    scores: Sequence[Sheet]
    best: Sequence[Sheet]
    published: Sequence[Sheet]
    tests: Sequence[Sheet]
    figures: Sequence[Figure]
    cost: Sheet

    @property
    def sheets(self) -> list[Sheet]:
        """All sheets, in their order in table.md."""
        return [*self.scores, *self.best, *self.published, *self.tests, self.cost]


def make_page(
    parts: Sequence[Part], curves: Figure, command: str, made_with: Sequence[tuple[str, str]], title: str
) -> str:
    """The page. All texts are escaped, and the content security policy allows only the page's own script."""
    environment = Environment(
        loader=PackageLoader("fedfms.reporting", "tables"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {"svg": inline_svg, "breaks": breaks}
    return environment.get_template("page.html.jinja").render(
        parts=parts, curves=curves, command=command, made_with=made_with, title=title, script=Markup(_SCRIPT),
        script_hash=base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode(),
    )  # fmt: skip


def breaks(name: str) -> Markup:
    """A name with line break opportunities between its parts."""
    return Markup(re.sub(r"([_,/-])(?=\w)", r"\1<wbr>", str(escape(name))))


def inline_svg(figure: Figure) -> Markup:
    """The figure for inclusion in HTML: no prolog, no name spaces (HTML implies them), its description as label."""
    text = figure.svg.decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # unused here, and not unique across figures
    text = text.replace("xlink:href=", "href=").replace('<style type="text/css">*', "<style>figure svg *")
    return Markup(text).replace("<svg ", Markup('<svg role="img" aria-label="{}" ').format(figure.description), 1)
