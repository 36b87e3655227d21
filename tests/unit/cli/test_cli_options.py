"""How option values are read."""

import pytest
import typer

from gateway.cli.options import example, read_data, read_duration, read_pairs


def test_durations():
    """As in the configuration."""
    assert [read_duration(text) for text in ("500ms", "20s", "8h", "1.5m")] == [0.5, 20, 28_800, 90]


@pytest.mark.parametrize("text", ["", "20", "s", "-1s", "1 h", "1w"])
def test_what_is_no_duration_is_refused(text):
    """The message gives examples."""
    with pytest.raises(typer.BadParameter, match="expected a duration such as 500ms, 10s, 5m, 24h or 7d, found"):
        read_duration(text)


def test_pairs():
    """The first = divides."""
    assert read_pairs(["shop=berlin", "q=a=b", "empty="]) == {"shop": "berlin", "q": "a=b", "empty": ""}


@pytest.mark.parametrize("text", ["shop", "=x", ""])
def test_what_is_no_pair_is_refused(text):
    """The message shows the form."""
    with pytest.raises(typer.BadParameter, match="expected NAME=VALUE, found"):
        read_pairs([text])


def test_data_is_json_from_the_line_or_a_file(tmp_path):
    """None without any."""
    (tmp_path / "data.json").write_text('{"n": 1}')
    assert read_data(None) is None
    assert read_data('{"n": [1, null]}') == {"n": [1, None]}
    assert read_data(f"@{tmp_path / 'data.json'}") == {"n": 1}


@pytest.mark.parametrize("text", ["{", "hello", "NaN", "[" * 100_000])
def test_data_that_is_no_json_is_refused(text):
    """Never a traceback."""
    with pytest.raises(typer.BadParameter, match="expected JSON"):
        read_data(text)


def test_an_example_keeps_its_lines():
    r"""The mark \b tells the help not to fill the lines that follow."""
    assert example("gateway init") == "\b\nExample:\n  gateway init"
    assert example("a", "b").startswith("\b\nExamples:\n")
