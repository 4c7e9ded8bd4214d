"""What is said of a value with a wrong type, in one line that names field, value and remedy."""

import pytest

from recipes.__main__ import main


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("adapt.batch_size", "many", "must be a whole number"),
        ("adapt.max_steps", "x", "must be a whole number or null"),
        ("adapt.epochs", "x", "must be a number or null"),
        ("adapt.list_candidates", "maybe", "must be true or false"),
        ("adapt.validate_at", "x", "must be a list"),
        ("adapt.train_windows", "1.5", "must be a whole number or null"),
        ("adapt.precision", "half", "must be one of 'fp32', 'bf16'"),
        ("evaluate.rows", "most", "must be one of 'last', 'first', 'all' or null"),
        ("prepare.custom", "3", "must be a section of fields with values, or a YAML file of one"),
        ("arms", "[lora]", "['lora'] must be a list of blocks, such as [{method: ilora}]"),
        ("arms", "lora", "'lora' must be a list of blocks, such as [{method: ilora}]"),
    ],
)
@pytest.mark.parametrize("joined", [False, True])
def test_a_wrong_type_is_named_with_its_field_and_what_it_must_be(
    flag: str, value: str, said: str, joined: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"--{flag}={value}"] if joined else [f"--{flag}", value]
    assert main(["run", "demo", *given]) == 2
    value = "" if flag == "arms" else f"{value} "
    assert capsys.readouterr().err == f"error: {flag}={value}{said}\n"


def test_an_unknown_field_is_told_where_the_known_ones_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["run", "demo", "--adapt.max_step", "3"]) == 2
    told = "unrecognized arguments: --adapt.max_step 3: `--help` lists every field"
    assert told in capsys.readouterr().err
