"""How results are printed."""

from gateway.cli.output import flatten, plain, print_fields, print_json, print_table


def test_a_table_is_aligned(capsys):
    """Texts to the left, numbers to the right, nothing behind the last word."""
    rows = [{"name": "orders", "lag": 5, "cause": ""}, {"name": "a", "lag": 1234, "cause": "down"}]
    print_table(rows, ("name", "lag", "cause"))
    assert capsys.readouterr().out == "NAME     LAG  CAUSE\norders     5  -\na       1234  down\n"


def test_an_empty_table_is_its_head(capsys):
    """Nothing is said twice, and nothing is hidden."""
    print_table([], ("name", "rate_per_s"))
    assert capsys.readouterr().out == "NAME  RATE PER S\n"


def test_fields_are_aligned(capsys):
    """One a line."""
    print_fields({"id": "cart-7", "created_at": None, "enabled": True})
    assert capsys.readouterr().out == "id          cart-7\ncreated_at  -\nenabled     yes\n"


def test_json_is_one_line_of_ascii(capsys):
    """A program reads it line by line, and a terminal cannot be spoken to through it."""
    print_json({"a": ["ü", "\x9b2J"]})
    assert capsys.readouterr().out == '{"a":["\\u00fc","\\u009b2J"]}\n'


def test_values_are_shown_to_people():
    """Each kind of JSON value has one way."""
    shown = [plain(value) for value in (None, "", True, 3, 2.5, {"a": "b"}, {}, {"a": {"b": 1}}, [1])]
    assert shown == ["-", "-", "yes", "3", "2.5", "a=b", "-", '{"a": {"b": 1}}', "[1]"]


def test_no_device_speaks_to_the_terminal():
    """Control characters in what a device sent are replaced."""
    assert plain("a\x1b[2J\x07\x9b\nb") == "a\N{REPLACEMENT CHARACTER}[2J" + "\N{REPLACEMENT CHARACTER}" * 3 + "b"
    assert "\x1b" not in plain({"\x1b": "\x1b"})


def test_nested_counters_become_dotted_names():
    """As `gateway stats` prints them."""
    assert flatten({"bus": {"events": 1, "disk": {"free": 2}}, "x": 3}) == {"bus.events": 1, "bus.disk.free": 2, "x": 3}
