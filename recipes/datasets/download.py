"""Downloads official raw files into the operating system's cache folder.

The project ships no data: HetRec-LastFM is for non-commercial use (its readme.txt), and MovieLens
may not be passed on (its README).
"""

from pathlib import Path

LASTFM_URL = "https://files.grouplens.org/datasets/hetrec2011/hetrec2011-lastfm-2k.zip"
LASTFM_MD5 = "296d61afe4e8632b173fc2dd3be20ce2"
MOVIELENS_URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
MOVIELENS_MD5 = "0e33842e24a9c977be4e0107933c0723"


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
