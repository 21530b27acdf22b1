"""`rlhf report`: one HTML file from run folders alone."""

import argparse
import os
from pathlib import Path
from typing import NoReturn

from rlhf_core.errors import UserError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"report: {message}; see `rlhf report --help`")


def main(argv: list[str]) -> int:
    """Run `rlhf report` with these arguments; prints the path of the page.

    One folder gets its page inside it, several get `comparison.html` in the present folder.

    Raises:
        UserError: a folder holds no run, or the page cannot be written.
    """
    parser = _Parser(prog="rlhf report", add_help=False)  # `rlhf report --help` is the command line's own
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--output", type=Path, metavar="FILE")
    chosen = parser.parse_args(argv)
    # A sweep's `folder/*` also names its multirun.yaml.
    folders = [path for path in chosen.folders if not path.is_file()] or chosen.folders
    default = Path("comparison.html") if len(chosen.folders) > 1 else folders[0] / "report.html"
    print(write_report(folders, chosen.output or default))
    return 0


def write_report(folders: list[Path], output: Path) -> Path:
    """Write the page of these folders: of one run or pipeline, or of several, compared.

    Args:
        folders: run, pipeline or sweep folders, at least one.
        output: the file to write; an older one is replaced whole.

    Returns:
        `output`.

    Raises:
        UserError: a folder holds no run, or `output` cannot be written.
    """
    # Here and not above, as jinja2 and plotly take their time to import.
    from rlhf_core.report.page import render_comparison, render_pipeline
    from rlhf_core.report.read import read

    found = [pipeline for folder in folders for pipeline in read(folder)]
    if len(found) == 1:
        page = render_pipeline(found[0])
    else:
        page = render_comparison(found, folders[0].resolve().name if len(folders) == 1 else "Comparison")
    _write(output, page)
    return output


def _write(output: Path, page: str) -> None:
    draft = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(page, encoding="utf-8")
        draft.replace(output)
    except OSError as error:
        draft.unlink(missing_ok=True)
        why = f"report: {output} cannot be written ({error.strerror}); choose another file with --output"
        raise UserError(why) from error
