"""How a backend is found by its URL, and what is wrong with a URL or a file."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import apsw
import pytest
from batches import ids_in, plain_batch

from gateway.errors import ConfigError
from gateway.storage import open_storage


@pytest.mark.parametrize("url", ["", "sqlite", "sqlite:/x", "placing://", "mysql://x", "../memory://", "Memory://"])
async def test_an_unknown_scheme_names_those_there_are(url):
    """The error shows how a URL may begin."""
    with pytest.raises(
        ConfigError, match=r"bus\.url: expected a URL that starts with .*memory://.* or sqlite://, found"
    ):
        await open_storage(url)


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///", "sqlite://host/x.db", "sqlite:///x.db?mode=ro", "sqlite:///a%00b"]
)
async def test_a_url_without_a_file_is_refused(url):
    """The error shows both forms."""
    with pytest.raises(ConfigError, match="expected sqlite:///relative/path or sqlite:////absolute/path"):
        await open_storage(url)


async def test_paths_are_relative_or_absolute(tmp_path):
    """Three slashes and a path from here, four for an absolute one; percent signs are decoded."""
    relative = "/".join([".."] * (len(Path.cwd().parts) - 1)) + str(tmp_path)
    for url in (f"sqlite:///{relative}/a%20b.db", f"sqlite:///{tmp_path}/a%20b.db"):
        store = await open_storage(url, min_free_disk_bytes=0)
        await store.bus.append([plain_batch("a")])
        assert await ids_in(store.bus) == ["a"]
        await store.aclose()
    assert (tmp_path / "a b.db").exists()


async def test_a_missing_directory_is_named(tmp_path):
    """The store makes its file, not the directory."""
    with pytest.raises(ConfigError, match=f"there is no {tmp_path}/none"):
        await open_storage(f"sqlite:///{tmp_path}/none/bus.db")


async def test_a_second_owner_is_refused_with_the_first_ones_id(tmp_path):
    """One process has the file, also while another one tries; after the close it is free."""
    url = f"sqlite:///{tmp_path}/bus.db"
    store = await open_storage(url)
    with pytest.raises(ConfigError, match=f"no other process has open; process {os.getpid()} has this"):
        await open_storage(url)
    script = "import asyncio, sys; from gateway.storage import open_storage; asyncio.run(open_storage(sys.argv[1]))"
    other = await asyncio.create_subprocess_exec(sys.executable, "-c", script, url, stderr=asyncio.subprocess.PIPE)
    _, stderr = await other.communicate()
    assert f"process {os.getpid()} has this" in stderr.decode()
    await store.aclose()
    await (await open_storage(url)).aclose()


async def test_a_newer_store_is_refused_with_both_versions(tmp_path):
    """An older program never writes what it does not understand."""
    url = f"sqlite:///{tmp_path}/bus.db"
    await (await open_storage(url)).aclose()
    connection = apsw.Connection(str(tmp_path / "bus.db"))
    connection.execute("UPDATE meta SET value = 2 WHERE key = 'version'")
    connection.close()
    for _ in range(2):  # a refusal lets go of the file
        with pytest.raises(
            ConfigError, match="a store of version 1; this one has version 2, written by a newer Lockgate"
        ):
            await open_storage(url)


async def test_another_programs_file_is_left_alone(tmp_path):
    """Neither a foreign database nor a file that is none is touched."""
    path = tmp_path / "other.db"
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    with pytest.raises(ConfigError, match="a store of Lockgate; this file is another program's database"):
        await open_storage(f"sqlite:///{path}")
    path.write_text("not a database" * 1000)
    with pytest.raises(ConfigError, match="a store of Lockgate; this file is no database"):
        await open_storage(f"sqlite:///{path}")
    assert path.read_text().startswith("not a database")
