"""What the parser says of a value that has a wrong type, in the words of this package."""

import re

KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "dict": "a block of fields with values",
    "NoneType": "null",
}
"""Types of fields in words."""
FIELD = re.compile(r'Parser key "([^"]+)":')
WANTED = re.compile(r"Expected a (?:<class '(\w+)'>|typing\.Literal\[([^]]+)\])")
VALUE = re.compile(
    r"(?:Got value|Given value|Unable to load config)(?:: | ['\"])([^\n]*?)['\"]?$", re.MULTILINE
)
WHOLE = re.compile(r"Given value: ([^\n]*)$", re.MULTILINE)
"""The value of a field of which one element is wrong."""


def worded(message: str) -> str:
    """One of jsonargparse's messages as `FIELD=VALUE must be ...`; any other is left as it is."""
    field, value = FIELD.search(message), VALUE.search(message)
    wanted: list[str] = [
        KINDS.get(str(kind), str(kind)) if kind else f"one of {choices}"
        for kind, choices in WANTED.findall(message)
    ]
    if message.startswith("unrecognized arguments"):
        return f"{message}: `--help` lists every field"
    if "Unable to load config" in message:
        wanted = ["a section of fields with values, or a YAML file of one"]
    if field is None or value is None or not wanted:
        return message
    whole = WHOLE.search(message)
    if "Got value" in message and whole is not None:  # of one element of the value
        wanted = [one for one in wanted if one != KINDS["NoneType"]]
        return f"{field[1]}={whole[1]}: {value[1]} must be {' or '.join(dict.fromkeys(wanted))}"
    return f"{field[1]}={value[1]} must be {' or '.join(dict.fromkeys(wanted))}"
