"""``rlhf bench report``: the rows of one or several results files, as Markdown, CSV or one HTML page."""

import argparse
import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

from ..errors import UserError
from .results import Results, Row, read
from .shown import COLUMNS, against_copies

FORMATS = ("md", "csv", "html")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"bench report: {message}; see rlhf bench --help")


def main(words: Sequence[str]) -> int:
    """``rlhf bench report FILE… --format md|csv|html [-o OUT]``; HTML goes to a file, the others to the terminal."""
    parser = _Parser(prog="rlhf bench report", add_help=False, allow_abbrev=False)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--format", choices=FORMATS, default="md")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT")
    given = parser.parse_args(words)
    found = [read(path) for path in given.files]
    text = _RENDER[given.format](found)
    output: Path | None = given.output or (given.files[0].with_suffix(".html") if given.format == "html" else None)
    if output is None:
        print(text, end="")
        return 0
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"bench report: {output} cannot be written ({error.strerror}); choose another -o") from error
    print(output)
    return 0


def markdown(found: Sequence[Results]) -> str:
    """Tables fit for a README, one an op."""
    return "\n".join(line for results in found for line in _markdown(results)) + "\n"


def _markdown(results: Results) -> Iterator[str]:
    yield f"{where(results)}.\n"
    columns = [name for name in COLUMNS if name != "implementation"]
    for op in dict.fromkeys(row.op for row in results.rows):
        rows = [row for row in results.rows if row.op == op]
        yield f"| `{op}` | implementation | {' | '.join(columns)} |"
        yield "|---|---|" + "---:|" * len(columns)
        case: tuple[str, ...] = ()
        for row in rows:
            first = f"{row.shown_shape}, {row.dtype}, {row.mode}" if row.case != case else ""
            case = row.case
            name = f"**{row.impl}**" if row.kind == "ours" else row.impl
            yield f"| {first} | {name} | {' | '.join(COLUMNS[column](row) for column in columns)} |"
        yield ""
        noisy = dict.fromkeys(row.shown_shape for row in rows if row.noisy)
        if noisy:
            yield f"NOISY, the machine was busy: {', '.join(noisy)}.\n"
        yield from (f"`{row.impl}` {row.shown_shape}: {text}.\n" for row in rows if (text := against_copies(row)))
        yield from (f"`{row.impl}` FAILED {row.shown_shape}: {row.reason}\n" for row in rows if row.status == "failed")
    if results.absent:
        absent = dict.fromkeys(f"{entry['impl']} ({entry['reason']})" for entry in results.absent)
        yield f"Not measured: {'; '.join(absent)}.\n"


def where(results: Results) -> str:
    """Where and when, in a line."""
    machine = results.machine
    versions = [f"{name} {number}" for name, number in machine["versions"].items() if number]
    parts = [machine["device"], f"{machine['threads']} threads", *versions]
    parts += [f"driver {machine['driver']}"] if machine.get("driver") else []
    parts += [f"commit {machine['commit']}"] if machine.get("commit") else []
    return f"{', '.join(parts)}; {results.created[:10]}"


def comma_separated(found: Sequence[Results]) -> str:
    """Every field of every row but the single times, with the device's name and the date."""
    text = io.StringIO()
    names = [field.name for field in fields(Row) if field.name != "times_ms"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, "machine", "commit", "created"])
    for results in found:
        of = (results.machine["device"], results.machine.get("commit"), results.created)
        writer.writerows([*(getattr(row, name) for name in names), *of] for row in results.rows)
    return text.getvalue()


def _html(found: Sequence[Results]) -> str:
    try:
        from .page import page  # plotly takes its time to import, and a GPU machine may lack it
    except ImportError as error:
        raise UserError(f"--format html: needs {error.name}; install it, or take --format md") from error
    return page(found)


_RENDER: dict[str, Callable[[Sequence[Results]], str]] = {"md": markdown, "csv": comma_separated, "html": _html}
