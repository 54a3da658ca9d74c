"""What in a folder is the user's: not what systems and programs leave there."""


def is_left_by_a_program(name: str) -> bool:
    """Whether a file or folder of this name is a hidden one, or a copy that a program made for itself."""
    return name.startswith(".") or name in _MADE_BY_PROGRAMS


_MADE_BY_PROGRAMS = frozenset(
    {
        "@eaDir",
        "#recycle",
        "#snapshot",
        "__MACOSX",
        "__pycache__",
        "$RECYCLE.BIN",
        "System Volume Information",
        "lost+found",
    }
)
"""Synology's thumbnails, bin and snapshots, what macOS puts into zip files, Windows' bin and so on."""
