"""Official raw files, from their source into the operating system's cache folder.

The project ships no data: HetRec-LastFM is for non-commercial use (its readme.txt).
"""

from pathlib import Path

LASTFM_URL = "https://files.grouplens.org/datasets/hetrec2011/hetrec2011-lastfm-2k.zip"
LASTFM_MD5 = "296d61afe4e8632b173fc2dd3be20ce2"


def download(url: str, md5: str, marker: str, cache: Path | None = None) -> Path:
    """Download a ZIP archive once, check it, unpack it.

    Args:
        url: Of the archive.
        md5: Of the archive.
        marker: Name of a file inside it.
        cache: Folder to keep it in; by default `peft-ilora` in the system's cache folder.

    Returns:
        The folder that holds `marker`.

    Raises:
        FileNotFoundError: The archive cannot be had, or `marker` is not in it.
        ValueError: The checksum differs.
    """
    import pooch

    try:
        # With a processor, what comes back is the processor's result: the unpacked files' paths.
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
