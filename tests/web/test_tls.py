"""HTTPS: the page's requests, WebSockets and cookies over a connection that is encrypted."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from support.data.token import TOKEN
from support.processes.deployment import Deployment
from support.processes.web import RestService, json_message
from websockets.sync.client import connect

from stddaq.client import ConfigClient, ConfigServiceUnreachableError


@dataclass(frozen=True)
class Certificate:
    """A certificate of 127.0.0.1, signed by itself."""

    certificate: Path
    key: Path


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    if shutil.which("openssl") is None:
        pytest.skip("needs the program openssl")
    directory = tmp_path_factory.mktemp("tls")
    made = Certificate(directory / "cert.pem", directory / "key.pem")
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"
    )
    options = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", made.key, "-out", made.certificate]
    subprocess.run([*command.split(), *options], check=True, capture_output=True, timeout=60)
    made.key.chmod(0o600)
    return made


@pytest.mark.slow
def test_page_login_and_websocket_work_over_https(
    deployment: Deployment,
    tmp_path: Path,
    token_file: Path,
    certificate: Certificate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ("--tls-cert", certificate.certificate, "--tls-key", certificate.key)
    rest = RestService.start(deployment, tmp_path / "files", "--token-file", token_file, *options)
    assert rest.url.startswith("https://127.0.0.1:")
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # They would replace `verify`.
        monkeypatch.delenv(name, raising=False)
    with requests.Session() as session:
        session.verify = str(certificate.certificate)
        assert session.get(rest.url + "/", timeout=20).status_code == 200
        origin = {"Origin": rest.url, "X-Stddaq": "1"}
        answer = session.post(
            rest.url + "/api/login", json={"token": TOKEN, "user": "me"}, headers=origin, timeout=20
        )
        assert answer.json()["right"] == "control"
        port = rest.url.rpartition(":")[2]
        cookie = answer.headers["Set-Cookie"]
        # Browsers take such a name only with Secure, without Domain, and for all paths.
        assert cookie.startswith(f"__Host-stddaq-{port}=")
        assert {"Secure", "HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
        secret = cookie.partition(";")[0]
    context = ssl.create_default_context(cafile=certificate.certificate)
    headers = {"Cookie": secret, "Origin": rest.url}
    with connect(f"wss://127.0.0.1:{port}/api/run/ws", ssl=context, additional_headers=headers) as websocket:
        assert "unreachable" in str(json_message(websocket))
    with pytest.raises(ConfigServiceUnreachableError, match="certificate verify failed"):
        ConfigClient(rest.url, user="me", token=TOKEN).get()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.certificate))
    assert ConfigClient(rest.url, user="me", token=TOKEN).get() == deployment.config
    with pytest.raises(requests.ConnectionError):
        requests.get(rest.url.replace("https:", "http:"), timeout=20)
    assert rest.process.end() == 0
    assert rest.process.stderr == []
    assert all("][stddaq-rest][v" in line for line in rest.process.stdout)


def test_certificates_that_cannot_be_used_are_refused_in_one_line(
    deployment: Deployment, certificate: Certificate, tmp_path: Path
) -> None:
    key = tmp_path / "open.pem"
    shutil.copy(certificate.key, key)
    key.chmod(0o644)
    locked = tmp_path / "locked.pem"
    encrypt = ["openssl", "ec", "-in", certificate.key, "-aes256", "-passout", "pass:secret", "-out", locked]
    subprocess.run(encrypt, check=True, capture_output=True, timeout=60)
    locked.chmod(0o600)
    chain, absent = certificate.certificate, tmp_path / "absent.pem"
    for options, reason in (
        (("--tls-cert", chain), "--tls-cert, --tls-key: expected both or none, got one of them"),
        (("--tls-cert", chain, "--tls-key", key), "expected mode 0600 or 0640, got access for others"),
        (("--tls-cert", chain, "--tls-key", absent), "absent.pem: cannot be read"),
        (("--tls-cert", absent, "--tls-key", certificate.key), "absent.pem"),
        (("--tls-cert", certificate.key, "--tls-key", certificate.key), "expected a certificate and its key"),
        (("--tls-cert", chain, "--tls-key", locked), "expected a certificate and its key without a password"),
    ):
        process = deployment.start("stddaq-rest", "--port", 0, *options, ready=None)
        assert process.wait() == 2
        assert len(process.stderr) == 1
        assert reason in process.stderr[0]
