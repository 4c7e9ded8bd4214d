"""Official archives of raw files, which are downloaded into the system's cache folder.

The project ships no data: HetRec-LastFM is for non-commercial use (its readme.txt), and MovieLens
may not be passed on (its README).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.datasets.folders import folder_with


@dataclass(frozen=True)
class Archive:
    """A ZIP archive, as its publisher offers it."""

    url: str
    md5: str
    """MD5 checksum of the archive."""

    def files(self, source: Path | None, names: Sequence[str]) -> dict[str, Path]:
        """Find files of the unpacked archive.

        Args:
            source: See `folder_with`; None downloads the archive.
            names: Names of the files.

        Returns:
            The files' paths, by name.

        Raises:
            FileNotFoundError: A file is missing, or the archive cannot be downloaded.
            ValueError: The downloaded archive is not the official one, or several folders hold the
                files.
        """
        folder = (
            download(self.url, self.md5, names[-1])
            if source is None
            else folder_with(source, names)
        )
        for name in names:
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"{folder / name} is missing: unzip {self.url} and pass the folder that holds "
                    f"{name} as --source, or leave the option out to download it"
                )
        return {name: folder / name for name in names}

    def altered(self, path: Path, reason: str) -> ValueError:
        """Return the error of a file that is not the one in the archive."""
        return ValueError(
            f"{path} is not the official file, or is truncated: {reason}. Unzip {self.url} "
            f"(md5 {self.md5}) again"
        )


def download(url: str, md5: str, marker: str, cache: Path | None = None) -> Path:
    """Download a ZIP archive once, check it, unpack it.

    Args:
        url: Address of the archive.
        md5: MD5 checksum of the archive.
        marker: Name of a file in the archive, by which its folder is found.
        cache: Folder in which the archive is kept; None stands for `peft-ilora` in the system's
            cache folder.

    Returns:
        The unpacked folder that contains `marker`.

    Raises:
        FileNotFoundError: The archive cannot be downloaded, or does not contain `marker`.
        ValueError: The archive's checksum differs from `md5`.
    """
    import pooch

    try:
        # With a processor, `retrieve` returns the processor's result: the unpacked files' paths.
        names = pooch.retrieve(
            url,
            known_hash=f"md5:{md5}",
            path=cache or pooch.os_cache("peft-ilora"),
            processor=pooch.Unzip(),
            progressbar=True,
        )
    except OSError as error:
        raise FileNotFoundError(
            f"{url} cannot be downloaded ({error}). Without a network, fetch it elsewhere, unzip "
            "it and pass its folder as --source"
        ) from error
    for name in names:
        if Path(name).name == marker:
            return Path(name).parent
    raise FileNotFoundError(f"{url} holds no {marker}")
