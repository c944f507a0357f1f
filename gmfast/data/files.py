"""Files of a folder by their suffixes."""

from pathlib import Path


def files_below(path: Path, suffixes: set[str]) -> list[Path]:
    """Files in a folder and below whose suffix is one of `suffixes`, sorted; hidden files are left out."""
    return sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in suffixes and not file.name.startswith(".") and file.is_file()
    )
