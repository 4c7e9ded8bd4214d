"""Which column is which: named by the user, or guessed by well-known names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from recipes.datasets.sources.source import Source
from recipes.experiment import CustomConfig

KNOWN = {
    "user": "user userid uid username reviewer reviewerid customer customerid visitor visitorid",
    "item": (
        "item itemid iid asin parentasin product productid movie movieid film filmid book bookid "
        "isbn track trackid song songid artist artistid game gameid app appid business businessid "
        "article articleid video videoid sku"
    ),
    "time": (
        "time timestamp ts unixtime unixreviewtime unixtimestamp date datetime reviewdate "
        "eventtime createdat"
    ),
    "title": (
        "title name itemtitle itemname producttitle productname movietitle moviename filmtitle "
        "booktitle bookname tracktitle trackname songtitle songname artistname gametitle gamename "
        "articletitle videotitle appname businessname"
    ),
    "rating": "rating ratings overall stars starrating score",
}
"""Names by which columns are guessed: in lower case, letters and digits alone."""
FILE_ORDER = "file order"
"""Value of `prepare.custom.time` where the rows are in order."""
NEEDED = ("user", "item")


@dataclass(frozen=True)
class Columns:
    """Names of columns; None where there is none."""

    user: str
    item: str
    time: str | None
    title: str | None
    rating: str | None
    guessed: tuple[str, ...]
    """Which of them were guessed."""

    def told(self) -> str:
        """One line that names them."""
        parts = []
        for role in KNOWN:
            name = getattr(self, role)
            if name is not None:
                mark = " (guessed)" if role in self.guessed else ""
                parts.append(f"{role} = {name!r}{mark}")
        return ", ".join(parts)


def chosen(source: Source, config: CustomConfig, *, rated: bool) -> Columns:
    """Find the columns.

    Args:
        source: What is read.
        config: The names that the user gives.
        rated: Whether ratings are needed; without need they are not looked for.

    Raises:
        ValueError: A column is missing, stands twice, is named for two things, or could be either
            of two; the message names it and the remedy.
    """
    names = source.columns()
    found: dict[str, str | None] = dict.fromkeys(KNOWN)
    guessed = []
    for role in KNOWN:
        if role == "rating" and not rated:
            continue
        asked = getattr(config, role)
        if role == "time" and asked == FILE_ORDER:
            continue
        found[role] = _guess(source, names, role) if asked is None else asked
        if asked is None and found[role] is not None:
            guessed.append(role)
        elif asked is not None and asked not in names:
            raise ValueError(
                f"prepare.custom.{role}={asked!r}: {source.name} has no such column; it has "
                f"{_listed(names)}"
            )
    needed = (*NEEDED, *(("rating",) if rated else ()))
    for role in needed if config.time == FILE_ORDER else (*needed, "time"):
        if found[role] is None:
            raise _missing(source, names, role)
    _check_once(source, names, found)
    return Columns(**found, guessed=tuple(guessed))  # type: ignore[arg-type]


def title_columns(source: Source, config: CustomConfig, item: str) -> tuple[str, str]:
    """Item and title of a source of titles.

    Args:
        source: What is read.
        config: The names that the user gives, which are those of either source.
        item: The column of the items in the interactions; it is preferred here.

    Raises:
        ValueError: One of them is missing, stands twice, or could be either of two.
    """
    names = source.columns()
    own = item if item in names else _guess(source, names, "item")
    title = config.title if config.title in names else _guess(source, names, "title")
    if own is None or title is None:
        raise _missing(source, names, "item" if own is None else "title")
    _check_once(source, names, {"item": own, "title": title})
    return own, title


def _guess(source: Source, names: Sequence[str], role: str) -> str | None:
    known = KNOWN[role].split()
    fitting = [name for name in names if re.sub(r"[\W_]", "", name.casefold()) in known]
    if len(set(fitting)) > 1:
        raise ValueError(
            f"{source.name}: the columns {fitting[0]!r} and {fitting[1]!r} could both be the "
            f"{role}: name one, such as --prepare.custom.{role} {fitting[0]}"
        )
    return fitting[0] if fitting else None


def _missing(source: Source, names: Sequence[str], role: str) -> ValueError:
    remedy = f"name one by --prepare.custom.{role} COLUMN"
    if role == "time":
        remedy += f", or, if the rows are in order, pass --prepare.custom.time {FILE_ORDER!r}"
    where = source.name
    if source.has_header:
        where += ", line 1"
        if any(re.fullmatch(r"[-+.\d]+", name) for name in names):
            remedy = "this line looks like data; write a header above it: user,item,time,title"
    return ValueError(f"{where}: no column is known as {role} among {_listed(names)}: {remedy}")


def _check_once(source: Source, names: Sequence[str], found: dict[str, str | None]) -> None:
    for role, name in found.items():
        if name is not None and list(names).count(name) > 1:
            raise ValueError(
                f"{source.name}: the column {name!r} stands twice: rename or remove one"
            )
        others = [other for other in found if other != role and found[other] == name]
        # The items' ids may be shown as their titles.
        if name is not None and others and {role, *others} != {"item", "title"}:
            raise ValueError(
                f"prepare.custom.{role}={name!r}: this column is the {others[0]} too; name another"
            )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:30])
