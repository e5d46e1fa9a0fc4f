"""A pool joins a deployment elsewhere: addresses by flags, secrets by the environment, names that do not meet."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from pydantic import SecretStr

from symposia_shared.errors import BadInput
from symposia_shared.ledger import Ledger
from symposia_shared.settings import S3Settings, Settings
from symposia_worker.joining import PASSWORD, await_name, joined, pool_name_here
from symposia_worker.stack.amounts import bytes_of, shown
from symposia_worker.stack.devices import memory_of, shares
from valkey_server import running_valkey

KNOWN = Settings(broker_url=SecretStr("redis://:hush@127.0.0.1:7001/0"), s3=S3Settings(access_key="key", secret_key=SecretStr("quiet")))


def broker(url: str, settings: Settings = KNOWN, **environ: str) -> str:
    return joined(settings, broker=url, store="", environ=environ).broker


def test_an_address_by_a_flag_has_the_secret_of_the_credentials_file_or_of_the_environment() -> None:
    assert broker("redis://far.example:6379/2") == "redis://:hush@far.example:6379/2"
    assert broker("rediss://worker@far.example:6379/2", Settings(), **{PASSWORD: "a/b@c"}) == "rediss://worker:a%2Fb%40c@far.example:6379/2"
    assert broker("redis://far.example:6379/0", Settings()) == "redis://far.example:6379/0"
    assert broker("") == KNOWN.broker


def test_a_store_by_a_flag_keeps_the_keys_that_are_known() -> None:
    def store(url: str) -> S3Settings:
        return joined(KNOWN, broker="", store=url, environ={}).s3

    near, far = store("http://far.example:8333/weights"), store("s3://mine")
    assert (near.endpoint_url, near.bucket, near.access_key) == ("http://far.example:8333", "weights", "key")
    assert (far.endpoint_url, far.bucket) == (None, "mine")
    assert store("http://far.example:8333").bucket == "symposia"


@pytest.mark.parametrize(("broker", "store"), [
    ("redis://:secret-word@far/0", ""), ("", "http://k:secret-word@far:1/b"), ("ftp://:secret-word@far", ""), ("", "ftp://k:secret-word@far"),
    ("far:6379", ""), ("", "far:8333"),
])
def test_an_address_with_a_secret_in_it_or_that_is_none_is_refused_without_showing_the_secret(broker: str, store: str) -> None:
    with pytest.raises(BadInput) as refused:
        joined(KNOWN, broker=broker, store=store, environ={})
    assert "secret-word" not in str(refused.value)


def test_pools_of_two_machines_have_names_of_their_own() -> None:
    assert pool_name_here("pool-cpu-0", "node-7.rack.example") == "pool-cpu-0.node-7"
    assert pool_name_here("pool-cpu-0", "") == "pool-cpu-0.host"


def test_a_name_that_beats_on_another_machine_is_refused_and_one_that_stopped_there_is_waited_for(tmp_path: Path) -> None:
    with running_valkey(tmp_path) as url:
        ledger = Ledger(url, "t:")
        ledger.beat("p", {"role": "pool", "host": "there", "beat_at": time.time() - 9.5})
        await_name(ledger, "p", "here")  # (returns once that is ten seconds old)
        ledger.beat("p", {"role": "pool", "host": "there", "beat_at": time.time()})
        await_name(ledger, "p", "there")
        with pytest.raises(BadInput, match="runs on there already"):
            await_name(ledger, "p", "here", within_s=0.0)


def test_devices_have_budgets_and_share_what_is_left_of_memory_and_cores() -> None:
    one, two, three = shares("cpu:0=4GB,cpu:1,cpu:2", cores=5, memory_bytes=20 * 10**9)
    assert (one.memory_bytes, two.memory_bytes, three.memory_bytes) == (4 * 10**9, 4 * 10**9, 4 * 10**9)
    assert (one.threads, two.threads, three.threads) == (2, 2, 1)
    gpu, pair, rest = shares("cuda:0=20GiB,cuda:1+cuda:2,cpu+disk=1GB", cores=2, memory_bytes=10**10)
    assert (gpu.memory_bytes, gpu.threads, pair.pool, pair.memory_bytes) == (20 * 2**30, None, "pool-cuda-1-cuda-2", None)
    assert (rest.pool, rest.memory_bytes) == ("pool-cpu-disk", 10**9)


@pytest.mark.parametrize("text", ["cpu:0=9GB,cpu:1=9GB", "cpu:0=6GB,cpu:1", "cpu:0=", "cpu:0=much", "cpu:0=-1GB", "cuda:0+cpu:0", "cuda:0+"])
def test_budgets_that_are_none_or_too_much_are_refused(text: str) -> None:
    with pytest.raises(BadInput):
        shares(text, cores=2, memory_bytes=10**10)


def test_a_gpu_without_a_budget_has_three_quarters_of_what_its_driver_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match="--memory 20GB"):
        memory_of("cuda:0")
    driver = tmp_path / "nvidia-smi"
    driver.write_text('#!/bin/sh\necho "$@" > "$0.asked"\necho 8000\n[ "$3" = --id=5,2 ] && echo 4000\nexit 0\n')
    driver.chmod(0o700)
    assert memory_of("cuda:0") == 6000 * 2**20
    # of what CUDA is let see, by the driver's own numbers
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,2")
    assert memory_of("cuda:0+cuda:1") == 9000 * 2**20
    assert "--id=5,2" in (tmp_path / "nvidia-smi.asked").read_text()
    assert memory_of("cpu:0") is None


def test_amounts_are_read_and_shown_as_people_write_them() -> None:
    assert [bytes_of(t) for t in ("4GB", "1.5 GiB", "512MiB", "7")] == [4 * 10**9, 3 * 2**29, 2**29, 7]
    assert [shown(n) for n in (4e9, 1.234e10, 2.5e11, 6.19e8, 1500)] == ["4 GB", "12.3 GB", "250 GB", "619 MB", "1.5 kB"]
