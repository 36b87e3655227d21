"""Development certificates."""

import ipaddress
import stat
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from gateway.cli.certificates import check_server_certificate, write_certificates, write_file
from gateway.errors import ConfigError, Conflict

NOW = datetime(2026, 11, 23, 9, 30, tzinfo=UTC)
FILES = ["ca-key.pem", "ca.pem", "server-key.pem", "server.pem"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_chain_is_right(tmp_path):
    """The server's certificate is signed by the CA, names every host, and stands with its CA in one file."""
    written = write_certificates(tmp_path, ["gw.example.com", "10.0.0.7", "localhost"], now=NOW)
    assert sorted(path.name for path in written) == names(tmp_path) == FILES
    server, chained = x509.load_pem_x509_certificates((tmp_path / "server.pem").read_bytes())
    ca = x509.load_pem_x509_certificate((tmp_path / "ca.pem").read_bytes())
    assert chained == ca
    server.verify_directly_issued_by(ca)
    ca.verify_directly_issued_by(ca)
    alternatives = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert alternatives.get_values_for_type(x509.DNSName) == ["localhost", "gw.example.com"]
    addresses = alternatives.get_values_for_type(x509.IPAddress)
    assert addresses == [ipaddress.ip_address(text) for text in ("127.0.0.1", "::1", "10.0.0.7")]


def test_a_strict_verifier_accepts_it(tmp_path):
    """RFC 5280 path validation, by a second implementation of it."""
    write_certificates(tmp_path, [], now=NOW)
    server, ca = x509.load_pem_x509_certificates((tmp_path / "server.pem").read_bytes())
    store = x509.verification.Store([ca])
    verifier = x509.verification.PolicyBuilder().store(store).time(NOW).build_server_verifier(x509.DNSName("localhost"))
    assert verifier.verify(server, []) == [server, ca]


def test_how_long_they_are_valid(tmp_path):
    """Ten years and 825 days, from a little before now."""
    write_certificates(tmp_path, [], now=NOW)
    server, ca = x509.load_pem_x509_certificates((tmp_path / "server.pem").read_bytes())
    assert server.not_valid_after_utc == NOW + timedelta(days=825)
    assert ca.not_valid_after_utc == NOW + timedelta(days=3650)
    assert server.not_valid_before_utc < NOW


def test_keys_are_private(tmp_path):
    """Mode 0600, from the moment they exist."""
    write_certificates(tmp_path, [], now=NOW)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert (modes["ca-key.pem"], modes["server-key.pem"], modes["ca.pem"]) == (0o600, 0o600, 0o644)


def test_nothing_that_exists_is_touched(tmp_path):
    """A second run writes nothing; a missing server certificate is made by the CA that is there."""
    write_certificates(tmp_path, [], now=NOW)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert write_certificates(tmp_path, ["other"], now=NOW) == []
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "server.pem").unlink()
    (tmp_path / "server-key.pem").unlink()
    assert len(write_certificates(tmp_path, [], now=NOW)) == 2
    assert (tmp_path / "ca.pem").read_bytes() == before[tmp_path / "ca.pem"]


@pytest.mark.parametrize(
    ("gone", "message"),
    [("server.pem", "server-key.pem exists without server.pem"), ("ca.pem", "ca-key.pem exists without ca.pem")],
)
def test_half_a_pair_is_named(tmp_path, gone, message):
    """A key without its certificate is somebody's: it is neither used nor overwritten."""
    write_certificates(tmp_path, [], now=NOW)
    (tmp_path / gone).unlink()
    with pytest.raises(Conflict, match=message):
        write_certificates(tmp_path, [], now=NOW)


def test_a_ca_without_its_key_cannot_sign(tmp_path):
    """The message says what to do."""
    write_certificates(tmp_path, [], now=NOW)
    for name in ("ca-key.pem", "server.pem", "server-key.pem"):
        (tmp_path / name).unlink()
    with pytest.raises(Conflict, match=r"ca\.pem exists without ca-key\.pem: put your server\.pem"):
        write_certificates(tmp_path, [], now=NOW)


@pytest.mark.parametrize("host", ["", "a b", "https://x", "bücher.example", "host:8883"])
def test_a_host_that_is_none_is_refused(tmp_path, host):
    """Before anything is written."""
    with pytest.raises(ConfigError, match="--host: expected a DNS name in ASCII or an IP address"):
        write_certificates(tmp_path, [host], now=NOW)
    assert names(tmp_path) == []


def test_write_file_never_overwrites(tmp_path):
    """It is for new files only."""
    write_file(tmp_path / "a", b"1", 0o600)
    with pytest.raises(FileExistsError):
        write_file(tmp_path / "a", b"2", 0o600)
    assert (tmp_path / "a").read_bytes() == b"1"


def test_check_tells_until_when(tmp_path):
    """A good pair passes until the second it ends."""
    write_certificates(tmp_path, [], now=NOW)
    files = tmp_path / "server.pem", tmp_path / "server-key.pem"
    end = NOW + timedelta(days=825)
    assert check_server_certificate(*files, now=NOW) == end
    assert check_server_certificate(*files, now=end - timedelta(seconds=1)) == end
    for then in (end, end + timedelta(seconds=1), NOW - timedelta(hours=1)):
        with pytest.raises(ConfigError, match=r"mqtt\.certificate: expected one that is valid now"):
            check_server_certificate(*files, now=then)


def test_check_names_what_is_wrong(tmp_path):
    """Missing, not PEM, or the key of another."""
    write_certificates(tmp_path, [], now=NOW)
    certificate, key, other = tmp_path / "server.pem", tmp_path / "server-key.pem", tmp_path / "ca-key.pem"
    with pytest.raises(ConfigError, match=r"mqtt\.private_key: expected the key of .*server\.pem"):
        check_server_certificate(certificate, other, now=NOW)
    with pytest.raises(ConfigError, match=r"mqtt\.certificate: expected PEM certificates"):
        check_server_certificate(key, key, now=NOW)
    with pytest.raises(ConfigError, match=r"mqtt\.private_key: expected a PEM private key without a password"):
        check_server_certificate(certificate, certificate, now=NOW)
    with pytest.raises(ConfigError, match=r"mqtt\.certificate: expected a readable file \(No such file"):
        check_server_certificate(tmp_path / "none.pem", key, now=NOW)
