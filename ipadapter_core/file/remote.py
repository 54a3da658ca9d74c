"""Whether a file lies on this machine: what is mapped from a share ends the program when the share disappears."""

import os
import re
import stat
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")  # of Linux; elsewhere nothing is told of mounts
_NETWORK = re.compile(
    r"nfs\d*|cifs|smb\d*|smbfs|9p|afs|ncpfs|davfs|fuse\.(sshfs|rclone|s3fs|gcsfuse|davfs2?|curlftpfs|goofys|mount-s3|drive)"
)
_RECALLED = 0x00400000 | 0x00040000 | 0x00001000  # Windows: recall on data access, recall on open, offline
_DATALESS = 0x40000000  # macOS: SF_DATALESS


def where_remote(path: Path, status: os.stat_result) -> str | None:
    """Where a file lies if that is not this machine, in words; None if it is here, or nobody tells."""
    attributes, flags = getattr(status, "st_file_attributes", 0), getattr(status, "st_flags", 0)
    if attributes & _RECALLED or (flags & _DATALESS and stat.S_ISREG(status.st_mode)):
        return "a cloud folder that fetches it when it is read"
    try:
        mounts = _MOUNTS.read_text(encoding="utf-8", errors="replace")
        kind = mount_kind(os.path.realpath(path), mounts)
    except OSError:
        return None
    return f"a network share ({kind})" if _NETWORK.fullmatch(kind) else None


def mount_kind(path: str, mounts: str) -> str:
    """The kind of file system a path lies on, by the lines of `/proc/self/mountinfo`; empty if none has it."""
    best, kind = -1, ""
    for line in mounts.splitlines():
        here, _, there = line.partition(" - ")
        fields = here.split(" ")
        if len(fields) < 5 or not there:
            continue
        point = re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), fields[4])
        is_below = path == point or path.startswith(f"{point.rstrip('/')}/")
        if is_below and len(point) >= best:  # of two on one point, the later lies above
            best, kind = len(point), there.split(" ")[0]
    return kind
