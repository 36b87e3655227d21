"""The wheel holds what a clone holds: `pip install` is enough."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from system import eventually

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content, unpacked as pip would."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def _python(installed: Path, code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environ, capture_output=True, text=True, timeout=60, check=False
    )


def test_gateway_init_works_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    """The template of gateway.toml is in the wheel, and `gateway check` accepts what `gateway init` made."""
    code = "import sys; sys.argv = ['gateway', *{}]; from gateway.cli import main; main()"
    done = _python(installed, code.format(["init"]), tmp_path)
    assert done.returncode == 0, done.stderr
    done = _python(installed, code.format(["check"]), tmp_path)
    assert done.stdout.startswith("ok: "), done.stderr


def test_the_demo_finds_its_services_in_the_wheel(installed: Path, tmp_path: Path) -> None:
    """The retail services come with the wheel and start from it."""
    done = _python(installed, "from gateway.demo.stage import retail_folder; print(retail_folder())", tmp_path)
    folder = Path(done.stdout.strip())
    assert folder.is_relative_to(installed), done.stderr
    command = [sys.executable, str(folder / "order.py"), "--port", "0", "--database", "order.db"]
    with (tmp_path / "log").open("w") as log:
        service = subprocess.Popen(command, cwd=tmp_path, stdout=log)
    try:
        eventually(lambda: "listening on" in (tmp_path / "log").read_text(), what="the service did not start")
    finally:
        service.terminate()
        service.wait(10)


def test_the_base_install_carries_no_server(installed: Path, tmp_path: Path) -> None:
    """The agent and `from gateway import Event, handler` import nothing of the extra `gateway`."""
    code = (
        "import sys; import edge_agent.cli; from gateway import Event, handler; "
        "print(sorted({'aiohttp', 'uvloop', 'typer', 'structlog', 'aiomqtt'} & set(sys.modules)))"
    )
    done = _python(installed, code, tmp_path)
    assert done.stdout.strip() == "[]", done.stderr
