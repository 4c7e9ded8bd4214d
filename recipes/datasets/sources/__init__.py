"""Tables of any make as rows of (user, item, time, title, rating), checked value by value.

`opening.py` finds what a path or a name stands for. The readers (`delimited.py`, `json_lines.py`,
`arrow.py`) give columns and know in which line a row stands; `columns.py` tells which column is
which; `ids.py`, `times.py`, `ratings.py` and `titles.py` each make numbers or text of one.
"""
