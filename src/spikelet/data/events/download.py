"""Archives from the web: continued where they stopped, checked, unpacked once."""

from __future__ import annotations

import hashlib
import http.client
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spikelet.errors import UserError

CHUNK = 2**20
SECONDS = 60  # without a byte
AGENT = "spikelet"


@dataclass(frozen=True)
class Archive:
    """A file to fetch.

    Attributes:
        name: of the file.
        md5: of its content, as its publisher or other loaders state it.
        urls: where it is, tried in order; none where no host gives it to a program.
        page: where a person finds it.
    """

    name: str
    md5: str
    urls: tuple[str, ...]
    page: str


def fetch_all(archives: Sequence[Archive], folder: Path) -> None:
    """Fetches and unpacks archives into a folder; what lies there already is only checked.

    Raises:
        UserError: if a host refuses or sends something else: which file to put where by hand.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"data_root={folder}", f"it cannot be written ({error.strerror})", "name another folder"
        ) from error
    for archive in archives:
        fetch(archive, folder)
    for archive in archives:
        unpack(folder / archive.name, folder)


def fetch(archive: Archive, folder: Path) -> None:
    """One archive, checked: what is there, else what the first of its addresses gives."""
    path, reasons = folder / archive.name, []
    if path.is_file():
        if md5(path) == archive.md5:
            return
        reasons.append(f"{path} is another file: its MD5 differs")
    for url in archive.urls if not reasons else ():
        try:
            _continued(url, path.with_name(f"{path.name}.part"))
        except (OSError, http.client.HTTPException, urllib.error.URLError) as error:
            reasons.append(f"{url}: {error}")
            continue
        if _accepted(path, archive.md5):
            return
        reasons.append(f"{url} sent something else: its MD5 differs")
    what = "; ".join(reasons) or "no address gives it to a program"
    raise UserError(
        "download=True",
        f"{archive.name} could not be fetched ({what[:300]})",
        f"download it in a browser from {archive.page}, put it into {folder}, and repeat the "
        "command: it will be checked and unpacked",
    )


def _continued(url: str, part: Path) -> None:
    """Downloads into a partial file, behind what is there if the server can do that."""
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": AGENT} | ({"Range": f"bytes={start}-"} if start else {})
    request = urllib.request.Request(url, headers=headers)
    try:
        answer = urllib.request.urlopen(request, timeout=SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            return  # all of it is there
        raise
    with answer:
        follows = answer.status == http.client.PARTIAL_CONTENT
        expected = answer.headers.get("Content-Length")
        written = 0
        with part.open("ab" if follows else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                written += len(chunk)
        if expected is not None and written < int(expected):
            raise OSError(f"the connection ended after {written} of {expected} bytes")


def _accepted(path: Path, expected: str) -> bool:
    """Whether a partial file is the whole archive, which then takes its name; else it goes."""
    part = path.with_name(f"{path.name}.part")
    if md5(part) == expected:
        part.replace(path)
        return True
    part.unlink()
    return False


def md5(path: Path) -> str:
    """The MD5 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def unpack(path: Path, folder: Path) -> None:
    """Unpacks a zip or tar archive, and zip archives that came out of it.

    Raises:
        UserError: if it is damaged.
    """
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                archive.extractall(folder)
                inner = [name for name in archive.namelist() if name.endswith(".zip")]
            for name in inner:
                unpack(folder / name, (folder / name).parent)
        else:
            with tarfile.open(path) as archive:
                archive.extractall(folder, filter="data")
    except (zipfile.BadZipFile, tarfile.TarError, OSError, EOFError) as error:
        raise UserError(str(path), f"it cannot be unpacked ({error})", "fetch it again") from error
