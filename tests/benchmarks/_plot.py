"""The plot of the documentation: ``python -m tests.benchmarks._plot < OUTPUT > FILE.svg``.

``OUTPUT`` is what ``python -m tests.benchmarks drain`` printed. Bars of messages a second, and
the CPU of a message beside them. In the reader's colours, light or dark.
"""

from __future__ import annotations

import re
import sys
from html import escape

WIDTH, LABEL, BAR, ROW, TOP = 720, 210, 330, 26, 34
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600 } .number { text-anchor: end } .quiet { fill: #59636e }
rect { fill: #afb8c1 } .ours { fill: #0969da }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .quiet { fill: #9198a1 } rect { fill: #484f58 } .ours { fill: #4493f8 }
}
"""


def main(output: str) -> str:
    """Return the SVG of a benchmark's output."""
    tables = re.findall(r"^answers after (\d+ ms).*\n((?:.+\n)+)", output, re.MULTILINE)
    parts, y = [], 0
    for delay, lines in tables:
        rows = [re.split(r"\s{2,}", line.strip()) for line in lines.splitlines()]
        figures = [(name, float(rate.replace(",", "")), cpu) for name, rate, _, cpu, *_ in rows]
        most = max(rate for _, rate, _ in figures)
        title = f"SES answers after {delay}: messages a second"
        parts.append(f'<text class="title" x="0" y="{y + 20}">{title}</text>')
        parts.append(f'<text class="quiet number" x="{WIDTH}" y="{y + 20}">CPU of one, µs</text>')
        y += TOP
        for name, rate, cpu in figures:
            kind = ' class="ours"' if name.startswith("connect_mailer") else ""
            width = max(rate / most * BAR, 1)
            parts += [
                f'<text x="0" y="{y + 15}">{escape(name)}</text>',
                f'<rect{kind} x="{LABEL}" y="{y}" width="{width:.0f}" height="{ROW - 6}" rx="2"/>',
                f'<text x="{LABEL + width + 6:.0f}" y="{y + 15}">{rate:,.0f}</text>',
                f'<text class="quiet number" x="{WIDTH}" y="{y + 15}">{escape(cpu)}</text>',
            ]
            y += ROW
        y += 12
    size = f'viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}"'
    label = "Messages a second and CPU of a message: the table above as bars"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{label}">\n'
        f"<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


if __name__ == "__main__":
    sys.stdout.write(main(sys.stdin.read()))
