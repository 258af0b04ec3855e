"""docs/pager.md says what the pager's sources say."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "pager.md").read_text()
SOURCES = ROOT / "native" / "pager" / "src"

UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def value_of(expression: str) -> int:
    """Return a limit in its unit: bytes, a number, or milliseconds."""
    time = re.fullmatch(r"Duration::from_(secs|millis)\((\d+)\)", expression)
    if time is not None:
        return int(time[2]) * (1000 if time[1] == "secs" else 1)
    assert re.fullmatch(r"[\d <*]+", expression), expression
    return int(eval(expression))


def told(text: str) -> list[int]:
    """Return the values of a cell: `2, 8 threads`, `64 KiB`, `5 s`, `2^56`."""
    if power := re.fullmatch(r"2\^(\d+)", text):
        return [1 << int(power[1])]
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    unit = text.split()[1] if " " in text else ""
    scale = UNITS.get(unit, 1000 if unit == "s" else 1)
    return [number * scale for number in numbers]


def test_the_table_of_limits_is_the_source_s() -> None:
    source = (SOURCES / "limits.rs").read_text()
    constants = dict(re.findall(r"^pub const (\w+): [\w]+ = ([^;]+);$", source, re.MULTILINE))
    derived = {"WINDOW_PAGES"}
    rows = re.findall(r"^\| (`[A-Z_]+`(?:, `[A-Z_]+`)*) \| ([^|]+) \|", PAGE, re.MULTILINE)
    table: dict[str, int] = {}
    for names, values in rows:
        table |= dict(zip(re.findall(r"\w+", names), told(values.strip()), strict=True))
    assert table == {name: value_of(text) for name, text in constants.items() if name not in derived}


def test_every_request_and_every_code_is_told() -> None:
    protocol = (SOURCES / "protocol.rs").read_text()
    requests = re.search(r"pub enum Request \{(.*?)^\}", protocol, re.DOTALL | re.MULTILINE)
    assert requests is not None
    names = re.findall(r"^    (\w+)", requests[1], re.MULTILINE)
    ops = {re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower() for name in names}
    assert ops == set(re.findall(r'\{"op": "(\w+)"', PAGE))
    sources = "".join(path.read_text() for path in sorted(SOURCES.glob("*.rs")))
    codes = set(re.findall(r'Refusal::new\(\s*"(\w+)"', sources)) | {"bad_request"}
    codes_table = PAGE[PAGE.index("| code | meaning |") : PAGE.index("## Handshake")]
    listed = re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| ([^|]+) \|", codes_table, re.MULTILINE)))
    assert codes == set(listed)
