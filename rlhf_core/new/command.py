"""What is typed after ``rlhf new``, and what it prints."""

from pathlib import Path

from ..contracts import CONTRACTS
from ..errors import UserError
from ..plugins import did_you_mean
from .name import Name
from .package import files, try_it

USAGE = "rlhf new KIND NAME [--folder DIR]"


def main(argv: list[str]) -> int:
    """``rlhf new KIND NAME [--folder DIR]``.

    Raises:
        UserError: no such kind, a name that a plugin cannot have, a folder that is not empty.
    """
    kind, text, folder = _arguments(argv)
    name = Name.of(kind, text)
    folder = folder or Path(name.module)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder}: is there already; choose another place by --folder DIR")
    name.refuse_taken()
    print(f"{folder}/")
    for path, content in files(name).items():
        file = folder / path
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{file}: cannot be written ({error.strerror}); choose another --folder") from error
        print(f"  {path}")
    print("\nnext:")
    for line in (f"cd {folder}", "pip install -e . pytest", "pytest", try_it(name)):
        print(f"  {line}")
    return 0


def _arguments(argv: list[str]) -> tuple[str, str, Path | None]:
    """Kind, name, and the folder where one is given."""
    words, rest, folder = [], iter(argv), None
    for word in rest:
        option, equals, value = word.partition("=")
        if option == "--folder":
            folder = value if equals else next(rest, "")
            if not folder:
                raise UserError(f"--folder: expected a folder; usage: {USAGE}")
        elif word.startswith("-"):
            raise UserError(f"{word}: no such option of rlhf new; there is --folder DIR")
        else:
            words.append(word)
    if len(words) != 2:
        raise UserError(f"new: expected a kind and a name, got {' '.join(words) or 'nothing'}; usage: {USAGE}")
    kind, name = words
    if kind not in CONTRACTS:
        raise UserError(f"{kind}: no such kind; there are: {', '.join(CONTRACTS)}{did_you_mean(kind, CONTRACTS)}")
    return kind, name, Path(folder).expanduser() if folder else None
